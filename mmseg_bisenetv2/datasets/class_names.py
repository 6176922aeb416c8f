"""The names of the classes, and the file that holds them beside the label maps."""
import colorsys
from collections.abc import Sequence
from pathlib import Path

CLASSES_FILE = 'classes.txt'  # In the folder of the data: a name in each line, as ids count them.


def is_class_name(name: str) -> bool:
    """Whether a name can be a line of :data:`CLASSES_FILE`."""
    return bool(name.strip()) and name.isprintable()


def read_class_names(file: str | Path) -> list[str]:
    """Reads the names in the lines of a file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not text in UTF-8.
    """
    try:
        text = Path(file).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{file}: expected names of classes, as text in UTF-8 ({error}). Save '
                         'the file anew') from error
    return [line.strip() for line in text.rstrip().splitlines()]


def make_palette(names: Sequence[str]) -> list[list[int]]:
    """Returns an RGB colour for each class: black for background, else hues far from each other."""
    return [[0, 0, 0] if name == 'background' else
            [round(255 * part) for part in colorsys.hsv_to_rgb(0.618 * i % 1, 0.8, 0.9)]
            for i, name in enumerate(names)]
