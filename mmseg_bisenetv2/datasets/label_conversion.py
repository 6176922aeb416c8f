"""Labels as people draw them become the folders of ``configs/bisenetv2_fcn_custom.py``."""
import mimetypes
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from mmseg_bisenetv2.datasets.cache import FOLDER as CACHE_FOLDER
from mmseg_bisenetv2.datasets.class_names import CLASSES_FILE, is_class_name, make_palette
from mmseg_bisenetv2.datasets.label_files import Annotation, draw_map, read_json, read_map
from mmseg_bisenetv2.datasets.label_ids import LABEL_IDS
from mmseg_bisenetv2.datasets.threads import map_in_threads
from mmseg_bisenetv2.datasets.train_val_split import split_pictures
from mmseg_bisenetv2.decoding import decode_image, read_exif_orientation

KINDS = ('labelme', 'coco', 'colours', 'binary', 'ids')
# How label maps write these two: as a number, or as a colour.
BLACK, WHITE = {'0', '#000000'}, {'1', '255', '#ffffff'}


@dataclass
class Conversion:
    """What was found and written."""

    kind: str
    classes: list[str]
    palette: list[list[int]]
    img_suffix: str
    sizes: Counter[tuple[int, int]]  # How many pictures have a (width, height).
    pixels: dict[str, np.ndarray]  # By split, how many pixels have an id: (pictures, 256).
    left_out: list[Path]  # Pictures without labels.

    def table(self) -> str:
        """Shows in how many pictures of each split a class occurs, and its share of the pixels."""
        rows = [['class', *(f'{split}: {len(n)} pictures' for split, n in self.pixels.items())]]
        for class_id, name in [*enumerate(self.classes), (255, '(ignored)')]:
            counts = [(n[:, class_id], n.sum()) for n in self.pixels.values()]
            rows.append([name, *(f'{(n > 0).sum()}{n.sum() / total:10.2%}' for n, total in counts)])
        width = max(len(row[0]) for row in rows)
        return '\n'.join(row[0].ljust(width) + ''.join(f'{cell:>23}' for cell in row[1:])
                         for row in rows)


def parse_classes(texts: Sequence[str], ignore_unlabelled: bool = False) -> dict[str, list[str]]:
    """Reads what follows ``--classes``: ``road car``, ``drivable=road,lane``, ``road=#804080``.

    Args:
        texts: Names, each with the labels that stand for it; the labels of ``ignore`` are ignored.
            Names may stand between commas, too: ``road,car``. What follows a ``=`` is its labels.
            ``['cityscapes']`` stands for the 19 classes with their ids in ``*_labelIds.png``.
        ignore_unlabelled: If False, a class ``background`` is put in front where there is none.

    Returns:
        The labels of each class, none where only its name was given.
    """
    classes: dict[str, list[str]] = {}
    if list(texts) == ['cityscapes']:
        classes = {name: [str(label_id)] for name, label_id in LABEL_IDS.items()}
        return classes | {'ignore': [str(i) for i in range(34) if i not in LABEL_IDS.values()]}
    for text in texts:
        # 'road,lane=7,car=26,27' becomes ['road', 'lane', '7', 'car', '26,27'].
        names, *named = re.split('(?:^|,)([^,=]*)=', text)
        for name in filter(None, names.split(',')):
            classes.setdefault(name, [])
        for name, labels in zip(named[::2], named[1::2], strict=True):
            classes.setdefault(name, []).extend(
                label.lower() if '#' in label else label for label in labels.split(',') if label)
    return classes if ignore_unlabelled or 'background' in classes else {'background': []} | classes


def number_labels(
        kind: str, found: set[str], classes: Mapping[str, Sequence[str]] | None = None,
        palette: Sequence[list[int]] = (), ignore_unlabelled: bool = False,
) -> tuple[list[str], dict[str, int]]:
    """Decides which class each label belongs to.

    Args:
        kind: One of ``KINDS``.
        found: The labels of all files.
        classes: See :func:`parse_classes`; by default a class for each label. A name alone stands
            for the label of that name; in ids for its position, from 1 if 0 is ignored; in
            colours for its colour in the palette; in binary for white.
        palette: The classes' colours, RGB.
        ignore_unlabelled: Whether unlabelled pixels, and 0 or black in label maps, become 255.

    Returns:
        The classes; the class id of each label, and under '' that of unlabelled pixels.

    Raises:
        ValueError: If there are not 2 to 255 classes, or a label belongs to two.
    """
    ids = {'': 255, '__ignore__': 255}  # LabelMe's own names are __ignore__ and _background_.
    if kind == 'ids':
        ids['255'] = 255
    if ignore_unlabelled:
        ids |= dict.fromkeys([*BLACK, '_background_'], 255)
    if classes is None:
        black = set() if kind == 'ids' else BLACK
        order = sorted(found - ids.keys() - black - {'_background_', 'background'},
                       key=lambda label: (len(label) if kind == 'ids' else 0, label))
        prefix = dict(ids='class_', colours='colour_').get(kind, '')
        classes = {prefix + label.removeprefix('#'): [label] for label in order}
        if kind == 'binary':
            classes = {'foreground': []}
        if not ignore_unlabelled and (kind in ('labelme', 'coco') or found & black):
            classes = {'background': []} | classes
    names = [name for name in classes if name != 'ignore']
    if not 2 <= len(names) <= 255:
        raise ValueError(f'Training needs 2 to 255 classes, but these are {len(names)}: '
                         f'{_listed(names)}. The labels found are {_listed(found)}')
    if palette and len(palette) != len(names):
        raise ValueError(f'{len(palette)} colours in the palette for {len(names)} classes')
    if 'background' in names and not ignore_unlabelled:
        ids[''] = ids['_background_'] = names.index('background')
    owners: dict[str, str] = {}
    for name, labels in classes.items():
        class_id = names.index(name) if name in names else 255
        for label in labels or _default_labels(kind, name, class_id, palette, ignore_unlabelled):
            if owners.setdefault(label, name) != name:
                raise ValueError(f'The label {label} belongs to {owners[label]} and to {name}. Say '
                                 f'--classes NAME=LABEL; the labels found are {_listed(found)}')
            ids[label] = class_id
    return names, ids


def _default_labels(kind: str, name: str, class_id: int, palette: Sequence[list[int]],
                    ignore_unlabelled: bool) -> Iterable[str]:
    """Returns the labels of a class of which only the name was given; see number_labels."""
    if kind == 'ids':
        return [str(class_id + ignore_unlabelled)]
    if kind == 'colours' and palette:
        return ['#' + bytes(palette[class_id]).hex()]
    if kind in ('binary', 'colours') and name == 'background':
        return BLACK
    return WHITE if kind == 'binary' else [name]


def convert_labels(
        source: str | Path, target: str | Path, labels: str | Path | None = None,
        kind: str | None = None, classes: Mapping[str, Sequence[str]] | None = None,
        palette: Sequence[list[int]] = (), val: float = 0.2, ignore_unlabelled: bool = False,
        img_suffix: str = '', seg_map_suffix: str = '', overwrite: bool = False) -> Conversion:
    """Writes ``target/{img_dir,ann_dir}/{train,val}``: all of it, or nothing if there is an error.

    Pictures are copied; those of several formats all become PNG, because a config names one suffix.
    ``target/classes.txt`` has the names of the classes in the order of their ids.

    Args:
        source: The folder of the pictures; those in folders below count too.
        target: The folder to write.
        labels: The folder or file of the labels; ``source`` by default.
        kind: One of ``KINDS``; recognised by default.
        classes: See :func:`number_labels`.
        palette: See :func:`number_labels`.
        val: See :func:`split_pictures`.
        ignore_unlabelled: See :func:`number_labels`.
        img_suffix: How the names of pictures end, such as ``_leftImg8bit.png``.
        seg_map_suffix: How the names of label maps end, such as ``_gtFine_labelIds.png``.
        overwrite: Whether an earlier conversion in ``target`` may be replaced.

    Raises:
        FileExistsError: If ``target`` holds something else, or an earlier conversion.
        FileNotFoundError: If ``source`` or ``labels`` is not there.
        ValueError: If something is not understood; the message names the file.
    """
    source, target, labels = Path(source), Path(target), Path(labels or source)
    if not source.is_dir():
        raise FileNotFoundError(f'{source}: no folder of pictures')
    if not labels.exists():
        raise FileNotFoundError(f'{labels}: no folder or file of labels')
    _check_target(target, (source, labels), overwrite)
    kind, annotations, pictures = _read(source, labels, kind, img_suffix, seg_map_suffix)
    found = set().union(*(annotation.labels for annotation in annotations))
    names, ids = number_labels(kind, found, classes, palette, ignore_unlabelled)
    for name in names:
        if not is_class_name(name):
            raise ValueError(f'{name!r} is no name of a class. Say --classes NAME=LABEL')
    for annotation in annotations:
        if unknown := annotation.labels - ids.keys():
            raise ValueError(f'{annotation.file}: the labels {_listed(unknown)} are of no class; '
                             f'known are {_listed(ids.keys() - {""})}. Add them to --classes, as '
                             'NAME=LABEL,LABEL or ignore=LABEL')
    pairs = _pair(kind, annotations, pictures, labels, img_suffix, seg_map_suffix)
    places = split_pictures([pictures[path] for path in pairs], val)
    suffixes = set(map(_suffix, pairs))
    suffix = suffixes.pop() if len(suffixes) == 1 else '.png'
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as temporary:
        new = Path(temporary) / 'new'
        jobs = [(path, annotation, new / 'img_dir' / split / f'{name}{suffix}',
                 new / 'ann_dir' / split / f'{name}.png')
                for (path, annotation), (split, name) in zip(pairs.items(), places, strict=True)]
        counts = list(map_in_threads(partial(_convert, ids), jobs, 'Writing'))
        (new / CLASSES_FILE).write_text('\n'.join(names) + '\n', encoding='utf-8')
        if target.exists():
            os.rename(target, Path(temporary) / 'old')
        os.rename(new, target)
    splits = np.array([split for split, _ in places])
    pixels = np.stack([count for _, count in counts])
    return Conversion(
        kind, names, list(palette) or _find_palette(kind, names, ids), suffix,
        Counter(size for size, _ in counts),
        {split: pixels[splits == split] for split in np.unique(splits).tolist()},
        sorted(pictures.keys() - pairs.keys()))


def _check_target(target: Path, sources: Iterable[Path], overwrite: bool) -> None:
    """Refuses a folder that overlaps with the sources, or whose content must not be replaced."""
    new = target.resolve()
    for source in sources:
        old = source.resolve()
        if new == old or new in old.parents or old in new.parents:
            raise ValueError(f'{target}: lies in {source}, or around it. Choose a folder elsewhere')
    held = {path.name for path in target.iterdir()} if target.exists() else set()
    if held - {'img_dir', 'ann_dir', CACHE_FOLDER, CLASSES_FILE}:
        raise FileExistsError(f'{target}: holds {_listed(held)}, which is no earlier conversion. '
                              'Choose another folder')
    if held and not overwrite:
        raise FileExistsError(f'{target}: exists already. Add --overwrite to replace it')


def _read(source: Path, labels: Path, kind: str | None, img_suffix: str, seg_map_suffix: str,
          ) -> tuple[str, list[Annotation], dict[Path, str]]:
    """Returns the kind of the labels, what they say, and the pictures' paths without suffix."""
    pictures = {path: _key(path.relative_to(source), img_suffix) for path in _files(source)
                if _is_image(path) and path.name.endswith(img_suffix)}
    files = _files(labels)
    jsons = [path for path in files if path.suffix.lower() == '.json']
    if kind in ('labelme', 'coco') or (kind is None and jsons and not seg_map_suffix):
        kind, annotations = _read_jsons(jsons, kind)
    else:
        maps = [path for path in files if _is_image(path) and path.name.endswith(seg_map_suffix)]
        if labels == source and not seg_map_suffix:
            times = Counter(pictures.values())  # Of two files of one name the PNG is the label map.
            maps = [path for path in maps
                    if path.suffix.lower() == '.png' and times[pictures.get(path, '')] > 1]
        for path in maps:
            pictures.pop(path, None)
        kind, annotations = _read_maps(maps, kind)
    if not annotations or not pictures:
        raise ValueError(f'{len(pictures)} pictures in {source}, {len(annotations)} of them with '
                         f'labels in {labels}. Expected .json of LabelMe or COCO, or label maps '
                         'NAME.png for NAME.jpg. See --labels and --seg-map-suffix')
    return kind, annotations, pictures


def _read_jsons(files: Sequence[Path], kind: str | None) -> tuple[str, list[Annotation]]:
    """Reads files of LabelMe or of COCO, which must be of one kind: the first file's by default."""
    annotations = []
    read = map_in_threads(read_json, files, 'Reading .json')
    for path, (its_kind, several) in zip(files, read, strict=True):
        kind = kind or its_kind
        if its_kind != kind:
            raise ValueError(f'{path}: is of {its_kind}, expected {kind}. Move it elsewhere')
        annotations += several
    return kind or '', annotations


def _read_maps(files: Sequence[Path], kind: str | None) -> tuple[str, list[Annotation]]:
    """Reads label maps, of which the values that all of them hold tell the kind by default."""
    annotations = list(map_in_threads(
        partial(read_map, as_colours=kind == 'colours'), files, 'Reading label maps'))
    found = set().union(*(annotation.labels for annotation in annotations))
    if found <= {'0', '255', '#000000', '#ffffff'}:
        default = 'binary'
    else:
        default = 'colours' if any('#' in label for label in found) else 'ids'
    return kind or default, annotations


def _pair(kind: str, annotations: Iterable[Annotation], pictures: Mapping[Path, str], labels: Path,
          img_suffix: str, seg_map_suffix: str) -> dict[Path, Annotation]:
    """Finds the picture of each annotation: that of the file's own name, or that which it names."""
    root = labels if labels.is_dir() else labels.parent
    pairs: dict[Path, Annotation] = {}
    paths = defaultdict(list)
    for path, key in pictures.items():
        paths[key].append(path)
    for annotation in annotations:
        file, picture = annotation.file.relative_to(root), annotation.picture.replace('\\', '/')
        keys = [] if kind == 'coco' else [_key(file, seg_map_suffix)]
        keys += [_key(file.parent / picture, img_suffix), _key(Path(picture), img_suffix)]
        found = next((paths[key] for key in keys if key in paths), [])
        if len(found) != 1:
            raise ValueError(
                f'{annotation.file}: expected one picture {picture or keys[0]}, found '
                f'{_listed(map(str, found)) or "none"}. A picture must have the same path below '
                'SOURCE as its labels below --labels; see also --img-suffix and --seg-map-suffix')
        if found[0] in pairs:
            raise ValueError(f'{annotation.file}: {found[0]} has labels in {pairs[found[0]].file} '
                             'too. Move one of the two elsewhere')
        pairs[found[0]] = annotation
    return pairs


def _convert(ids: Mapping[str, int], job: tuple[Path, Annotation, Path, Path],
             ) -> tuple[tuple[int, int], np.ndarray]:
    """Writes a picture and its label map; returns (width, height) and the pixels of each id."""
    picture, annotation, image_path, map_path = job
    content = picture.read_bytes()
    image = decode_image(content, str(picture))
    height, width = image.shape[:2]
    if annotation.size and tuple(annotation.size) != (height, width):
        turned = read_exif_orientation(content) != 1
        raise ValueError(
            f'{annotation.file}: labels for {annotation.size[1]}x{annotation.size[0]} pixels, but '
            f'{picture} has {width}x{height}. ' + (
                'Its EXIF orientation turns it, and it was labelled unturned: remove the mark from '
                'the picture' if turned else 'Label it anew, or move both elsewhere'))
    class_ids = draw_map(annotation, (height, width), ids)
    for path in (image_path, map_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode('.png', class_ids)[1].tofile(map_path)
    if image_path.suffix == _suffix(picture):
        shutil.copyfile(picture, image_path)
    else:
        cv2.imencode(image_path.suffix, image)[1].tofile(image_path)
    return (width, height), np.bincount(class_ids.ravel(), minlength=256)


def _find_palette(kind: str, names: Sequence[str], ids: Mapping[str, int]) -> list[list[int]]:
    """Takes the colours of colour maps, and makes those of other labels."""
    palette = make_palette(names)
    for label, class_id in ids.items():
        if kind == 'colours' and label.startswith('#') and class_id < len(names):
            palette[class_id] = list(bytes.fromhex(label[1:]))
    return palette


def _key(path: Path, suffix: str) -> str:
    """Returns a path without its suffix, by which a picture and its labels find each other."""
    name = os.path.normpath(path).replace(os.sep, '/')
    return name[:-len(suffix)] if suffix and name.endswith(suffix) else os.path.splitext(name)[0]


def _suffix(picture: Path) -> str:
    return picture.suffix.lower().replace('.jpeg', '.jpg')


def _files(path: Path) -> list[Path]:
    """Lists what a folder holds, with all below it, except for hidden files."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob('*') if file.is_file() and not any(
        part.startswith('.') for part in file.relative_to(path).parts))


def _is_image(path: Path) -> bool:
    return (mimetypes.guess_type(path.name)[0] or '').startswith('image/')


def _listed(values: Iterable[str]) -> str:
    names = sorted(values)
    return ', '.join(names[:12]) + (f' and {len(names) - 12} more' if len(names) > 12 else '')
