"""From the bytes of a file to pixels: images and label maps, whole or refused by name."""
import io
import struct

import cv2
import mmcv
import numpy as np
from PIL import Image

try:
    import imagecodecs
except ImportError:  # the extra "png"
    imagecodecs = None

MOST_PIXELS = 2 ** 30  # beyond which OpenCV refuses an image


def decode_image(content, path):
    """Decodes an image file as MMSegmentation does.

    Args:
        content: The bytes of the file.
        path: Its name, for errors.

    Returns:
        uint8 BGR, (H, W, 3).

    Raises:
        ValueError: If it is no image, or a PNG or JPEG without its end, of which OpenCV 4 would
            return the first rows and leave the others black.
    """
    try:
        image = _decode_png(content)
        if image is None:
            image = mmcv.imfrombytes(content)
        reason = 'not an image, or broken'
    except cv2.error as error:
        image, reason = None, error.err
    if content.startswith(b'\x89PNG'):
        complete = content.rfind(b'IEND') >= 0
    elif content.startswith(b'\xff\xd8'):  # an embedded preview has an end of its own
        end = content.rfind(b'\xff\xd9')
        # no scan after it, unless it is of something else behind the picture
        complete = end >= 0 and (content.find(b'\xff\xda', end) < 0 or _is_whole(content))
    else:
        complete = True
    if image is None or not complete:
        raise ValueError(f'{path}: the image cannot be decoded ('
                         f'{reason if complete else "its end is missing"}; {len(content)} bytes). '
                         'Copy or make the file anew')
    return image


def _decode_png(content):
    """A plain 8-bit RGB PNG, by imagecodecs: faster than OpenCV, thanks to zlib-ng.

    Returns:
        uint8 BGR, (H, W, 3); None if it is something else, broken, or imagecodecs is missing.
    """
    plain = (content.startswith(b'\x89PNG\r\n\x1a\n') and content[24:29] == b'\x08\x02\0\0\0'
             and not any(content.find(chunk) >= 0 for chunk in (b'eXIf', b'tRNS', b'acTL')))
    if imagecodecs is None or not plain:
        return None
    width, height = struct.unpack('>II', content[16:24])
    if width * height > MOST_PIXELS:
        return None
    try:
        return cv2.cvtColor(imagecodecs.png_decode(content), cv2.COLOR_RGB2BGR)
    except Exception:  # imagecodecs raises many kinds; OpenCV says what it is
        return None


def _is_whole(content):
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except OSError:
        return False
    return True


def decode_labels(content, path):
    """Decodes a label map as MMSegmentation does, palettes as indices.

    Args:
        content: The bytes of the file.
        path: Its name, for errors.

    Returns:
        Class ids, uint8 (H, W).

    Raises:
        ValueError: If it is no image, has several channels or a value beyond 255, which
            MMSegmentation would take modulo 256.
    """
    try:
        labels = mmcv.imfrombytes(content, flag='unchanged', backend='pillow')
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f'{path}: the label map cannot be decoded ({error}; {len(content)} '
                         'bytes). Copy or make the file anew') from error
    if labels.ndim != 2:
        raise ValueError(f'{path}: a picture of several channels {labels.shape} where each pixel '
                         'should hold a class id. Convert its colours to class ids')
    if labels.dtype not in (bool, np.uint8) and not (
            0 <= labels.min() and labels.max() <= 255):
        raise ValueError(f'{path}: values from {labels.min()} to {labels.max()} ({labels.dtype}), '
                         'expected class ids from 0 to 255. Renumber the classes')
    return labels.astype(np.uint8, copy=False)
