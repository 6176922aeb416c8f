"""Looks at every file of a data set and at the installation, for ``tools/check_dataset.py``."""
import contextlib
import hashlib
import importlib.metadata
import itertools
import os.path as osp
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import mmengine.fileio as fileio
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmcv.image.geometric import rescale_size
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmseg_bisenetv2.datasets import checks
from mmseg_bisenetv2.datasets.threads import map_in_threads
from mmseg_bisenetv2.visualization import colour_table

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

# The distributions of a group install the same module, one over the other.
SAME_MODULE = (('mmcv', 'mmcv-lite', 'onedl-mmcv'),
               ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python',
                'opencv-contrib-python-headless'),
               ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
               ('mmsegmentation', 'onedl-mmsegmentation'), ('openmim', 'onedl-mim'))
DISTRIBUTIONS = ('mmseg_bisenetv2', 'torch', 'numpy',
                 *(name for group in SAME_MODULE for name in group))


@dataclass
class Pair:
    """What a picture and its label map hold. Ids are those that the network is given."""

    dataset: BaseSegDataset
    info: dict  # The paths of the two.
    digest: str  # Of the picture's file.
    size: str  # Such as '1280x720', width first.
    pixels: np.ndarray  # How many pixels have an id, (256,).
    moments: np.ndarray  # Mean and mean square of R, G and B, (2, 3).


@dataclass
class Split:
    """What the files of a split hold."""

    classes: Sequence[str] = ()
    palette: Sequence[Sequence[int]] = ()
    ignore_index: int = 255
    pairs: list[Pair] = field(default_factory=list)  # Those that can be loaded.
    errors: list[str] = field(default_factory=list)  # With these the training fails.
    warnings: list[str] = field(default_factory=list)  # With these its result may mislead.

    @property
    def counts(self) -> np.ndarray:
        """How many pixels of each label map have an id, (N, 256)."""
        return np.array([pair.pixels for pair in self.pairs], int).reshape(-1, 256)

    @property
    def pixels(self) -> np.ndarray:
        """How many pixels have an id, (256,)."""
        return self.counts.sum(0)

    @property
    def sizes(self) -> Counter[str]:
        """How many pictures have a size."""
        return Counter(pair.size for pair in self.pairs)

    def find_ids(self) -> list[int]:
        """Returns the ids that occur."""
        return np.flatnonzero(self.pixels).tolist()

    def to_json(self) -> dict:
        """Returns plain numbers and names; mean and std give each picture the same weight."""
        counts = self.counts
        mean, square = sum((pair.moments for pair in self.pairs), np.zeros((2, 3))) / max(
            1, len(self.pairs))
        std = np.sqrt(np.maximum(0, square - mean ** 2))
        return dict(
            pictures=len(self.pairs), sizes=dict(self.sizes.most_common()),
            mean_rgb=mean.round(2).tolist(), std_rgb=std.round(2).tolist(),
            classes=list(self.classes), ignore_index=self.ignore_index,
            ids={i: dict(pixels=int(counts[:, i].sum()), label_maps=int((counts[:, i] > 0).sum()))
                 for i in self.find_ids()},
            errors=self.errors, warnings=self.warnings)


def build_datasets(config: ConfigDict) -> Iterator[BaseSegDataset]:
    """Builds a data set, or those inside of a wrapper, without listing their files."""
    inner = config.get('datasets', [config.dataset] if 'dataset' in config else None)
    if inner is None:
        yield DATASETS.build(dict(config, lazy_init=True))
    else:
        for dataset in inner:
            yield from build_datasets(dataset)


def inspect_config(config: Config, names: Iterable[str], num_threads: int) -> dict[str, Split]:
    """Loads every file of the named splits of a config; those that it lacks are left out."""
    splits = {name: _inspect_split(name, loader.dataset, num_threads) for name in names
              if (loader := config.get(f'{name}_dataloader'))}
    heads = [config.model.decode_head, config.model.get('auxiliary_head') or []]
    fewest = min(head.num_classes for group in heads
                 for head in (group if isinstance(group, list) else [group]))
    for split in splits.values():
        if split.classes and fewest < len(split.classes):
            split.errors.append(
                f'{len(split.classes)} classes, but a head has num_classes={fewest}')
    _warn_of_classes(splits)
    _warn_of_copies(splits)
    if 'train' in splits and splits['train'].pairs:
        _check_sizes(splits['train'], splits.get('val') or splits.get('test'))
    return splits


def _inspect_split(name: str, config: ConfigDict, num_threads: int) -> Split:
    """Loads every file of a data set or of those in a wrapper, with a progress bar."""
    split = Split()
    refused: dict[str, list[str]] = defaultdict(list)  # Errors that differ in path and number only.
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
            if other_classes := checks.describe_other_classes(dataset):
                split.errors.append(other_classes)
        except Exception as error:
            split.errors.append(str(error))
            continue
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if left_out := checks.describe_left_out(dataset, infos):
            split.warnings.append(left_out)
        if missing := checks.find_missing_maps(dataset, infos):
            split.errors.append(checks.explain_missing_maps(dataset, missing, len(infos)))
            absent = {info['seg_map_path'] for info in missing}
            infos = [info for info in infos if info.get('seg_map_path') not in absent]
        for found in map_in_threads(partial(_inspect_pair, dataset), infos, name, num_threads):
            if isinstance(found, Pair):
                split.pairs.append(found)
            else:
                refused[re.sub(r'\S*/\S*|\d+', '', found)].append(found)
    for texts in refused.values():
        more = f' ({len(texts) - 1} more like it)' if len(texts) > 1 else ''
        split.errors.append(texts[0] + more)
    if outside := _describe_outside(split):
        split.errors.append(outside)
    return split


def _describe_outside(split: Split) -> str:
    """Says which ids are no classes, and where they are; empty if there are none."""
    ids = [i for i in split.find_ids() if i >= len(split.classes) and i != split.ignore_index]
    if not split.classes or not ids:
        return ''
    holders = {i: [pair for pair in split.pairs if pair.pixels[i]] for i in ids[:3]}
    found = ', '.join(f'{i} ({len(pairs)} of {len(split.pairs)} label maps, such as '
                      f'{pairs[0].info["seg_map_path"]})' for i, pairs in holders.items())
    more = f' and {len(ids) - 3} other ids' if len(ids) > 3 else ''
    return (f'{len(split.classes)} classes, but there are ids beyond them: {found}{more}. '
            + getattr(split.pairs[0].dataset, 'label_remedy', ''))


def _inspect_pair(dataset: BaseSegDataset, info: dict) -> Pair | str:
    """Returns what the files hold, or what a training would say of them."""
    try:
        digest = hashlib.sha256(fileio.get(info['img_path'], dataset.backend_args)).hexdigest()
        results = checks.load_pair(dataset, dict(info))
        image, labels = results['img'], results.get('gt_seg_map')
        if labels is not None and labels.shape != image.shape[:2]:
            raise ValueError(f'{info["seg_map_path"]}: {labels.shape} for an image of '
                             f'{image.shape}. Expected a class id for each pixel')
        counts = np.zeros(256) if labels is None else cv2.calcHist(
            [labels], [0], None, [256], [0, 256]).ravel()  # Lets other threads run meanwhile.
        mean, std = (values[2::-1, 0] for values in cv2.meanStdDev(image))  # BGR to RGB.
        return Pair(dataset, info, digest, f'{image.shape[1]}x{image.shape[0]}',
                    counts.astype(np.uint32), np.stack([mean, mean ** 2 + std ** 2]))
    except Exception as error:
        named = any(str(info.get(key)) in str(error) for key in ('img_path', 'seg_map_path'))
        return str(error) if named else f'{info["img_path"]}: {error!r}'


def _warn_of_classes(splits: Mapping[str, Split]) -> None:
    """Adds warnings of classes that never occur."""
    for name, split in splits.items():
        ids = set(split.find_ids())
        if checks.is_binary_mask(ids, *(pair.dataset for pair in split.pairs)):
            split.warnings.append(checks.ONLY_0_AND_255)
        if split.pairs and (absent := checks.describe_absent(split.classes, ids)):
            split.warnings.append(f'{absent}. ' + (
                'The network cannot learn them' if name == 'train' else checks.ABSENT_IN_MIOU))


def _warn_of_copies(splits: Mapping[str, Split]) -> None:
    """Adds warnings of pictures that occur twice, in a split or in two."""
    for (name, split), (other, others) in itertools.combinations_with_replacement(
            splits.items(), 2):
        first: dict[str, Pair] = {}
        for pair in split.pairs:
            first.setdefault(pair.digest, pair)
        copies = [(pair, first[pair.digest]) for pair in others.pairs
                  if first.get(pair.digest, pair) is not pair]
        if copies:
            path, original = (pair.info['img_path'] for pair in copies[0])
            others.warnings.append(
                f'{len(copies)} of {len(others.pairs)} pictures are copies of one in {name}, such '
                f'as {path} of {original}'
                + ('' if name == other else '. The score counts what was trained on'))


@dataclass
class _Resizing:
    """How a pipeline resizes pictures, if it keeps their shape."""

    scale: tuple[int, int] | None = None  # The sides to fit into; None: not resized
    ratios: tuple[float, float] = (1, 1)  # least and largest random factor on the scale
    crop_size: tuple[int, int] | None = None  # (height, width)

    @classmethod
    def from_dataset(cls, dataset: BaseSegDataset) -> '_Resizing | None':
        """Reads a pipeline; None if a size follows from something else than these three."""
        found = cls()
        for transform in dataset.pipeline.transforms:
            options = vars(transform)
            # RandomChoiceResize, Resize by a factor, ResizeShortestEdge
            if any(options.get(name) for name in ('scales', 'scale_factor', 'max_size')):
                return None
            if isinstance(options.get('crop_size'), (list, tuple)):
                found.crop_size = tuple(options['crop_size'])
            scale = options.get('scale')
            if scale is None:
                continue
            keeps_shape = getattr(options.get('resize', transform), 'keep_ratio', True)
            if found.scale or not keeps_shape or not all(isinstance(x, int) for x in scale):
                return None
            found.scale = tuple(scale)
            found.ratios = options.get('ratio_range') or found.ratios
        return found

    def resize(self, size: str) -> tuple[tuple[int, int], float]:
        """Returns (width, height) of a picture that was WIDTHxHEIGHT, and the factor between."""
        width, height = map(int, size.split('x'))
        if self.scale is None:
            return (width, height), 1
        return rescale_size((width, height), self.scale, return_scale=True)


def _check_sizes(train: Split, tested: Split | None) -> None:
    """Adds warnings of crops that pictures do not fill, and of sizes that training never shows."""
    training = _Resizing.from_dataset(train.pairs[0].dataset)
    if training is None:
        return
    small = []  # For each size that does not fill a crop: how many pictures, and an example.
    for size, count in train.sizes.most_common():
        (width, height), _ = training.resize(size)
        if training.crop_size and (height < training.crop_size[0] or width < training.crop_size[1]):
            small.append((count, f'those of {size} are {width}x{height} when they are cropped'))
    number = sum(count for count, _ in small)
    if number > len(train.pairs) / 2:
        train.warnings.append(
            f'crop_size={training.crop_size}, (height, width), is larger than {number} of '
            f'{len(train.pairs)} pictures, before they are scaled at random: {small[0][1]}. The '
            'rest of a crop is padding')
    testing = _Resizing.from_dataset(tested.pairs[0].dataset) if tested and tested.pairs else None
    if tested is None or testing is None:
        return
    size, size_tested = (split.sizes.most_common(1)[0][0] for split in (train, tested))
    low, high = (ratio * training.resize(size)[1] for ratio in training.ratios)
    factor = testing.resize(size_tested)[1]
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
    counts = [split.counts for split in splits.values()]
    for i in sorted(set(names).union(*(split.find_ids() for split in splits.values()))):
        colour = f'on rgb({",".join(map(str, first.palette[i]))})' if i < len(first.palette) else ''
        table.add_row(Text('  ', colour), str(i), Text(names.get(i, 'no class')), *(
            cell for count in counts for cell in (
                f'{count[:, i].sum() / max(1, count.sum()):.2%}', str((count[:, i] > 0).sum()))))
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
        for column, pair in enumerate(split.pairs[::step][:columns], 1):
            results = checks.load_pair(pair.dataset, dict(pair.info))
            image = results['img'][..., 2::-1] / 255
            labels = results.get('gt_seg_map', np.full(image.shape[:2], 255))[..., None]
            colours = colour_table(split.palette)[labels[..., 0]] / 255
            axes = figure.add_subplot(len(splits), columns, row * columns + column)
            axes.imshow(np.where(labels < len(split.classes), (image + colours) / 2, image))
            axes.set_title(f'{name}: {osp.basename(pair.info["img_path"])}', fontsize=8)
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
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
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
