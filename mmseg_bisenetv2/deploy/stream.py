"""Pictures, videos and cameras through a predictor: decoding and encoding beside the network.

Three threads hand frames on: one decodes, the caller's predicts, one draws and encodes. OpenCV and
the runtimes let go of Python while they work, so with a core for each the network hardly waits.
Between them lie a few frames at most, so memory does not grow with the length of a video.
"""
import contextlib
import glob
import itertools
import os
import re
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmseg_bisenetv2.datasets.label_ids import LABEL_IDS
from mmseg_bisenetv2.deploy.image import read_image

from mmseg.datasets import CityscapesDataset

PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv')
OUTPUTS = ('overlay', 'side-by-side', 'labels', 'label-ids')
WAITING = 4  # frames before the network, and as many behind it: 80 MB at 2048x1024
TIMEOUT = 10_000  # milliseconds of silence that end a stream; OpenCV itself waits for 30 s
LABEL_ID_OF_TRAIN_ID = np.zeros(256, np.uint8)  # 0 is 'unlabeled'
LABEL_ID_OF_TRAIN_ID[:len(LABEL_IDS)] = list(LABEL_IDS.values())


class Source(NamedTuple):
    """What frames are read from.

    Attributes:
        address: Path, number of a camera, or address of a stream.
        name: Of what is written for it, a relative path without suffix.
        kind: 'picture', 'video', or 'live': a camera or stream, which waits for nobody.
    """

    address: str
    name: str
    kind: str

    def __str__(self):
        return _without_password(self.address)


class Frame(NamedTuple):
    """A picture, or one frame of a video.

    Attributes:
        source: Where it comes from.
        index: Its number among the frames asked for, from 0.
        image: (H, W, 3), uint8, BGR.
        fps: Frames per second of the video; None for a picture.
        live: Whether a newer one may take its place.
    """

    source: Source
    index: int
    image: np.ndarray
    fps: float | None = None
    live: bool = False


def find_sources(inputs, out):
    """Finds what the inputs name.

    Outputs keep the folders below the one that all files have in common. Of two that would have
    the same name, a.jpg and a.png, the second gets a number.

    Args:
        inputs: Files, folders (with all below them), glob patterns, numbers of cameras,
            addresses of streams.
        out: Output folder, left out where it lies in an input folder.

    Returns:
        The sources, each once; and a line for each input that names nothing.
    """
    kinds, folders, problems = {}, [], []
    for text in map(str, inputs):
        if os.path.isdir(text):
            paths = [path for path in _glob(os.path.join(glob.escape(text), '**', '*'))
                     if path.lower().endswith(PICTURES + VIDEOS)
                     and Path(out).resolve() not in Path(path).resolve().parents]
        elif os.path.isfile(text):
            paths = [text]
        elif '://' in text or text.isdecimal() or os.path.exists(text):  # the last: a device
            kinds[text] = 'live'
            continue
        else:
            paths = _glob(text)
        if not paths:
            problems.append(f'{text}: no picture or video there')
        for path in map(os.path.abspath, paths):
            folders.append(os.path.abspath(text) if os.path.isdir(text) else os.path.dirname(path))
            kinds[path] = 'picture' if path.lower().endswith(PICTURES) else 'video'
    root = os.path.commonpath(folders) if folders else ''
    sources, taken = [], set()
    for address, kind in kinds.items():
        if kind == 'live':
            name = re.sub(r'[^\w.-]+', '_', _without_password(address).split('://')[-1])
            name = f'camera{name}' if name.isdecimal() else name
        else:
            name = os.path.splitext(os.path.relpath(address, root))[0]
        names = itertools.chain([name], (f'{name}_{n}' for n in itertools.count(2)))
        name = next(n for n in names if (kind == 'picture', n.lower()) not in taken)
        taken.add((kind == 'picture', name.lower()))
        sources.append(Source(address, name, kind))
    return sources, problems


def _glob(pattern):
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def _without_password(address):
    return re.sub(r'://[^/@]*@', '://', address)


def _open(source):
    """The capture; its frames per second and number of frames, None where it does not tell."""
    if '://' in source.address:
        capture = cv2.VideoCapture(source.address, cv2.CAP_FFMPEG, [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT])
    else:
        capture = cv2.VideoCapture(
            int(source.address) if source.address.isdecimal() else source.address)
    if not capture.isOpened():
        raise OSError(f'{source}: OpenCV cannot open it as a video')
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return capture, fps if 0 < fps < 1000 else None, int(count) if 0 < count < 1e9 else None


def count_frames(sources, every=1, max_frames=None):
    """How many frames :func:`read_frames` will find, or None where a source does not tell."""
    total = 0
    for source in sources:
        count = 1
        if source.kind == 'live':
            return None
        if source.kind == 'video':
            with contextlib.suppress(OSError):  # named when its turn comes
                count = _open(source)[2]
                if count is None:
                    return None
                count = min(-(-count // every), max_frames or count)
        total += count
    return total


def read_frames(source, every=1, max_frames=None, fps=None):
    """Yields the frames of a source.

    Args:
        source: What to read.
        every: Takes each ``every``-th frame of a video.
        max_frames: Ends a video after so many of them.
        fps: Frames per second, in place of what the video says; 25 where it says nothing.

    Raises:
        OSError: If it cannot be opened, or, after its frames, if some are missing.
        ValueError: If a picture cannot be decoded.
    """
    if source.kind == 'picture':
        try:
            yield Frame(source, 0, read_image(source.address))
        except cv2.error as error:  # more pixels than OpenCV allows
            raise OSError(f'{source}: {error.err}') from error
        return
    capture, own_fps, count = _open(source)
    live = source.kind == 'live' and count is None  # a file behind an address waits
    lost = 0
    try:
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
    # Sound files, too, can lack a few: the container's number may be an estimate
    index -= lost
    if index <= 0 or lost or (count and count - index > 1 + count // 50):
        raise OSError(f'{source}: damaged, {index} of {count or "its"} frames can be decoded')


class Channel:
    """Frames on their way between two threads; either can close it (queue.Queue: Python 3.13)."""

    def __init__(self):
        self._frames = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, frame):
        """Appends a frame as soon as there is room; returns whether the channel is open.

        A live frame takes the place of the one before it, if that still waits.
        """
        with self._changed:
            if frame.live and self._frames and self._frames[-1].source is frame.source:
                self._frames.pop()
            self._changed.wait_for(lambda: self._closed or len(self._frames) < WAITING)
            if not self._closed:
                self._frames.append(frame)
                self._changed.notify_all()
            return not self._closed

    def __iter__(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._frames)
                if not self._frames:
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame

    def close(self):
        """Ends the iteration after the frames that wait, and all waiting for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class VideoFile:
    """A video being written: MPEG-4 in .mp4, else Motion JPEG in .avi.

    Args:
        stem: Path without suffix.
        image: The first frame, (H, W, 3), not written yet; later ones are brought to its size.
        fps: Frames per second.

    Raises:
        OSError: If OpenCV can write neither.
    """

    def __init__(self, stem, image, fps):
        height, width = image.shape[:2]
        self._size = width, height
        self._odd = height % 2, width % 2
        for suffix, code in (('.mp4', 'mp4v'), ('.avi', 'MJPG')):
            self._writer = cv2.VideoWriter(stem + suffix, cv2.VideoWriter_fourcc(*code), fps,
                                           (width + width % 2, height + height % 2))
            if self._writer.isOpened():
                return
            Path(stem + suffix).unlink(missing_ok=True)
        raise OSError(f'{stem}: OpenCV can write {width}x{height} at {fps:g} frames per second '
                      'neither as .mp4 nor as .avi')

    def write(self, image, times):
        """Appends a frame, (H, W, 3) uint8 BGR, ``times`` times."""
        if image.shape[1::-1] != self._size:  # a stream may change; OpenCV would leave it out
            image = cv2.resize(image, self._size)
        if any(self._odd):  # both formats hold even sizes only: OpenCV would cut the last row off
            image = cv2.copyMakeBorder(image, 0, self._odd[0], 0, self._odd[1],
                                       cv2.BORDER_REPLICATE)
        for _ in range(times):
            self._writer.write(image)

    def close(self):
        """Completes the file."""
        self._writer.release()


class Writer:
    """Draws and writes predictions: OUT/overlay/NAME.jpg or .mp4, OUT/labels/NAME.png and so on.

    'overlay' and 'side-by-side' (the input and its classes) of a video are videos; 'labels' (train
    ids) and 'label-ids' (of Cityscapes, as its server takes them) are NAME.frames/000000.png, ...

    Args:
        predictor: Has ``classes`` and ``overlay``.
        out: Output folder.
        sources: None of their files is ever written to.
        outputs: Some of :data:`OUTPUTS`.
        opacity: Of the overlay, 0 to 1.

    Attributes:
        files: The number of files written, for each of ``outputs``.

    Raises:
        ValueError: If 'label-ids' are wanted of other classes than Cityscapes'.
    """

    def __init__(self, predictor, out, sources, outputs=('overlay',), opacity=0.5):
        cityscapes = CityscapesDataset.METAINFO['classes']
        if 'label-ids' in outputs and tuple(predictor.classes) != tuple(cityscapes):
            raise ValueError(f'label-ids need the {len(cityscapes)} classes of Cityscapes, this '
                             f'model has {", ".join(predictor.classes)}. Use --write labels')
        self.files = Counter()
        self._predictor, self._out, self._opacity = predictor, out, opacity
        self._outputs = set(outputs)
        self._inputs = {os.path.realpath(s.address) for s in sources if s.kind != 'live'}
        self._source, self._next, self._videos = None, 0, {}

    def write(self, frame, labels):
        """Writes one prediction; the frames of a source follow each other.

        Args:
            frame: A :class:`Frame`.
            labels: (H, W), uint8.

        Raises:
            OSError: If that fails, or would overwrite a source.
        """
        if frame.source is not self._source:
            self.close()
            self._source, self._next = frame.source, 0
        for output in self._outputs:
            image = self._draw(output, frame.image, labels)
            stem = os.path.join(self._out, output, frame.source.name)
            if frame.fps and image.ndim == 2:
                stem = os.path.join(f'{stem}.frames', f'{frame.index:06d}')
            os.makedirs(os.path.dirname(stem), exist_ok=True)
            if frame.fps and image.ndim == 3:
                if output not in self._videos:
                    self._protect(f'{stem}.mp4', f'{stem}.avi')
                    self._videos[output] = VideoFile(stem, image, frame.fps)
                    self.files[output] += 1
                # Fills the time of dropped frames, or a slow network would make a fast film
                self._videos[output].write(image, frame.index + 1 - self._next)
            else:  # at 2048x1024 an overlay takes 61 ms as PNG, 5 ms as JPEG
                suffix = '.png' if image.ndim == 2 else '.jpg'
                self._protect(stem + suffix)
                data = cv2.imencode(suffix, image)[1]
                try:
                    Path(stem + suffix).write_bytes(data)
                except OSError as error:  # of a full disk it does not name the file
                    raise OSError(f'{stem}{suffix}: {error.strerror}') from error
                self.files[output] += 1
        self._next = frame.index + 1

    def close(self):
        """Completes the videos."""
        while self._videos:
            self._videos.popitem()[1].close()

    def _draw(self, output, image, labels):
        if output == 'overlay':
            return self._predictor.overlay(image, labels, self._opacity)
        if output == 'side-by-side':
            return np.hstack([image, self._predictor.overlay(image, labels, 1)])
        return labels if output == 'labels' else LABEL_ID_OF_TRAIN_ID[labels]

    def _protect(self, *paths):
        for path in paths:
            if os.path.realpath(path) in self._inputs:
                raise OSError(f'{path} is an input and would be lost. Choose another --out')


@dataclass
class Report:
    """What :func:`predict_all` did.

    Attributes:
        frames: How many were predicted.
        dropped: How many of a camera or stream newer ones replaced.
        seconds: From the end of the first prediction, which pays for compilation, to the last
            byte written.
        network_seconds: Of the network alone, likewise without the first.
        problems: What could not be read, or not to its end; a line each.
    """

    frames: int = 0
    dropped: int = 0
    seconds: float = 0.
    network_seconds: float = 0.
    problems: list = field(default_factory=list)


def predict_all(predictor, sources, writer, every=1, max_frames=None, fps=None, show=False,
                stopped=lambda: False, progress=lambda: None):
    """Predicts and writes all frames of all sources, in order.

    No frame of a file is ever left out; of a camera or stream the newest waits for the network.
    However this ends, by an exception too, the videos are complete and the threads gone.

    Args:
        predictor: From (H, W, 3) uint8 BGR to (H, W) uint8 labels.
        sources: From :func:`find_sources`.
        writer: A :class:`Writer`.
        every: As for :func:`read_frames`, like the next two.
        max_frames: Of a camera, dropped frames count.
        fps: Of the videos written.
        show: Whether to show overlays in a window; q or Esc in it ends all.
        stopped: Asked before each frame whether to end early.
        progress: Called after each.

    Returns:
        A :class:`Report`.
    """
    report, frames, written = Report(), Channel(), deque()
    start = current = None

    def read():
        try:
            for source in sources:
                try:
                    for frame in read_frames(source, every, max_frames, fps):
                        if stopped() or not frames.put(frame):
                            return
                except (OSError, ValueError, cv2.error) as error:
                    report.problems.append(str(error))
        finally:
            frames.close()

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as pen:
        reading = reader.submit(read)
        try:
            for frame in frames:
                if stopped():
                    break
                labels = predictor(frame.image)
                if start:
                    report.network_seconds += predictor.network_seconds
                start = start or time.perf_counter()
                if frame.source is not current:
                    current, expected = frame.source, 0
                report.dropped += frame.index - expected
                report.frames, expected = report.frames + 1, frame.index + 1
                written.append(pen.submit(writer.write, frame, labels))
                if len(written) > WAITING:
                    written.popleft().result()
                progress()
                if show and not _show(predictor.overlay(frame.image, labels), frame.fps):
                    break
        finally:
            frames.close()
            written.append(pen.submit(writer.close))
    for task in (reading, *written):
        task.result()  # raises what went wrong there
    report.seconds = time.perf_counter() - start if start else 0.
    return report


def _show(image, fps):
    cv2.imshow('BiSeNetV2', image)
    return cv2.waitKey(1 if fps else 1000) not in (27, ord('q'))


def check_display():
    """Raises RuntimeError where OpenCV can open no window; trying would end the process."""
    if not cv2.currentUIFramework():
        raise RuntimeError('this OpenCV has no windows: pip uninstall opencv-python-headless, then '
                           'pip install opencv-python; or leave --show out')
    if sys.platform == 'linux' and not {'DISPLAY', 'WAYLAND_DISPLAY'} & os.environ.keys():
        raise RuntimeError('no display: neither DISPLAY nor WAYLAND_DISPLAY is set. Leave --show '
                           'out')
