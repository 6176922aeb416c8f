"""Checkpoints from addresses, through the cache that MMEngine uses."""
import contextlib
import os
import re
import socket
import uuid
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader

from mmseg_bisenetv2.checkpoints.files import MapLocation, read_checkpoint
from mmseg_bisenetv2.checkpoints.layouts import CheckpointError
from mmseg_bisenetv2.compat import replace_mmengine_download

ZOO = 'https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_bisenetv2/'
ZOO_NAMES = ('fcn_bisenetv2_cityscapes', 'fcn_bisenetv2fp16_cityscapes')
TIMEOUT = 60  # seconds without a byte, after which a download is given up
# The hash in a name, as in "name-0123abcd.pth". Requires a letter, so that a date or an iteration
# is not taken for a hash.
HASH = re.compile(r'-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$')


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: MapLocation = None, **_: Any) -> Any:
    """Loads an address for MMEngine, through the cache that MMEngine uses.

    MMEngine's own function keeps whatever arrived. Here a download enters the cache once it has
    been read as a checkpoint, and has the hash that its name ends in, if any
    (``name-0123abcd.pth``: the beginning of its SHA-256).

    Raises:
        CheckpointError: With the address, if the download fails, breaks off, stalls or is no
            checkpoint.
    """
    if get_rank() > 0:
        barrier()  # the first rank downloads for all that share its cache
    try:
        path = download(filename)
    finally:
        if get_rank() == 0:
            barrier()
    try:
        return read_checkpoint(path, map_location)
    except CheckpointError as error:
        raise CheckpointError(f'{filename}: {error}. To download it again: rm {path}') from None


replace_mmengine_download(load_from_http)


@CheckpointLoader.register_scheme(prefixes='sssegmentation://')
def load_from_sssegmentation(filename: str, map_location: MapLocation = None) -> Any:
    """Loads one of SSSegmentation's published BiSeNetV2 for MMEngine, by its name."""
    names = {f'sssegmentation://{name}': f'{ZOO}{name}_train.pth' for name in ZOO_NAMES}
    if filename not in names:
        raise CheckpointError(f'{filename}: expected one of {", ".join(names)}')
    return load_from_http(names[filename], map_location)


def download(url: str) -> str:
    """Downloads to the cache, unless it is there, and returns the file's path.

    Raises:
        CheckpointError: With the address and the reason; nothing is kept then.
    """
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(urlparse(url).path)
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return path
    digest = HASH.search(name)
    part = f'{path}.{uuid.uuid4().hex}.partial'
    timeout = socket.getdefaulttimeout()
    try:
        os.makedirs(folder, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT)
        torch.hub.download_url_to_file(
            url, part, digest[1] if digest else None, progress=os.isatty(0))
        read_checkpoint(part)
        os.replace(part, path)
    except Exception as error:
        reason = str(error).replace(part, 'what arrived')
        raise CheckpointError(f'{url} was not loaded, and nothing of it kept: {reason}') from None
    finally:
        socket.setdefaulttimeout(timeout)
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
    return path
