"""Three threads hand frames on: one decodes, the caller's predicts, one draws and encodes.

OpenCV and the runtimes release Python's lock while they work, so with a core for each the network
hardly waits. Few frames wait between the threads, so memory does not grow with a video's length.
"""
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.video.sources import Frame, Source, read_frames
from mmseg_bisenetv2.video.writers import Writer

MAX_WAITING = 4  # frames before the network, and as many behind it
MAX_WAITING_BYTES = 2 ** 27  # of the images among them: 4 frames at 3840x2160, 1 photograph


def max_waiting(image: np.ndarray) -> int:
    """How many frames of an image's size may wait between two threads, 1 to MAX_WAITING."""
    return max(1, min(MAX_WAITING, MAX_WAITING_BYTES // image.nbytes))


class FrameQueue:
    """Frames on their way between two threads, either of which can close the queue.

    ``queue.Queue`` can be closed from Python 3.13 on, and cannot replace what waits in it.

    Attributes:
        dropped: How many live frames were replaced by newer ones.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._frames: deque[Frame] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> bool:
        """Appends a frame as soon as there is room; returns whether the queue is open.

        A live frame takes the place of the one before it, if that still waits.
        """
        with self._changed:
            if frame.live and self._frames and self._frames[-1].source is frame.source:
                self._frames.pop()
                self.dropped += 1
            room = max_waiting(frame.image)
            self._changed.wait_for(lambda: self._closed or len(self._frames) < room)
            if not self._closed:
                self._frames.append(frame)
                self._changed.notify_all()
            return not self._closed

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._frames)
                if not self._frames:
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame

    def close(self) -> None:
        """Ends the iteration after the frames that wait, and all waiting for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass
class RunSummary:
    """What :func:`predict_all` did.

    Attributes:
        frames: How many were predicted.
        dropped: How many of a camera or stream were replaced by newer ones.
        seconds: From the end of the first prediction, which pays for compilation, to the last
            byte written.
        network_seconds: Of the network alone, likewise without the first.
        problems: For each source that could not be read to its end, predicted or written, a line.
    """

    frames: int = 0
    dropped: int = 0
    seconds: float = 0.
    network_seconds: float = 0.
    problems: list[str] = field(default_factory=list)


def predict_all(predictor: Predictor, sources: Sequence[Source], writer: Writer,
                read: Callable[[Source], Iterable[Frame]] = read_frames, show: bool = False,
                stopped: Callable[[], object] = lambda: False,
                progress: Callable[[], object] = lambda: None) -> RunSummary:
    """Predicts and writes all frames of all sources, in order.

    No frame of a file is ever left out; of a camera or stream the newest waits for the network.
    A frame for which memory does not suffice is listed, and the others go on. However this ends,
    by an exception too, the videos are complete and the threads gone.

    Args:
        predictor: From (H, W, 3) uint8 BGR to (H, W) uint8 labels.
        sources: From :func:`find_sources`.
        writer: Takes the predictions.
        read: :func:`read_frames`, perhaps with some of its options.
        show: Whether to show overlays in a window; q or Esc in it ends all.
        stopped: Asked before each frame whether to end early.
        progress: Called after each.
    """
    summary, frames = RunSummary(), FrameQueue()

    @contextlib.contextmanager
    def list_failure(source: Source) -> Iterator[None]:
        """Lets the other frames go on after an error that concerns this one only."""
        try:
            yield
        except Exception as error:
            if not _concerns_one_frame(error):
                raise
            text = getattr(error, 'err', str(error)) or 'not enough memory'
            line = f'{source}: failed: {text.splitlines()[0]}'
            if line not in summary.problems:  # the frames of a video fail for the same reason
                summary.problems.append(line)

    def read_all() -> None:
        try:
            for source in sources:
                try:
                    with list_failure(source):
                        for frame in read(source):
                            if stopped() or not frames.put(frame):
                                return
                except (OSError, ValueError) as error:  # they name the source
                    summary.problems.append(str(error))
        finally:
            frames.close()

    def write(frame: Frame, labels: np.ndarray) -> None:
        with list_failure(frame.source):
            writer.write(frame, labels)

    written: deque[Future] = deque()
    start: float | None = None  # Set behind the first prediction.
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as encoder:
        reading = reader.submit(read_all)
        try:
            for frame in frames:
                if stopped():
                    break
                labels: Any = None
                with list_failure(frame.source):
                    labels = predictor(frame.image)
                if labels is None:
                    continue
                summary.frames += 1
                if start:
                    summary.network_seconds += predictor.network_seconds
                start = start or time.perf_counter()
                written.append(encoder.submit(write, frame, labels))
                if len(written) > max_waiting(frame.image):
                    written.popleft().result()
                progress()
                if show and not _show(predictor.overlay(frame.image, labels), frame.fps):
                    break
        finally:
            frames.close()
            written.append(encoder.submit(writer.close))
    for task in (reading, *written):
        task.result()  # raises what went wrong there
    summary.dropped = frames.dropped
    summary.seconds = time.perf_counter() - start if start else 0.
    return summary


def _concerns_one_frame(error: Exception) -> bool:
    """Whether memory ran out, which PyTorch says as RuntimeError, or OpenCV refused the frame."""
    return isinstance(error, (MemoryError, cv2.error)) or (isinstance(error, RuntimeError) and any(
        text in str(error) for text in ('out of memory', 'allocate memory', 'enough memory')))


def _show(image: np.ndarray, fps: float | None) -> bool:
    cv2.imshow('BiSeNetV2', image)
    return cv2.waitKey(1 if fps else 1000) not in (27, ord('q'))


def check_display() -> None:
    """Raises RuntimeError where OpenCV can open no window; trying would end the process."""
    if not cv2.currentUIFramework():
        raise RuntimeError('this OpenCV has no windows: pip uninstall opencv-python-headless, then '
                           'pip install opencv-python; or leave --show out')
    if sys.platform == 'linux' and not {'DISPLAY', 'WAYLAND_DISPLAY'} & os.environ.keys():
        raise RuntimeError('no display: neither DISPLAY nor WAYLAND_DISPLAY is set. Leave --show '
                           'out')
