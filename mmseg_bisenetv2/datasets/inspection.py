"""Looks at data sets: at a few files when a run starts, at all for ``tools/check_dataset.py``."""
import hashlib
import importlib.metadata
import itertools
import os.path as osp
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import mmengine.fileio as fileio
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mmseg_bisenetv2.visualization import colour_table

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

LOSSLESS = ('.png', '.bmp', '.gif', '.tif', '.tiff', '.webp')  # Suffixes of label maps.
CONVERT = 'python tools/convert_labels.py'
ONLY_0_AND_255 = ('the label maps hold only 0 and 255, and 255 is ignored. If 255 marks a class, '
                  f'write 1 in its place: {CONVERT}')
ABSENT_IN_MIOU = 'mIoU leaves them out, or counts 0 as soon as they are predicted'
# The distributions of a group install the same module, one over the other.
SAME_MODULE = (('mmcv', 'mmcv-lite', 'onedl-mmcv'),
               ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python',
                'opencv-contrib-python-headless'),
               ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
               ('mmsegmentation', 'onedl-mmsegmentation'), ('openmim', 'onedl-mim'))
DISTRIBUTIONS = ('mmseg_bisenetv2', 'torch', 'numpy',
                 *(name for group in SAME_MODULE for name in group))


def load_pair(dataset: BaseSegDataset, info: dict, with_picture: bool = True) -> dict:
    """Applies only the loaders of the pipeline, and nothing random, to what ``info`` names."""
    loaders = (LoadImageFromFile, LoadAnnotations) if with_picture else LoadAnnotations
    results = info
    try:
        for transform in dataset.pipeline.transforms:
            if isinstance(transform, loaders):
                results = transform(results)
    except Exception as error:
        error.add_note(f'Image {info["img_path"]}, label map {info.get("seg_map_path")}')
        raise
    return results


def list_local(dataset: BaseSegDataset, key: str) -> list[str] | None:
    """Lists a folder of the data set and those below it; None if it is not on this machine."""
    folder = dataset.data_prefix.get(key) or ''
    backend = fileio.get_file_backend(folder, backend_args=dataset.backend_args)
    if not isinstance(backend, fileio.LocalBackend) or not osp.isdir(folder):
        return None
    files = backend.list_dir_or_file(folder, list_dir=False, recursive=True)
    return [osp.join(folder, file) for file in files]


def find_missing_maps(dataset: BaseSegDataset, infos: Sequence[dict]) -> list[dict]:
    """Returns the pictures without label map, if the pipeline loads label maps from a disk."""
    files = list_local(dataset, 'seg_map_path')
    if files is None or not any(isinstance(transform, LoadAnnotations)
                                for transform in dataset.pipeline.transforms):
        return []
    listed = set(files)  # One listing is faster than a question for each file.
    return [info for info in infos if 'seg_map_path' in info and info['seg_map_path'] not in listed
            and not osp.isfile(info['seg_map_path'])]


def explain_missing_maps(dataset: BaseSegDataset, missing: Sequence[dict], total: int) -> str:
    """Says how many label maps are missing, names the first, and what is there in its place."""
    picture, path = (osp.abspath(missing[0][key]) for key in ('img_path', 'seg_map_path'))
    text = f'{len(missing)} of {total} pictures have no label map: {picture} needs {path}'
    if type(dataset).METAINFO.get('classes'):  # A published data set, which has a way of its own.
        return f'{text}. {getattr(dataset, "remedy", "")}'
    stem = osp.basename(path).removesuffix(dataset.seg_map_suffix)
    files = list_local(dataset, 'seg_map_path') or []
    for name in map(osp.basename, files):
        rest = name.removeprefix(stem)  # Such as '_mask.png'.
        if name.startswith(stem) and not rest[:1].isalnum() and rest.lower().endswith(LOSSLESS):
            return f'{text}. There is {name}: seg_map_suffix={rest!r}?'
    return text + suggest_conversion(files + (list_local(dataset, 'img_path') or []))


def suggest_conversion(files: Sequence[str]) -> str:
    """Ends a sentence with how to make label maps of JSON files; empty if there are none."""
    found = next((file for file in files if file.endswith('.json')), None)
    return f'. There is {osp.abspath(found)}: LabelMe or COCO? {CONVERT}' if found else ''


def is_binary_mask(ids: set[int], *datasets: BaseSegDataset) -> bool:
    """Whether label maps look like masks of 0 and 255, of which 255 would be ignored.

    A network that predicts class 0 everywhere then has a mIoU of 100.
    """
    return 255 in ids and ids <= {0, 255} and all(
        dataset.ignore_index == 255 and len(dataset.metainfo.get('classes') or ()) > 1
        and not dataset.reduce_zero_label and not dataset.label_map for dataset in datasets)


def describe_absent(classes: Sequence[str], ids: Container[int]) -> str:
    """Says which classes are not among the ids that label maps hold; empty if all are."""
    absent = [name for i, name in enumerate(classes) if i not in ids]
    return (f'no pixel of {len(absent)} of {len(classes)} classes: {", ".join(absent)}'
            if absent else '')


def describe_left_out(dataset: BaseSegDataset, infos: Sequence[dict]) -> str:
    """Says how many files of the image folder are no images to the data set; empty if all are."""
    maps = {info.get('seg_map_path') for info in infos}
    found = Counter(osp.splitext(file)[1] or 'without' for file in (
        list_local(dataset, 'img_path') or []) if not file.endswith(dataset.img_suffix)
        and file not in maps and not dataset.ann_file)
    listed = ', '.join(f'{number} {suffix}' for suffix, number in found.most_common())
    return listed and f'files with other suffixes than {dataset.img_suffix} are left out: {listed}'


@dataclass
class Split:
    """What the files of a split hold. Ids are those that the network is given."""

    classes: Sequence[str] = ()
    palette: Sequence[Sequence[int]] = ()
    ignore_index: int = 255
    pairs: list[tuple[BaseSegDataset, dict]] = field(default_factory=list)  # That can be loaded.
    sizes: Counter[str] = field(default_factory=Counter)  # Such as '1280x720', width first.
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, int))  # Of each id.
    label_maps: np.ndarray = field(default_factory=lambda: np.zeros(256, int))  # That hold it.
    examples: dict[int, str] = field(default_factory=dict)  # The first label map with the id.
    moments: np.ndarray = field(default_factory=lambda: np.zeros((2, 3)))  # Sums of x and x^2, RGB.
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # By their hash.
    errors: list[str] = field(default_factory=list)  # With these the training fails.
    warnings: list[str] = field(default_factory=list)  # With these its result may mislead.

    def add(self, info: dict, digest: str, shape: tuple[int, ...], pixels: np.ndarray,
            moments: np.ndarray) -> None:
        """Adds what :func:`_inspect_pair` found."""
        self.files[digest].append(info['img_path'])
        self.sizes[f'{shape[1]}x{shape[0]}'] += 1
        self.pixels += pixels
        self.label_maps += pixels > 0
        self.moments += moments
        for i in np.flatnonzero(pixels):
            self.examples.setdefault(int(i), info['seg_map_path'])

    def to_json(self) -> dict:
        """Returns plain numbers and names; mean and std give each picture the same weight."""
        mean, square = self.moments / max(1, len(self.pairs))
        std = np.sqrt(np.maximum(0, square - mean ** 2))
        return dict(
            pictures=len(self.pairs), sizes=dict(self.sizes.most_common()),
            mean_rgb=mean.round(2).tolist(), std_rgb=std.round(2).tolist(),
            classes=list(self.classes), ignore_index=self.ignore_index,
            ids={int(i): dict(pixels=int(self.pixels[i]), label_maps=int(self.label_maps[i]))
                 for i in np.flatnonzero(self.pixels)},
            errors=self.errors, warnings=self.warnings)


def build_datasets(config: ConfigDict) -> Iterator[BaseSegDataset]:
    """Builds a data set, or those inside of a wrapper, without listing their files."""
    inner = config.get('datasets', [config.dataset] if 'dataset' in config else None)
    if inner is None:
        yield DATASETS.build(dict(config, lazy_init=True))
    else:
        for dataset in inner:
            yield from build_datasets(dataset)


def _inspect_split(name: str, config: ConfigDict, num_threads: int) -> Split:
    """Loads every file of a data set or of those in a wrapper, with a progress bar."""
    split, remedy = Split(), ''
    refused: dict[str, list[str]] = defaultdict(list)
    try:
        datasets = list(build_datasets(config))
    except Exception as error:  # Whatever it is, a training would end with it.
        split.errors.append(str(error))
        return split
    for dataset in datasets:
        split.classes = dataset.metainfo.get('classes') or ()
        split.palette, split.ignore_index = dataset.metainfo['palette'], dataset.ignore_index
        try:
            BaseDataset.full_init(dataset)  # Ours would end at the first thing that is wrong.
        except Exception as error:
            split.errors.append(str(error))
            continue
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if left_out := describe_left_out(dataset, infos):
            split.warnings.append(left_out)
        if missing := find_missing_maps(dataset, infos):
            split.errors.append(explain_missing_maps(dataset, missing, len(infos)))
        absent = {info['seg_map_path'] for info in missing}
        infos = [info for info in infos if info.get('seg_map_path') not in absent]
        with ThreadPoolExecutor(num_threads) as pool:
            loaded = pool.map(partial(_inspect_pair, dataset), infos)
            progress = track(loaded, name, len(infos), console=Console(stderr=True))
            for info, result in zip(infos, progress, strict=True):
                if isinstance(result, str):  # Of one kind if paths and numbers alone differ.
                    refused[re.sub(r'\S*/\S*|\d+', '', result)].append(result)
                else:
                    split.pairs.append((dataset, info))
                    split.add(info, *result)
        remedy = getattr(dataset, 'label_remedy', '')
    for texts in refused.values():
        more = f' ({len(texts) - 1} more like it)' if len(texts) > 1 else ''
        split.errors.append(texts[0] + more)
    outside = [i for i in split.examples if i >= len(split.classes) and i != split.ignore_index]
    if split.classes and outside:
        found = ', '.join(f'{i} ({split.label_maps[i]} of {len(split.pairs)} label maps, such as '
                          f'{split.examples[i]})' for i in outside[:3])
        more = f' and {len(outside) - 3} other ids' if len(outside) > 3 else ''
        split.errors.append(f'{len(split.classes)} classes, but there are ids beyond them: {found}'
                            f'{more}. {remedy}')
    return split


def _inspect_pair(dataset: BaseSegDataset, info: dict) -> tuple | str:
    """Returns what :meth:`Split.add` adds, or what a training would say of the files."""
    try:
        digest = hashlib.sha256(fileio.get(info['img_path'], dataset.backend_args)).hexdigest()
        results = load_pair(dataset, dict(info))
        image, labels = results['img'], results.get('gt_seg_map')
        if labels is not None and labels.shape != image.shape[:2]:
            raise ValueError(f'{info["seg_map_path"]}: {labels.shape} for an image of '
                             f'{image.shape}. Expected a class id for each pixel')
        counts = np.zeros(256) if labels is None else cv2.calcHist(
            [labels], [0], None, [256], [0, 256]).ravel()  # Lets other threads run meanwhile.
        mean, std = (values[2::-1, 0] for values in cv2.meanStdDev(image))  # BGR to RGB.
        return digest, image.shape, counts.astype(int), np.stack([mean, mean ** 2 + std ** 2])
    except Exception as error:
        named = any(str(info.get(key)) in str(error) for key in ('img_path', 'seg_map_path'))
        return str(error) if named else f'{info["img_path"]}: {error!r}'


def inspect_config(config: Config, names: Iterable[str], num_threads: int) -> dict[str, Split]:
    """Loads every file of the named splits of a config; those that it lacks are left out."""
    splits = {name: _inspect_split(name, loader.dataset, num_threads) for name in names
              if (loader := config.get(f'{name}_dataloader'))}
    for split in splits.values():
        heads = [config.model.decode_head, config.model.get('auxiliary_head') or []]
        numbers = {head.num_classes for group in heads
                   for head in (group if isinstance(group, list) else [group])}
        if split.classes and min(numbers) < len(split.classes):
            split.errors.append(f'{len(split.classes)} classes, but a head has num_classes='
                                f'{min(numbers)}')
    _compare(splits)
    if 'train' in splits and splits['train'].pairs:
        _check_sizes(splits['train'], splits.get('val') or splits.get('test'))
    return splits


def _compare(splits: Mapping[str, Split]) -> None:
    """Adds warnings of classes that never occur and of pictures that occur twice."""
    for name, split in splits.items():
        absent = describe_absent(split.classes, split.examples)
        if is_binary_mask(set(split.examples), *(dataset for dataset, _ in split.pairs)):
            split.warnings.append(ONLY_0_AND_255)
        if absent and split.pairs:
            split.warnings.append(f'{absent}. ' + (
                'The network cannot learn them' if name == 'train' else ABSENT_IN_MIOU))
    for (name, split), (other, others) in itertools.combinations_with_replacement(
            splits.items(), 2):
        copies = [(path, paths[0]) for digest, paths in split.files.items()
                  for path in others.files.get(digest, [])[name == other:]]
        if copies:
            others.warnings.append(
                f'{len(copies)} of {len(others.pairs)} pictures are copies of one in {name}, such '
                f'as {copies[0][0]} of {copies[0][1]}'
                + ('' if name == other else '. The score counts what was trained on'))


@dataclass
class _Resizing:
    """How a pipeline resizes pictures, if it keeps their shape."""

    scale: tuple[int, int] | None = None  # (long, short) side to fit into; None: not resized
    ratios: tuple[float, float] = (1, 1)  # least and largest random factor on the scale
    crop_size: tuple[int, int] | None = None  # (height, width)

    @classmethod
    def from_dataset(cls, dataset: BaseSegDataset) -> '_Resizing | None':
        """Reads a pipeline; None if a size follows from something else than these three."""
        found = cls()
        for transform in dataset.pipeline.transforms:
            # RandomChoiceResize, Resize by a factor, ResizeShortestEdge
            if any(getattr(transform, name, None)
                   for name in ('scales', 'scale_factor', 'max_size')):
                return None
            crop_size = getattr(transform, 'crop_size', None)
            if isinstance(crop_size, (list, tuple)) and len(crop_size) == 2:
                found.crop_size = crop_size[0], crop_size[1]
            scale = getattr(transform, 'scale', None)
            if scale is None:
                continue
            keeps_shape = getattr(getattr(transform, 'resize', transform), 'keep_ratio', True)
            if found.scale or not keeps_shape or not all(isinstance(x, int) for x in scale):
                return None
            found.scale = max(scale), min(scale)
            found.ratios = getattr(transform, 'ratio_range', None) or found.ratios
        return found

    def factor(self, size: str) -> float:
        """By how much a picture of WIDTHxHEIGHT is enlarged, at a ratio of 1."""
        width, height = map(int, size.split('x'))
        return 1 if self.scale is None else min(
            self.scale[0] / max(width, height), self.scale[1] / min(width, height))


def _check_sizes(train: Split, tested: Split | None) -> None:
    """Adds warnings of crops that pictures do not fill, and of sizes that training never shows."""
    training = _Resizing.from_dataset(train.pairs[0][0])
    if training is None:
        return
    number, example = 0, ''
    for size, count in train.sizes.most_common():
        width, height = (round(int(side) * training.factor(size)) for side in size.split('x'))
        if training.crop_size and (height < training.crop_size[0] or width < training.crop_size[1]):
            number += count
            example = example or f'those of {size} are {width}x{height} when they are cropped'
    if number > len(train.pairs) / 2:
        train.warnings.append(
            f'crop_size={training.crop_size}, (height, width), is larger than {number} of '
            f'{len(train.pairs)} pictures, before they are scaled at random: {example}. The rest '
            'of a crop is padding')
    if tested is None or not tested.pairs:
        return
    testing = _Resizing.from_dataset(tested.pairs[0][0])
    if testing is None:
        return
    size, size_tested = (split.sizes.most_common(1)[0][0] for split in (train, tested))
    low, high = (ratio * training.factor(size) for ratio in training.ratios)
    factor = testing.factor(size_tested)
    if not low / 1.01 <= factor <= high * 1.01:
        train.warnings.append(
            f'scale={training.scale} does not fit: training shows pictures of {size} at {low:.2f} '
            f'to {high:.2f} times their size, and they are tested at {factor:.2f} times. '
            f'Expected scale=({size.replace("x", ", ")}), or the same Resize when testing')


def print_splits(splits: Mapping[str, Split]) -> None:
    """Prints a table of the classes, and what else was found, in lines."""
    console = Console()
    first = next(iter(splits.values()))
    names = dict(enumerate(first.classes)) | {first.ignore_index: '(ignored)'}
    table = Table('', 'id', 'class', *(f'{name} {what}' for name in splits
                                       for what in ('pixels', 'maps')), box=SIMPLE_HEAD)
    for column in table.columns[3:]:
        column.justify = 'right'
    for i in sorted(set(names).union(*(split.examples for split in splits.values()))):
        colour = f'on rgb({",".join(map(str, first.palette[i]))})' if i < len(first.palette) else ''
        table.add_row(Text('  ', colour), str(i), Text(names.get(i, 'no class')), *(
            cell for split in splits.values() for cell in (
                f'{split.pixels[i] / max(1, split.pixels.sum()):.2%}', str(split.label_maps[i]))))
    console.print(table)
    for name, split in splits.items():
        mean, std = (' '.join(f'{x:.1f}' for x in split.to_json()[key])
                     for key in ('mean_rgb', 'std_rgb'))
        sizes = ', '.join(f'{size} ({n})' for size, n in split.sizes.most_common(3))
        more = f' and {len(split.sizes) - 3} other sizes' if len(split.sizes) > 3 else ''
        if split.pairs:
            console.print(Text(f'{name}: {len(split.pairs)} pictures of {sizes}{more}; RGB mean '
                               f'{mean}, std {std}'), soft_wrap=True)
        for level, style, texts in (('error', 'bold red', split.errors),
                                    ('warning', 'yellow', split.warnings)):
            for text in texts:
                console.print(Text(f'{name}: {level}: ', style) + Text(text), soft_wrap=True)


def draw_pairs(splits: Mapping[str, Split], path: str | Path, number: int = 6) -> None:
    """Draws evenly spaced pictures of each split under their label maps, as a PNG."""
    figure = Figure(figsize=(12, 7), layout='constrained')
    columns = number // len(splits)
    for row, (name, split) in enumerate(splits.items()):
        step = max(1, len(split.pairs) // columns)
        for column, (dataset, info) in enumerate(split.pairs[::step][:columns], 1):
            results = load_pair(dataset, dict(info))
            image = results['img'][..., 2::-1] / 255
            labels = results.get('gt_seg_map', np.full(image.shape[:2], 255))[..., None]
            colours = colour_table(split.palette)[labels[..., 0]] / 255
            axes = figure.add_subplot(len(splits), columns, row * columns + column)
            axes.imshow(np.where(labels < len(split.classes), (image + colours) / 2, image))
            axes.set_title(f'{name}: {osp.basename(info["img_path"])}', fontsize=8)
            axes.axis('off')
    if len(split.classes) <= 40:  # More would leave no room for the pictures.
        figure.legend(loc='outside lower center', ncols=8, fontsize=8, handles=[
            Patch(color=f'#{bytes(colour).hex()}', label=label)
            for label, colour in zip(split.classes, split.palette, strict=True)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def describe_installation() -> tuple[dict[str, str], list[str]]:
    """Returns the versions of what is installed, and warnings of what does not go together."""
    versions, warnings = {}, []
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for group in SAME_MODULE:
        found = [name for name in group if name in versions]
        if len(found) > 1:
            warnings.append(f'{" and ".join(found)} are both installed, one over the other. Keep '
                            f'one: pip uninstall -y {" ".join(found)} && pip install {found[0]}')
    if shutil.which('nvidia-smi') and not torch.cuda.is_available():
        warnings.append(
            f'there is nvidia-smi, but PyTorch {torch.__version__} uses no GPU: '
            + ('its driver is too old or out of reach' if torch.version.cuda else
               'it is the build for CPUs. Install that for your CUDA: https://pytorch.org'))
    return versions, warnings
