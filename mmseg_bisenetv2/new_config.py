"""Writes a config for a user's own classes and pictures: ``tools/new_config.py``."""
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2

from mmseg_bisenetv2 import MIM_FOLDER
from mmseg_bisenetv2.atomic_write import write_atomically
from mmseg_bisenetv2.datasets import class_names
from mmseg_bisenetv2.decoding import decode_image

TEMPLATE = MIM_FOLDER / 'configs/bisenetv2_fcn_custom.py'
RULE = f'# {"-" * 96}\n'
LAYOUT = 'img_dir/{train,val}/NAME.jpg and ann_dir/{train,val}/NAME.png'
MIN_SIZE, MAX_CROP = 32, 512
HEAD = '''\
# {num_classes} classes of your own. Change what stands between the two lines.
#
#   {data_root}
#       img_dir/{{train,val}}/NAME{img_suffix}
#       ann_dir/{{train,val}}/NAME.png   8-bit class ids 0, 1, ...; 255 is ignored
#
#   python -m mmseg_bisenetv2 check_dataset {path.name}
#   mim train mmseg {path.name}
#   mim test mmseg {path.name} --checkpoint work_dirs/{path.stem}/iter_40000.pth
#
# To start from Cityscapes weights: --cfg-options load_from=FILE
# Total batch 16; lr 0.05 belongs to it and follows another, train_dataloader.batch_size, in
# proportion with auto_scale_lr.enable=True.
# The folder of mmseg_bisenetv2's configs, wherever it is installed. MMEngine reads this first.
_base_ = [
    f"{{__import__('mmseg_bisenetv2').MIM_FOLDER}}/configs/_base_/{{name}}.py"
    for name in ('models/fcn_bisenetv2', 'datasets/folders', 'schedules/schedule_40k')
] + ['mmseg::_base_/default_runtime.py']
'''
SETTINGS = '''\
classes = (
{classes}
)  # or the path of a text file with a name in each line
palette = [  # RGB
{palette}
]
scale = {scale}  # (width, height) of your images; training scales by 0.5 to 2 around it
crop_size = {crop_size}  # (height, width) of the training crops
'''


def write_config(path: str | Path, data_root: str | Path, classes: Sequence[str] | None = None,
                 size: tuple[int, int] | None = None, force: bool = False) -> str:
    """Writes a config that trains from any folder, with settings as in bisenetv2_fcn_custom.py.

    Args:
        path: The file to write, NAME.py.
        data_root: Folder of the pictures and label maps. It may be missing if ``classes`` and
            ``size`` are given.
        classes: Names of the classes, in the order of their ids. One that is the path of a file
            stands for the names in its lines. By default those of ``data_root/classes.txt``; if
            that file is there, they must be the same.
        size: (width, height) of the pictures; by default, that of the first one.
        force: Whether an existing file is overwritten.

    Returns:
        What was written, for people.

    Raises:
        FileExistsError: If the file exists.
        OSError: If a file cannot be read or written.
        ValueError: If an argument cannot be used.
    """
    path, data_root = Path(os.path.abspath(path)), Path(os.path.abspath(data_root))
    if path.suffix != '.py':
        raise ValueError(f'{path}: the name of a config ends with .py')
    if path.exists() and not force:
        raise FileExistsError(f'{path} is there already. --force overwrites it')
    if not data_root.exists() and (classes is None or size is None):
        raise ValueError(f'{data_root} does not exist. If the pictures come later, give --classes '
                         'NAME,NAME and --size WIDTHxHEIGHT')
    names = _find_classes(classes, data_root / class_names.CLASSES_FILE)
    img_suffix, found = _look_at_pictures(data_root)
    size = size or found
    if size is None:
        raise ValueError(f'No pictures in {data_root / "img_dir/train"} yet: give their size, '
                         '--size WIDTHxHEIGHT')
    width, height = size
    if min(width, height) < MIN_SIZE:
        raise ValueError(f'Pictures of {width}x{height}, expected {MIN_SIZE} pixels or more in '
                         'width and height')
    _, template, rest = TEMPLATE.read_text(encoding='utf-8').split(RULE)
    kept = template[template.index('max_iters = '):template.index('data = ')]
    colours = zip(names, class_names.make_palette(names), strict=True)
    text = RULE.join([
        HEAD.format(num_classes=len(names), data_root=data_root, path=path,
                    img_suffix=img_suffix),
        SETTINGS.format(
            classes='\n'.join(f'    {name!r},' for name in names),
            palette='\n'.join(f'    {colour},  # {name}' for name, colour in colours),
            scale=(width, height), crop_size=(min(MAX_CROP, height), min(MAX_CROP, width)),
        ) + kept + f"data = dict(data_root={str(data_root)!r}, img_suffix={img_suffix!r}, "
                   "seg_map_suffix='.png')\n",
        rest])
    write_atomically(text.encode(), str(path))
    return (f'{path}: {len(names)} classes, pictures *{img_suffix} of {width}x{height} in '
            f'{data_root}{"" if data_root.exists() else ", which is not there yet"}')


def _find_classes(classes: Sequence[str] | None, file: Path) -> list[str]:
    """Returns the names that were given, or those of the file beside the label maps."""
    if not file.exists():
        if classes is None:
            raise ValueError(f'{file} is not there, so give the classes in the order of their ids, '
                             '--classes NAME,NAME')
        return _read_classes(classes)
    written = _read_classes([str(file)])
    if classes is not None and (given := _read_classes(classes)) != written:
        raise ValueError(f'The classes {given} are not those of the label maps, {written} in the '
                         f'order of their ids. Leave out --classes, or rename a class in {file}')
    return written


def _read_classes(classes: Sequence[str]) -> list[str]:
    """Returns the names, or those in the lines of the file that a single one names."""
    names = list(classes)
    if len(names) == 1 and (os.path.isfile(names[0]) or names[0].endswith('.txt')):
        names = class_names.read_class_names(names[0])
    names = [name.strip() for name in names]
    for name, number in Counter(names).items():
        if not class_names.is_class_name(name):
            raise ValueError(f'{name!r} is no name of a class, in {names}')
        if number > 1:
            raise ValueError(f'The class {name!r} is there {number} times, in {names}')
    if not 2 <= len(names) <= 255:
        raise ValueError(f'{len(names)} classes, expected 2 to 255. What belongs to none of them '
                         'can be a class, "background"')
    return names


def _look_at_pictures(data_root: Path) -> tuple[str, tuple[int, int] | None]:
    """Returns the suffix of most training pictures, and (width, height) of the first of them."""
    folder = data_root / 'img_dir/train'
    if data_root.exists() and not folder.is_dir():
        raise ValueError(f'{data_root}: expected {LAYOUT} in it. Labels of other forms become '
                         'that by: python -m mmseg_bisenetv2 convert_labels')
    files = sorted(file for file in folder.rglob('*') if file.is_file() and file.suffix)
    for suffix, _ in Counter(file.suffix for file in files).most_common():
        first = next(file for file in files if file.suffix == suffix)
        if cv2.haveImageReader(str(first)):
            height, width = decode_image(first.read_bytes(), str(first)).shape[:2]
            return suffix, (width, height)
    return '.jpg', None
