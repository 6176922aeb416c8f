"""From the bytes of a file to the pixels of a picture or of a label map.

A file that is broken or not what it should be is refused with its name, where OpenCV and Pillow
would return half a picture, wrong class ids, or nothing.
"""
import io
import struct

import cv2
import mmcv
import numpy as np
from PIL import Image

try:
    import imagecodecs
except ImportError:  # It comes with the extra "png".
    imagecodecs = None  # type: ignore[assignment]

MAX_PIXELS = 2 ** 30  # OpenCV refuses larger images.
EXIF_ORIENTATION = 0x0112
JPEG_START = b'\xff\xd8'


def decode_image(content: bytes, path: str) -> np.ndarray:
    """Decodes an image file as MMSegmentation does.

    Args:
        content: The bytes of the file.
        path: Its name, for error messages.

    Returns:
        uint8 BGR, (H, W, 3).

    Raises:
        ValueError: If it is not an image, or a PNG or JPEG without its end, of which OpenCV 4
            would return the first rows and leave the others black.
    """
    reason = 'not an image, or broken'
    try:
        image = _decode_plain_png(content)
        if image is None:
            image = mmcv.imfrombytes(content, backend='cv2')
    except cv2.error as error:
        image, reason = None, error.err
    if not _has_end(content):
        image, reason = None, 'its end is missing'
    if image is None:
        raise ValueError(f'{path}: the image cannot be decoded ({reason}; {len(content)} bytes). '
                         'Copy or make the file anew')
    return image


def _decode_plain_png(content: bytes) -> np.ndarray | None:
    """Decodes an 8-bit RGB PNG with imagecodecs, whose zlib-ng is faster than OpenCV's zlib.

    Returns:
        uint8 BGR, (H, W, 3). None if the file is something else or broken, or if imagecodecs is
        not installed; OpenCV then decodes it or says what is wrong.
    """
    # 8 bits, RGB, not interlaced; and without a mark of orientation, transparency or animation.
    plain = (content.startswith(b'\x89PNG\r\n\x1a\n') and content[24:29] == b'\x08\x02\0\0\0'
             and not any(chunk in content for chunk in (b'eXIf', b'tRNS', b'acTL')))
    if imagecodecs is None or not plain:
        return None
    width, height = struct.unpack('>II', content[16:24])
    if width * height > MAX_PIXELS:
        return None
    try:
        return cv2.cvtColor(imagecodecs.png_decode(content), cv2.COLOR_RGB2BGR)
    except Exception:  # imagecodecs raises an exception of its own for each kind of damage.
        return None


def _has_end(content: bytes) -> bool:
    """Whether a PNG or JPEG is complete; other formats count as complete."""
    if content.startswith(b'\x89PNG'):
        return b'IEND' in content
    if not content.startswith(JPEG_START):
        return True
    end = content.rfind(b'\xff\xd9')
    if end < 0:
        return False
    # The preview in a JPEG's header has an end marker of its own. If pixels follow the last end
    # marker, that was the preview's, or the pixels belong to something appended to the picture.
    return content.find(b'\xff\xda', end) < 0 or _can_be_loaded(content)


def _can_be_loaded(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except OSError:
        return False
    return True


def read_exif_orientation(content: bytes) -> int:
    """How a camera marked its picture as turned: 1 (upright) to 8, as the EXIF standard counts.

    Args:
        content: The bytes of the file; where it has no such mark, the answer is 1.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds for what it cannot read.
        return 1


def decode_labels(content: bytes, path: str) -> np.ndarray:
    """Decodes a label map as MMSegmentation does; a palette image gives its indices.

    Args:
        content: The bytes of the file.
        path: Its name, for error messages.

    Returns:
        Class ids, uint8 (H, W).

    Raises:
        ValueError: If it is not an image, a JPEG, has several channels, fractions, or a value
            outside 0 to 255, which MMSegmentation would take modulo 256.
    """
    if content.startswith(JPEG_START):
        # At quality 75 it changes the class of 3.5 % of the pixels of a street scene.
        raise ValueError(f'{path}: the label map is a JPEG, whose compression changes class ids. '
                         'Make the label maps anew from their source, as PNG')
    try:
        labels = mmcv.imfrombytes(content, flag='unchanged', backend='pillow')
    except Exception as error:  # Pillow raises many kinds.
        raise ValueError(f'{path}: the label map cannot be decoded ({error}; {len(content)} '
                         'bytes). Copy or make the file anew') from error
    if labels.ndim != 2:
        raise ValueError(f'{path}: a picture of several channels {labels.shape} where each pixel '
                         'should hold a class id. Convert its colours to class ids')
    if labels.dtype.kind == 'f' and not (labels == np.floor(labels)).all():
        raise ValueError(f'{path}: the label map holds fractions ({labels.dtype}, from '
                         f'{labels.min():g} to {labels.max():g}), expected class ids from 0 to '
                         '255. Save class ids as 8-bit PNG')
    if labels.dtype not in (bool, np.uint8) and not (
            0 <= labels.min() and labels.max() <= 255):
        raise ValueError(f'{path}: values from {labels.min()} to {labels.max()} ({labels.dtype}), '
                         'expected class ids from 0 to 255. Renumber the classes')
    return labels.astype(np.uint8, copy=False)
