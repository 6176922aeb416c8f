"""MMSegmentation's training data pipeline and ours, one core: from PNG and from a decoded cache.

Both load, scale by 0.5 to 2, crop, flip, distort and pack the same images under the same seeds,
through their data sets, ours with its checks. Every file is in the page cache on both sides: what
is measured is computing, no disk. Without --data-root the images are drawn: street scenes with
the noise of a camera, so that their PNGs decode like photographs.
"""
import itertools
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from benchmarks.measure import compare, peak_mb, size
from PIL import Image

from mmseg_bisenetv2.datasets.cache import build_cache
from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene

from mmseg.registry import DATASETS

FOLDERS = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
SUFFIXES = '_leftImg8bit.png', '_gtFine_labelTrainIds.png'


def add_arguments(parser):
    """Sizes, and the images."""
    parser.add_argument('--size', type=size, nargs='+', default=[(1024, 2048)], metavar='HxW',
                        help='of the drawn images; default: 1024x2048')
    parser.add_argument('--crop', type=size, nargs='+', default=[(1024, 1024)], metavar='HxW',
                        help='default: 1024x1024')
    parser.add_argument('--images', type=int, default=4, help='files; default: %(default)s')
    parser.add_argument('--draws', type=int, default=16,
                        help='samples in each timed step; default: %(default)s')
    parser.add_argument('--data-root', type=Path, metavar='DIR',
                        help='a Cityscapes whose first images to take instead')


def run(args):
    """Two results for every size: from PNG and from the cache."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = []
    for image_size in [None] if args.data_root else args.size:
        with tempfile.TemporaryDirectory() as root:
            prepare(Path(root), args, image_size)
            for crop in args.crop:
                rows += measure(args, root, crop)
    return rows


def prepare(root, args, image_size):
    """Writes the images and their label maps, in Cityscapes' layout."""
    for folder in FOLDERS.values():
        (root / folder).mkdir(parents=True)
    if image_size is None:
        images = sorted((args.data_root / FOLDERS['img_path']).rglob('*' + SUFFIXES[0]))
        for image in images[:args.images]:
            label = args.data_root / FOLDERS['seg_map_path'] / image.parent.name / (
                image.name.replace(*SUFFIXES))
            shutil.copy(image, root / FOLDERS['img_path'])
            shutil.copy(label, root / FOLDERS['seg_map_path'])
        return
    rng = np.random.default_rng(0)
    for i in range(args.images):
        image, label = draw_scene(rng, image_size)
        noise = 3.5 * rng.standard_normal(image.shape, np.float32)  # 2.2 MB, Cityscapes 2.3
        image = cv2.GaussianBlur(image, (0, 0), 2.5) + cv2.GaussianBlur(noise, (0, 0), 0.8)
        image = np.clip(image, 0, 255).astype(np.uint8)
        for folder, suffix, pixels in zip(
                FOLDERS.values(), SUFFIXES, (image[..., ::-1], label), strict=True):
            # Pillow chooses the row filters as most encoders do; OpenCV's files decode faster
            Image.fromarray(np.ascontiguousarray(pixels)).save(root / folder / f'{i}{suffix}')


def measure(args, root, crop):
    """Times, memory and differences for one size of crop, from PNG and from the cache."""
    files = [sorted(Path(root, folder).iterdir()) for folder in FOLDERS.values()]
    height, width = np.array(Image.open(files[0][0])).shape[:2]

    def build(prefix, *transforms):
        return DATASETS.build(dict(
            type=f'{prefix}CityscapesDataset', data_root=root, data_prefix=dict(FOLDERS),
            pipeline=[
                dict(type=f'{prefix}LoadImageFromFile'), dict(type=f'{prefix}LoadAnnotations'),
                *transforms, dict(type=f'{prefix}PhotoMetricDistortion'),
                dict(type=f'{prefix}PackSegInputs')]))

    def ours():
        return build('mmseg_bisenetv2.', dict(
            type='mmseg_bisenetv2.RandomResizeCrop', scale=(width, height), crop_size=crop,
            cat_max_ratio=0.75))

    theirs = build(
        '', dict(type='RandomResize', scale=(width, height), ratio_range=(0.5, 2.0),
                 keep_ratio=True),
        dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5))
    shutil.rmtree(Path(root, 'cache_mmseg_bisenetv2'), ignore_errors=True)
    sources = dict(PNG=ours())
    build_cache(root, *files)
    print()
    sources['cache'] = ours()

    def sample(dataset, seed):
        np.random.seed(seed)
        return dataset[seed % args.images]

    def step(dataset):
        """A function that takes some samples, each time under the next seeds."""
        seeds = itertools.count()

        def take():
            for seed in itertools.islice(seeds, args.draws):
                sample(dataset, seed)
        return take

    rows = []
    for name, dataset in sources.items():
        times = compare(step(theirs), step(dataset), args.pairs)
        greys, equal = zip(*(
            difference(sample(theirs, seed), sample(dataset, seed)) for seed in range(args.draws)),
            strict=True)
        rows.append(dict(
            setting=f'{height}x{width}, crop {crop[0]}x{crop[1]}, {name}',
            mmseg_images_per_s=1000 * args.draws / times['mmseg_ms'],
            ours_images_per_s=1000 * args.draws / times['ours_ms'],
            ratio=times['ratio'], ratio_quartiles=times['ratio_quartiles'],
            mmseg_peak_mb=peak_mb(step(theirs)), ours_peak_mb=peak_mb(step(dataset)),
            png_mb=np.mean([path.stat().st_size for path in files[0]]) / 1e6,
            largest_grey_difference=max(greys), equal_labels=min(equal)))
    return rows


def difference(theirs, ours):
    """The largest difference of grey levels, and the share of equal labels."""
    greys = (theirs['inputs'].int() - ours['inputs'].int()).abs().max().item()
    labels = [sample['data_samples'].gt_sem_seg.data for sample in (theirs, ours)]
    return greys, (labels[0] == labels[1]).double().mean().item()
