"""MMSegmentation's training data pipeline and ours, one core: from PNG and from a decoded cache.

Both load, scale by 0.5 to 2, crop, flip, distort and pack the same images under the same seeds,
through their data sets, ours with its checks. Every file is in the page cache on both sides: this
measures computing, not a disk.
"""
import itertools
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _arguments import format_size
from benchmarks.measure import compare
from PIL import Image

from mmseg_bisenetv2.datasets.cache import build_cache
from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene

from mmseg.registry import DATASETS

FOLDERS = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
SUFFIXES = dict(img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png')
IMAGES, SAMPLES = 4, 16  # files, and how many samples of them make a timed step


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Times and memory for one size of crop, from PNG and from the cache."""
    cv2.setNumThreads(0)
    args.device = 'cpu'  # wherever the network runs
    rows = []
    scale, crop = args.size[::-1], dict(crop_size=args.crop, cat_max_ratio=0.75)
    resize = dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True)
    with tempfile.TemporaryDirectory() as root:
        files = draw_images(Path(root), IMAGES, args.size)
        for source in ('PNG', 'cache'):
            if source == 'cache':
                build_cache(root, map(str, files[0]), map(str, files[1]))
            theirs = build_step('', root, resize, dict(type='RandomCrop', **crop),
                                dict(type='RandomFlip', prob=0.5))
            ours = build_step('mmseg_bisenetv2.', root, dict(
                type='mmseg_bisenetv2.RandomResizeCrop', scale=scale, **crop))
            rows.append(dict(
                setting=f'{format_size(args.size)}, crop {format_size(args.crop)}, '
                        f'{source}', **compare(theirs, ours, SAMPLES, args),
                png_mb=sum(path.stat().st_size for path in files[0]) / IMAGES / 1e6))
    return rows


def draw_images(root: Path, number: int, size: tuple[int, int]) -> tuple[list[Path], list[Path]]:
    """Writes street scenes with the noise of a camera, whose PNGs decode like photographs."""
    rng = np.random.default_rng(0)
    files: tuple[list[Path], list[Path]] = [], []
    for i in range(number):
        image, labels = draw_scene(rng, size)
        # With this noise a PNG of 1024x2048 has 2.2 MB; those of Cityscapes have 2.3 MB.
        noise = cv2.GaussianBlur(3.5 * rng.standard_normal(image.shape, np.float32), (0, 0), 0.8)
        image = np.clip(cv2.GaussianBlur(image, (0, 0), 2.5) + noise, 0, 255).astype(np.uint8)
        for paths, folder, suffix, pixels in zip(
                files, FOLDERS.values(), SUFFIXES.values(), (image[..., ::-1], labels),
                strict=True):
            paths.append(root / folder / f'{i}{suffix}')
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            # Pillow chooses PNG's row filters as most encoders do; OpenCV's files decode faster.
            Image.fromarray(np.ascontiguousarray(pixels)).save(paths[-1])
    return files


def build_step(prefix: str, root: str, *transforms: dict[str, Any]) -> Callable[[], None]:
    """Takes some samples from a Cityscapes of MMSegmentation, or with a prefix of ours."""
    dataset = DATASETS.build(dict(
        type=f'{prefix}CityscapesDataset', data_root=root, data_prefix=dict(FOLDERS), pipeline=[
            dict(type=f'{prefix}LoadImageFromFile'), dict(type=f'{prefix}LoadAnnotations'),
            *transforms, dict(type=f'{prefix}PhotoMetricDistortion'),
            dict(type=f'{prefix}PackSegInputs')]))
    seeds = itertools.count()

    def step() -> None:
        for seed in itertools.islice(seeds, SAMPLES):
            np.random.seed(seed)
            dataset[seed % IMAGES]

    return step
