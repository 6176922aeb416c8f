"""A decoded copy of a data set: its pixels as raw files, which are mapped into memory.

Decoding a 2048x1024 PNG and its label map takes 50 ms, mapping their pixels 0.1 ms, and a crop
then loads the rows it needs. The price is space: 8.4 MB for such a pair.

    DATA_ROOT/cache_mmseg_bisenetv2/index.jsonl         {"format": 1}, then a line for each file
    DATA_ROOT/cache_mmseg_bisenetv2/PATH_OF_FILE.raw    uint8, (H, W, 3) BGR or (H, W)

The line of a file is written after its pixels, so that a build that was killed can go on.
"""
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmseg_bisenetv2.atomic_write import write_atomically
from mmseg_bisenetv2.datasets.threads import map_in_threads
from mmseg_bisenetv2.decoding import decode_image, decode_labels

FOLDER = 'cache_mmseg_bisenetv2'
FORMAT = 1
ENTRY_TYPES = dict(path=str, size=int, mtime_ns=int, sha256=str, shape=list, pixels=str)
REMEDY = 'Bring it up to date: python tools/cache_dataset.py CONFIG. Or delete the folder'

Decoder = Callable[[bytes, str], np.ndarray]
Entry = dict[str, Any]  # A line of the index; see read_index.


class CacheError(ValueError):
    """A decoded cache that must not be used."""


def find_cached(root: str | Path, paths: Iterable[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Looks for the decoded copies of files.

    Args:
        root: The data set's folder.
        paths: Files below it.

    Returns:
        For each path the file of its pixels and their shape; empty if no path is cached.

    Raises:
        CacheError: If the cache is unreadable, lacks some of the files, or one of them or its
            pixels changed since. A file counts as unchanged if size and time are the same, or
            size and contents.
    """
    folder = Path(root) / FOLDER
    if not (folder / 'index.jsonl').is_file():
        return {}
    index = read_index(folder)
    names = {path: os.path.relpath(path, root) for path in paths}
    if not any(name in index for name in names.values()):  # The cache is another split's.
        return {}
    found = {}
    for path, name in names.items():
        entry, pixels = index.get(name), folder / f'{name}.raw'
        if entry is None:
            raise CacheError(f'{path}: is not in the decoded cache {folder}. {REMEDY}')
        if not _is_unchanged(path, entry):
            raise CacheError(f'{path}: changed since it was decoded into {folder}. {REMEDY}')
        if not _has_size(pixels, entry):
            raise CacheError(f'{pixels}: expected {math.prod(entry["shape"])} bytes, shape '
                             f'{entry["shape"]}, in the decoded cache. {REMEDY}')
        found[path] = str(pixels), tuple(entry['shape'])
    return found


def map_pixels(path: str, shape: Sequence[int]) -> np.ndarray:
    """Maps the raw pixels of a decoded cache into memory, which loads what is read of them.

    Args:
        path: A file of uint8 values.
        shape: Of the array.

    Returns:
        The array. It can be written to; the file never changes.

    Raises:
        ValueError: If the file is gone or of another size.
    """
    try:
        return np.memmap(path, np.uint8, 'c', shape=tuple(shape))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: this part of the decoded cache cannot be read ({error}). Make '
                         'it anew: python tools/cache_dataset.py CONFIG') from error


def build_cache(root: str | Path, images: Iterable[str], label_maps: Iterable[str],
                out: str | Path | None = None, num_workers: int = 1) -> tuple[int, int]:
    """Decodes files into the cache of a data set; finished ones are checked and kept.

    Args:
        root: The data set's folder.
        images: Image files below it.
        label_maps: Label maps below it.
        out: Where to write instead of ``root``, which then gets a link to it.
        num_workers: Threads.

    Returns:
        Number of files decoded, number of files found finished.

    Raises:
        OSError: If there is not enough space; nothing is written then.
        ValueError: If a file cannot be decoded or lies outside ``root``.
    """
    folder = Path(root) / FOLDER
    decoders: dict[str, Decoder] = dict.fromkeys(images, decode_image)
    decoders |= dict.fromkeys(label_maps, decode_labels)
    names = {path: os.path.relpath(path, root) for path in decoders}
    for path, name in names.items():
        if name.startswith(os.pardir):
            raise ValueError(f'{path}: lies outside the data set {root}')
    if out is not None:
        _link(folder, Path(out))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        index = read_index(folder)
    except (CacheError, FileNotFoundError):
        index = {}
    finished = {path for path, name in names.items()
                if name in index and _has_size(folder / f'{name}.raw', index[name])}
    _check_space(folder, {path: decoders[path] for path in names.keys() - finished})
    lines = [dict(format=FORMAT), *index.values()]
    content = ''.join(json.dumps(line) + '\n' for line in lines)
    write_atomically(content.encode(), str(folder / 'index.jsonl'))

    def work(path: str) -> Entry | None:
        return _decode(path, names[path], folder, index.get(names[path]), decoders[path])

    decoded = 0
    with open(folder / 'index.jsonl', 'a') as file:
        for entry in map_in_threads(work, list(names), 'Decoding', num_workers):
            if entry:
                file.write(json.dumps(entry) + '\n')
                file.flush()
                decoded += 1
    return decoded, len(names) - decoded


def read_index(folder: str | Path) -> dict[str, Entry]:
    """Reads the index of a cache; a last line without its end, left by a killed build, is dropped.

    Args:
        folder: That of the cache.

    Returns:
        For each file, by its path in the data set, a dict of ``size``, ``mtime_ns`` and
        ``sha256`` of the file, ``shape`` and ``pixels``, the SHA-256 of its pixels.

    Raises:
        CacheError: If it is broken or of another version.
        FileNotFoundError: If there is none.
    """
    path = Path(folder) / 'index.jsonl'
    index: dict[str, Entry] = {}
    try:
        header, *lines = path.read_bytes().split(b'\n')[:-1]
        version = json.loads(header)['format']
        if version == FORMAT:
            for line in lines:
                entry = json.loads(line)
                _check_entry(entry)
                index[entry['path']] = entry
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CacheError(f'{path}: the index of a decoded cache is broken ({error!r}). '
                         f'{REMEDY}') from error
    if version != FORMAT:
        raise CacheError(f'{path}: a decoded cache of format {version}, expected {FORMAT}. '
                         f'{REMEDY}')
    return index


def _check_entry(entry: Entry) -> None:
    for key, kind in ENTRY_TYPES.items():
        if type(entry[key]) is not kind:
            raise ValueError(f'{key} is {entry[key]!r}')
    shape = entry['shape']
    if (len(shape) not in (2, 3) or shape[2:] not in ([], [3])
            or any(type(side) is not int or side < 1 for side in shape)):
        raise ValueError(f'shape is {shape}')


def _decode(path: str, name: str, folder: Path, entry: Entry | None,
            decode: Decoder) -> Entry | None:
    """Decodes one file; returns its line of the index, or None if it was finished."""
    pixels = folder / f'{name}.raw'
    if (entry and _has_size(pixels, entry) and _is_unchanged(path, entry)
            and _sha256(pixels) == entry['pixels']):
        return None
    mtime_ns = os.stat(path).st_mtime_ns
    content = Path(path).read_bytes()
    array = decode(content, path)
    pixels.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(array.tobytes(), str(pixels))
    return dict(
        path=name, size=len(content), mtime_ns=mtime_ns,
        sha256=hashlib.sha256(content).hexdigest(), shape=list(array.shape),
        pixels=hashlib.sha256(array.data).hexdigest())


def _is_unchanged(path: str, entry: Entry) -> bool:
    status = os.stat(path)
    return status.st_size == entry['size'] and (
        status.st_mtime_ns == entry['mtime_ns'] or _sha256(path) == entry['sha256'])


def _has_size(pixels: Path, entry: Entry) -> bool:
    return pixels.is_file() and pixels.stat().st_size == math.prod(entry['shape'])


def _sha256(path: str | Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_space(folder: Path, decoders: Mapping[str, Decoder]) -> None:
    """Compares the free space with what the pixels of these files will take."""
    needed = 0
    for path, decode in decoders.items():
        try:
            with Image.open(path) as image:  # This reads the header only.
                needed += math.prod(image.size) * (3 if decode is decode_image else 1)
        except Exception:  # Pillow raises many kinds; decoding will say what is wrong.
            continue
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f'{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. Free '
                      'some, or choose another disk with --out')


def _link(folder: Path, out: Path) -> None:
    """Makes ``folder`` a link to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    if not folder.exists() and not folder.is_symlink():
        folder.symlink_to(out.resolve(), target_is_directory=True)
    if folder.resolve() != out.resolve():
        raise FileExistsError(f'{folder} exists already and is not {out}. Delete it first')
