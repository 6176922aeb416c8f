"""Where frames come from: image files, videos, cameras and network streams."""
import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmseg_bisenetv2.deploy.image import MAX_PIXELS, find_files, is_image, read_image

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv')
STREAM_TIMEOUT = 10_000  # milliseconds of silence that end a stream; OpenCV itself waits for 30 s


class Source(NamedTuple):
    """What frames are read from.

    Attributes:
        address: Path, number of a camera, or address of a stream.
        name: Relative path without suffix, under which its outputs are written.
        kind: 'image', 'video', or 'live': a camera or stream, which does not wait for its reader.
    """

    address: str
    name: str
    kind: str

    def __str__(self) -> str:
        return _without_password(self.address)


class Frame(NamedTuple):
    """An image, or one frame of a video or camera.

    Attributes:
        source: Where it comes from.
        number: Its place among the frames asked for, from 0.
        image: (H, W, 3), uint8, BGR.
        fps: Frames per second of the video; None for an image.
        live: Whether a newer frame may take its place.
    """

    source: Source
    number: int
    image: np.ndarray
    fps: float | None = None
    live: bool = False


def silence_decoders() -> None:
    """Keeps what OpenCV and FFmpeg print about damaged videos and missing cameras off the terminal.

    FFmpeg's level is read when the first video of the process is opened. Whoever sets
    OPENCV_FFMPEG_LOGLEVEL or OPENCV_LOG_LEVEL sees the messages again.
    """
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # FFmpeg's AV_LOG_QUIET
    if 'OPENCV_LOG_LEVEL' not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def find_sources(inputs: Sequence[str], out: str) -> tuple[list[Source], list[str]]:
    """Finds what the inputs name.

    Outputs keep the folders below the one that all files have in common. Where two would have the
    same name, as a.jpg and a.png, the second gets a number.

    Args:
        inputs: Files, folders (with everything below them), glob patterns, numbers of cameras,
            addresses of streams.
        out: Output folder, left out where it lies in an input folder.

    Returns:
        The sources, each real file once; and a line for each input that names nothing.
    """
    found: dict[str, tuple[str, str]] = {}  # by real path or address: address and kind
    folders, problems = [], []
    for text in map(str, inputs):
        mode = os.stat(text).st_mode if os.path.exists(text) else 0
        paths = [os.path.abspath(path) for path in find_files(text)]
        if stat.S_ISDIR(mode):
            paths = [path for path in paths
                     if (path.lower().endswith(VIDEO_SUFFIXES) or is_image(path))
                     and Path(out).resolve() not in Path(path).resolve().parents]
        elif not paths and ('://' in text or text.isdecimal() or stat.S_ISCHR(mode)):
            found[text] = text, 'live'
            continue
        if not paths:
            problems.append(f'{text}: a pipe. Write it to a file first' if stat.S_ISFIFO(mode)
                            else f'{text}: no picture or video there')
        for path in paths:
            folders.append(os.path.abspath(text) if stat.S_ISDIR(mode) else os.path.dirname(path))
            found.setdefault(os.path.realpath(path), (path, 'image' if is_image(path) else 'video'))
    root = os.path.commonpath(folders) if folders else ''
    sources, taken = [], set()
    for address, kind in found.values():
        stem = name = _output_name(address, kind, root)
        for number in itertools.count(2):
            if (kind == 'image', name.lower()) not in taken:  # Disks may not tell a from A.
                break
            name = f'{stem}_{number}'
        taken.add((kind == 'image', name.lower()))
        sources.append(Source(address, name, kind))
    return sources, problems


def _output_name(address: str, kind: str, root: str) -> str:
    """Returns the path below ``root`` without suffix, or what a file of a stream may be called."""
    if kind != 'live':
        return os.path.splitext(os.path.relpath(address, root))[0]
    name = re.sub(r'[^\w.-]+', '_', _without_password(address).split('://')[-1])
    return f'camera{name}' if name.isdecimal() else name


def _without_password(address: str) -> str:
    return re.sub(r'://[^/]*@', '://', address)  # A password may hold an @ itself.


def _open(source: Source) -> tuple[cv2.VideoCapture, float | None, int | None]:
    """The capture; its frames per second and number of frames, None where it does not tell."""
    if '://' in source.address:
        capture = cv2.VideoCapture(source.address, cv2.CAP_FFMPEG, [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STREAM_TIMEOUT,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, STREAM_TIMEOUT])
    else:
        capture = cv2.VideoCapture(
            int(source.address) if source.address.isdecimal() else source.address)
    if not capture.isOpened():
        raise OSError(f'{source}: OpenCV cannot open it as a video')
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return capture, fps if 0 < fps < 1000 else None, int(count) if 0 < count < 1e9 else None


def count_frames(sources: Sequence[Source], every: int = 1,
                 max_frames: int | None = None) -> int | None:
    """How many frames :func:`read_frames` will find, or None where a source does not tell."""
    total = 0
    for source in sources:
        if source.kind == 'image':
            total += 1
            continue
        if source.kind == 'live':
            return None
        with contextlib.suppress(OSError):  # read_frames raises it again.
            count = _open(source)[2]
            if count is None:
                return None
            total += min(-(-count // every), max_frames or count)
    return total


def read_frames(source: Source, every: int = 1, max_frames: int | None = None,
                fps: float | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """Yields the frames of a source.

    Args:
        source: What to read.
        every: Takes each ``every``-th frame of a video.
        max_frames: Ends a video after so many of them.
        fps: Frames per second, in place of what the video says; 25 where it says nothing.
        max_pixels: Images and videos of more pixels are refused before they are decoded.

    Raises:
        OSError: If it cannot be opened, or, after its frames, if some are missing.
        ValueError: If an image cannot be decoded, or has too many pixels.
    """
    if source.kind == 'image':
        yield Frame(source, 0, read_image(source.address, max_pixels))
        return
    capture, own_fps, count = _open(source)
    # A video file behind an address has a number of frames, and waits for its reader.
    live = source.kind == 'live' and count is None
    lost = 0
    try:
        width, height = (int(capture.get(key)) for key in (
            cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            raise ValueError(f'{source}: frames of {width}x{height}, more than {max_pixels:,} '
                             'pixels. If there is memory for them, raise --max-pixels')
        for index in itertools.count():
            if max_frames and index >= max_frames * every:
                return
            if not capture.grab():
                break
            if index % every == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    lost += 1
                    continue
                yield Frame(source, index // every, image, (fps or own_fps or 25) / every, live)
    finally:
        capture.release()
    # A container's number of frames may be an estimate: undamaged videos, too, can lack a few.
    index -= lost
    if index <= 0 or lost or (count and count - index > 1 + count // 50):
        raise OSError(f'{source}: damaged, {index} of {count or "its"} frames can be decoded')
