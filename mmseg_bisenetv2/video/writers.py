"""What is written of a prediction: pictures, videos, and label maps."""
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np

from mmseg_bisenetv2.datasets.label_ids import LABEL_IDS
from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.video.sources import Frame, Source

from mmseg.datasets import CityscapesDataset

OUTPUTS = ('overlay', 'side-by-side', 'labels', 'label-ids')
LABEL_ID_OF_TRAIN_ID = np.zeros(256, np.uint8)  # 0 is 'unlabeled'
LABEL_ID_OF_TRAIN_ID[:len(LABEL_IDS)] = list(LABEL_IDS.values())
JPEG_MAX_SIDE = 65_500  # pixels; libjpeg encodes no longer side


class VideoFile:
    """A video being written: MPEG-4 in .mp4, else Motion JPEG in .avi.

    Args:
        stem: Path without suffix.
        image: The first frame, (H, W, 3), not written yet; later ones are brought to its size.
        fps: Frames per second.

    Raises:
        OSError: If OpenCV can write neither.
    """

    def __init__(self, stem: str, image: np.ndarray, fps: float) -> None:
        height, width = image.shape[:2]
        self._size = width, height
        self._odd = height % 2, width % 2
        for suffix, code in (('.mp4', 'mp4v'), ('.avi', 'MJPG')):
            self._writer = cv2.VideoWriter(stem + suffix, cv2.VideoWriter.fourcc(*code), fps,
                                           (width + width % 2, height + height % 2))
            if self._writer.isOpened():
                return
            Path(stem + suffix).unlink(missing_ok=True)
        raise OSError(f'{stem}: OpenCV can write {width}x{height} at {fps:g} frames per second '
                      'neither as .mp4 nor as .avi')

    def write(self, image: np.ndarray, times: int) -> None:
        """Appends a frame, (H, W, 3) uint8 BGR, ``times`` times."""
        if image.shape[1::-1] != self._size:  # a stream may change; OpenCV would leave it out
            image = cv2.resize(image, self._size)
        if any(self._odd):  # both formats hold even sizes only: OpenCV would cut the last row off
            image = cv2.copyMakeBorder(image, 0, self._odd[0], 0, self._odd[1],
                                       cv2.BORDER_REPLICATE)
        for _ in range(times):
            self._writer.write(image)

    def close(self) -> None:
        """Completes the file."""
        self._writer.release()


class Writer:
    """Draws and writes predictions: OUT/overlay/NAME.jpg or .mp4, OUT/labels/NAME.png and so on.

    'overlay' and 'side-by-side' (the input and its classes) of a video are videos; 'labels' (train
    ids) and 'label-ids' (of Cityscapes, as its server takes them) are NAME.frames/000000.png, ...

    Args:
        predictor: Gives the classes and draws the overlays.
        out: Output folder.
        sources: None of their files is ever written to.
        outputs: Some of :data:`OUTPUTS`.
        opacity: Of the overlay, 0 to 1.

    Attributes:
        files: The number of files written, for each of ``outputs``.

    Raises:
        ValueError: If 'label-ids' are wanted of other classes than Cityscapes'.
    """

    def __init__(self, predictor: Predictor, out: str, sources: Sequence[Source],
                 outputs: Collection[str] = ('overlay', ), opacity: float = 0.5) -> None:
        cityscapes = CityscapesDataset.METAINFO['classes']
        if 'label-ids' in outputs and tuple(predictor.classes) != tuple(cityscapes):
            raise ValueError(f'label-ids need the {len(cityscapes)} classes of Cityscapes, this '
                             f'model has {", ".join(predictor.classes)}. Use --write labels')
        self.files: Counter[str] = Counter()
        self._predictor, self._out, self._opacity = predictor, out, opacity
        self._outputs = set(outputs)
        self._inputs = {os.path.realpath(s.address) for s in sources if s.kind != 'live'}
        self._source: Source | None = None
        self._next = 0  # number of the frame that follows what the videos hold
        self._videos: dict[str, VideoFile] = {}

    def write(self, frame: Frame, labels: np.ndarray) -> None:
        """Writes one prediction; the frames of a source follow each other.

        Args:
            frame: What was predicted.
            labels: (H, W), uint8.

        Raises:
            OSError: If that fails, or would overwrite a source.
            MemoryError: If a picture cannot be encoded.
        """
        if frame.source is not self._source:
            self.close()
            self._source, self._next = frame.source, 0
        for output in self._outputs:
            image = self._draw(output, frame.image, labels)
            stem = os.path.join(self._out, output, frame.source.name)
            if frame.fps and image.ndim == 2:
                stem = os.path.join(f'{stem}.frames', f'{frame.number:06d}')
            os.makedirs(os.path.dirname(stem), exist_ok=True)
            if frame.fps and image.ndim == 3:
                if output not in self._videos:
                    self._protect_inputs(f'{stem}.mp4', f'{stem}.avi')
                    self._videos[output] = VideoFile(stem, image, frame.fps)
                    self.files[output] += 1
                # Fills the time of dropped frames, or a slow network would make a fast video
                self._videos[output].write(image, frame.number + 1 - self._next)
            else:  # at 2048x1024 an overlay takes 61 ms as PNG, 5 ms as JPEG
                is_jpeg = image.ndim == 3 and max(image.shape) <= JPEG_MAX_SIDE
                self._write_picture(stem + ('.jpg' if is_jpeg else '.png'), image)
                self.files[output] += 1
        self._next = frame.number + 1

    def close(self) -> None:
        """Completes the videos."""
        while self._videos:
            self._videos.popitem()[1].close()

    def _draw(self, output: str, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if output == 'overlay':
            return self._predictor.overlay(image, labels, self._opacity)
        if output == 'side-by-side':
            return np.hstack([image, self._predictor.overlay(image, labels, 1)])
        return labels if output == 'labels' else LABEL_ID_OF_TRAIN_ID[labels]

    def _write_picture(self, path: str, image: np.ndarray) -> None:
        self._protect_inputs(path)
        encoded, data = cv2.imencode(os.path.splitext(path)[1], image)
        if not encoded:
            raise MemoryError(f'OpenCV cannot encode {path}; is there memory for it?')
        try:
            Path(path).write_bytes(data.tobytes())
        except OSError as error:  # of a full disk it does not name the file
            raise OSError(f'{path}: {error.strerror}') from error

    def _protect_inputs(self, *paths: str) -> None:
        for path in paths:
            if os.path.realpath(path) in self._inputs:
                raise OSError(f'{path} is an input and would be lost. Choose another --out')
