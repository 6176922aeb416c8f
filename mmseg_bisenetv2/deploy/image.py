"""Reading pictures: from a path or an array to (H, W, 3), uint8, BGR."""
import os
from pathlib import Path

import cv2
import numpy as np


def read_image(image):
    """A picture as (H, W, 3), uint8, BGR.

    Args:
        image: A path, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16.

    Raises:
        FileNotFoundError: If the path leads nowhere.
        ValueError: If the file cannot be decoded, or the array is no picture.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f'No picture {path}')
        data = np.fromfile(path, np.uint8)  # cv2.imread cannot open every name on every system
        if not data.size:
            raise ValueError(f'{path} cannot be decoded: it is empty')
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)  # None where it is no picture
            cause = 'truncated, or no picture'
        except cv2.error as error:  # too large
            image, cause = None, error.err
        if image is None:
            raise ValueError(f'{path} cannot be decoded: {cause}')
        return image
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
