"""Finding image files, and reading one, or an array, as (H, W, 3), uint8, BGR."""
import contextlib
import glob
import io
import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from mmseg_bisenetv2.decoding import decode_image

# 134 million: photographs of 100 megapixels (11648x8736) and of telephones with 108 have fewer.
# Decoded, so many take 403 MB, and predict.py takes 3.6 GB for a folder of such images.
MAX_PIXELS = 2 ** 27


def read_image(image: str | os.PathLike | np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image as (H, W, 3), uint8, BGR. Of an animation it reads the first frame.

    Args:
        image: A path, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16.
        max_pixels: Files whose header announces more pixels are refused before they are decoded.

    Raises:
        FileNotFoundError: If the path leads to no file.
        ValueError: If the file is no image, damaged, too large, or of other numbers than 8-bit or
            16-bit ones; or if the array is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f'No picture {path}')
        content = path.read_bytes()  # cv2.imread cannot open every name on every system
        _check_header(content, path, max_pixels)
        return decode_image(content, str(path))
    if not isinstance(image, np.ndarray):
        raise ValueError(f'Expected a path or an array (H, W, 3), uint8, BGR; got {type(image)}'
                         + ' (cv2.imread gives None for what it cannot read)' * (image is None))
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f'Expected a picture (H, W, 3), uint8, BGR; got {image.shape}')
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f'Expected a picture (H, W, 3), uint8, BGR; got {image.dtype}. If its '
                         'values run from 0 to 1: (255 * image).round().astype(np.uint8)')
    if image.shape[2] == 3:
        return image
    return image[:, :, :3] if image.shape[2] == 4 else np.repeat(image, 3, 2)


def _check_header(content: bytes, path: Path, max_pixels: int) -> None:
    """Raises ValueError if the header has no size, too many pixels, or numbers that do not fit."""
    try:
        width, height, numbers = _read_header(content)
    except Exception:  # Pillow raises many kinds
        raise ValueError(
            f'{path}: the image cannot be decoded (no size can be read from its header; '
            f'{len(content)} bytes). Save it anew, as PNG or JPEG') from None
    if numbers:
        raise ValueError(f'{path}: a TIFF of {numbers}, expected unsigned integers of 8 or 16 '
                         'bits. If its values run from 0 to 1, save '
                         "(255 * image).round().astype('uint8')")
    if width * height > max_pixels:
        raise ValueError(f'{path}: {width}x{height} are {width * height:,} pixels, more than '
                         f'{max_pixels:,}. If there is memory for them, raise max_pixels '
                         '(predict.py: --max-pixels)')


def _read_header(content: bytes) -> tuple[int, int, str]:
    """Width, height, and what OpenCV reads wrongly: TIFFs of floats, signed or wide integers."""
    if content[:4] in TiffImagePlugin.PREFIXES:  # Pillow itself opens only some kinds of TIFF
        stream = io.BytesIO(content)
        tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(16 if 43 in content[2:4] else 8))
        stream.seek(tags.next)
        tags.load(stream)
        bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1, )))
        sign = max(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1, )))
        kind = {1: 'unsigned integers', 2: 'signed integers', 3: 'float values'}.get(sign, 'values')
        return (tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH],
                f'{bits}-bit {kind}' if sign != 1 or bits > 16 else '')
    # Image.open reads the header by the same table, but then warns of, or refuses, images beyond a
    # limit that is one for the whole process.
    Image.init()
    for factory, accept in Image.OPEN.values():
        with contextlib.suppress(Exception):  # each format has its own kinds
            if accept and accept(content[:16]) is True:  # without accept anything would match
                with factory(io.BytesIO(content), '') as image:
                    return *image.size, ''
    raise ValueError


def is_image(path: str) -> bool:
    """Says whether a file is an image, by its name or else by whether OpenCV knows its content."""
    kind, _ = mimetypes.guess_type(path, strict=False)  # damaged files are recognised by name only
    return bool(kind and kind.startswith('image/')) or cv2.haveImageReader(path)


def find_files(name: str) -> list[str]:
    """Finds the files that a name stands for.

    Args:
        name: A file, a folder with everything below it that is not hidden, or a glob pattern.

    Returns:
        Sorted paths. Each real folder is looked into once, however many links lead to it.
    """
    if os.path.isdir(name):
        paths, visited = [], set()
        for folder, folders, files in os.walk(name, followlinks=True):
            if os.path.realpath(folder) in visited:
                folders.clear()  # a link back, which would lead round and round
                continue
            visited.add(os.path.realpath(folder))
            # Links come last, so that a folder and a link to it are found under the folder's name.
            folders.sort(key=lambda item: (os.path.islink(os.path.join(folder, item)), item))
            folders[:] = [item for item in folders if not item.startswith('.')]
            paths += [os.path.join(folder, item) for item in files if not item.startswith('.')]
    else:
        paths = [name] if os.path.isfile(name) else glob.glob(name, recursive=True)
    return sorted(filter(os.path.isfile, paths))


def find_images(inputs: Sequence[str]) -> list[str]:
    """Finds the images that names, folders and glob patterns stand for, each real file once.

    Args:
        inputs: As for :func:`find_files`. In folders, files that are no images are passed over.

    Raises:
        FileNotFoundError: If one of the inputs leads to no image.
    """
    images: dict[str, str] = {}
    for name in inputs:
        found = [path for path in find_files(name) if not os.path.isdir(name) or is_image(path)]
        if not found:
            raise FileNotFoundError(f'No picture {name}')
        for path in found:
            images.setdefault(os.path.realpath(path), path)
    return list(images.values())
