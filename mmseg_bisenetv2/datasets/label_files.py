"""Reads labels as people draw them: LabelMe, COCO, and pictures in which a value is a class.

A label is a string here: the name that somebody gave to a shape, or the value of a pixel,
``#804080`` for a colour and ``7`` for a number.
"""
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmseg_bisenetv2.decoding import JPEG_START, decode_labels

Size = tuple[int, int]  # (height, width)
Shape = tuple[str, Any]  # A label, and the corners of a polygon, (N, 2), or COCO's run lengths.
CIRCLE_CORNERS = 128  # Such a polygon has 0.04 % less area than the circle.


@dataclass
class Annotation:
    """What a file says of one picture."""

    file: Path
    picture: str  # The picture's path as the file has it; '' if it does not tell.
    size: Size | None  # The picture's size; None if the file does not tell.
    labels: set[str]
    shapes: list[Shape] | None = None  # None if the file is a label map.
    as_colours: bool = False  # See read_map.


def read_json(file: Path) -> tuple[str, list[Annotation]]:
    """Reads a file, and says of what kind it is: 'labelme' or 'coco'.

    Raises:
        ValueError: If it is neither, or holds something that is no area with a label.
    """
    try:
        content = json.loads(file.read_bytes())
        if 'shapes' not in content and 'annotations' not in content:
            raise ValueError('neither of LabelMe, which has "shapes", nor of COCO, which has '
                             '"annotations". If it holds something else, move it elsewhere')
        kind, read = (('labelme', _read_labelme) if 'shapes' in content else ('coco', _read_coco))
        return kind, [Annotation(file, picture, size, {label for label, _ in shapes}, shapes)
                      for picture, size, shapes in read(content)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{file}: not as LabelMe or COCO write it ({error!r})') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{file}: no valid JSON: {error}') from error
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from error


def _read_labelme(content: dict) -> Iterator[tuple[str, Size | None, list[Shape]]]:
    shapes = []
    for number, shape in enumerate(content['shapes'], 1):
        label, kind = str(shape['label']), shape.get('shape_type')
        points = _corners(shape['points'])
        if kind == 'rectangle' and len(points) == 2:
            (x0, y0), (x1, y1) = points
            points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        elif kind == 'circle' and len(points) == 2:  # The centre, and a point of the circle.
            radius = np.hypot(*(points[1] - points[0]))
            angles = np.linspace(0, 2 * np.pi, CIRCLE_CORNERS, endpoint=False)
            points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        elif kind not in (None, 'polygon', 'rectangle', 'oriented_rectangle') or len(points) < 3:
            raise ValueError(f'shape {number}, {label!r}, is a {kind} of {len(points)} points, '
                             'expected a polygon, rectangle or circle. Draw it anew, or delete it')
        shapes.append((label, points))
    height, width = content.get('imageHeight'), content.get('imageWidth')
    yield content.get('imagePath') or '', (height, width) if height and width else None, shapes


def _read_coco(content: dict) -> Iterator[tuple[str, Size | None, list[Shape]]]:
    labels = {category['id']: str(category['name']) for category in content['categories']}
    shapes: dict[Any, list[Shape]] = {image['id']: [] for image in content['images']}
    # Crowds come first, below the objects in them; COCO lists them last.
    for entry in sorted(content['annotations'], key=lambda entry: not entry.get('iscrowd')):
        segmentation = entry.get('segmentation') or []
        outlines: list[Any]
        if isinstance(segmentation, dict):
            outlines, complete = [segmentation], {'size', 'counts'} <= segmentation.keys()
        else:
            outlines = [_corners(numbers) for numbers in segmentation]
            complete = min(map(len, outlines), default=0) >= 3
        if not complete:
            raise ValueError(f'annotation {entry["id"]} has the segmentation '
                             f'{entry.get("segmentation")}, expected polygons or run lengths. '
                             'Outline the object (a box does not say which pixels), or delete it')
        shapes[entry['image_id']] += [(labels[entry['category_id']], part) for part in outlines]
    for image in content['images']:
        yield image['file_name'], (image['height'], image['width']), shapes[image['id']]


def _corners(numbers: list) -> np.ndarray:
    points = np.array(numbers, float).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError(f'the points {numbers} are not all numbers')
    return points


def read_map(file: Path, as_colours: bool) -> Annotation:
    """Reads which values a label map holds.

    Args:
        file: Not a JPEG, whose compression changes values.
        as_colours: Takes the colours of a palette picture; its indices are the default.

    Raises:
        ValueError: If there are more than 255 colours; see also
            :func:`~mmseg_bisenetv2.decoding.decode_labels`.
    """
    values, colours = _read_values(file, as_colours)
    flat = values.ravel()
    found = np.unique(flat[np.flatnonzero(np.diff(flat, prepend=-1))]).tolist()  # One of each run.
    if len(found) > 255:
        raise ValueError(f'{file}: holds {len(found)} colours, expected one for each class. Make '
                         'it anew from its source, as PNG and without smooth edges')
    labels = {f'#{value:06x}' if colours else str(value) for value in found}
    return Annotation(file, '', values.shape, labels, as_colours=as_colours)


def _read_values(file: Path, as_colours: bool) -> tuple[np.ndarray, bool]:
    """Returns (H, W) of integers, and whether they are colours, 0xRRGGBB."""
    content = file.read_bytes()
    if not content.startswith(JPEG_START):
        try:
            with Image.open(file) as picture:
                if picture.mode in ('RGB', 'RGBA') or (as_colours and picture.mode == 'P'):
                    rgb = np.asarray(picture.convert('RGB'), np.int32)
                    return rgb @ np.array([1 << 16, 1 << 8, 1], np.int32), True
        except Exception as error:  # Pillow raises many kinds.
            raise ValueError(f'{file}: the label map cannot be decoded ({error}). Copy or make the '
                             'file anew') from error
    return decode_labels(content, str(file)).astype(np.int32), False


def draw_map(annotation: Annotation, size: Size, ids: Mapping[str, int]) -> np.ndarray:
    """Draws a label map, uint8; of shapes that overlap, the later one in the file is on top.

    Args:
        annotation: What to draw.
        size: The picture's.
        ids: The class id of each label, and under '' that of pixels outside all shapes.

    Raises:
        ValueError: If run lengths are of another size than the picture.
    """
    class_ids = np.full(size, ids[''], np.uint8)
    if annotation.shapes is None:
        values, colours = _read_values(annotation.file, annotation.as_colours)
        for label in annotation.labels:
            class_ids[values == (int(label[1:], 16) if colours else int(label))] = ids[label]
    for label, outline in annotation.shapes or ():
        if isinstance(outline, np.ndarray):
            fill_polygon(class_ids, outline, ids[label])
            continue
        counts = outline['counts']
        runs = decode_runs(counts) if isinstance(counts, str) else counts
        if sum(runs) != class_ids.size or min(runs) < 0 or outline['size'] != list(size):
            raise ValueError(f'{annotation.file}: run lengths of {sum(runs)} pixels for '
                             f'{annotation.picture}, which has {class_ids.size}: a mask of '
                             f'{outline["size"]} for a picture of {list(size)}, (height, width)')
        # Runs outside and inside of the object in turn, down the columns.
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        class_ids[inside.reshape(size[::-1]).T] = ids[label]
    return class_ids


def fill_polygon(class_ids: np.ndarray, points: np.ndarray, class_id: int) -> None:
    """Paints the pixels whose centres lie inside a polygon, by the even-odd rule.

    ``cv2.fillPoly`` and Pillow paint half a pixel more all around: a square of 10x10 becomes 11x11
    and covers a part of its neighbours.

    Args:
        class_ids: The label map, (H, W), changed in place.
        points: The corners, (N, 2), as x, y from the upper left corner of the picture.
        class_id: What to write.
    """
    height, width = class_ids.shape
    # For each corner the first row whose centre, at row + 0.5, is not above it.
    starts = np.clip(np.ceil(points[:, 1] - 0.5), 0, height).astype(int)
    top = starts.min()
    crossings = np.zeros((starts.max() - top, width + 1), bool)
    for i, (x, y) in enumerate(points):
        rows = np.arange(*sorted(starts[[i - 1, i]]))  # Those that the edge crosses.
        if len(rows):
            last_x, last_y = points[i - 1]
            columns = np.ceil(x + (rows + 0.5 - y) * (last_x - x) / (last_y - y) - 0.5)
            crossings[rows - top, np.clip(columns, 0, width).astype(int)] ^= True
    inside = np.logical_xor.accumulate(crossings, axis=1)[:, :width]
    class_ids[top:starts.max()][inside] = class_id


def decode_runs(text: str) -> list[int]:
    """Decodes COCO's compressed run lengths: each character holds 5 bits, and whether more follow.

    From the fourth on, a number is the difference to the last but one. Source: cocoapi,
    common/maskApi.c, ``rleFrString``.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits >> 4 & 1) << shift  # The sign.
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
