"""From a picture to its label map, on the fastest runtime that is installed."""
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmseg_bisenetv2.deploy import converters
from mmseg_bisenetv2.deploy.exported_file import read_exported_file, short_reason
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.deploy.metadata import ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.deploy.runtimes import (
    ONNXRuntimeRuntime,
    OpenVINORuntime,
    TorchRuntime,
    bf16_is_faster,
)
from mmseg_bisenetv2.deploy.shipped import SHIPPED, find_shipped
from mmseg_bisenetv2.deploy.winograd import OpenVINOWinogradHead, WinogradHead
from mmseg_bisenetv2.models.upsample_argmax import AxisTransform, upsample_argmax
from mmseg_bisenetv2.visualization import colour_table

from mmseg.apis import init_model

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
PRECISIONS = dict(torch=tuple(DTYPES), openvino=('fp32', 'bf16'), onnxruntime=('fp32', ))
WINOGRAD_HEADS = {('openvino', 'cpu', 'fp32'): OpenVINOWinogradHead,
                  ('torch', 'cpu', 'fp32'): WinogradHead}
EXPORTED = {'.pt2': 'torch', '.xml': 'openvino', '.onnx': 'onnxruntime'}  # and what runs it
PROBE_SIZE = (72, 104)  # at which a file for any size is run once when it is loaded

Runtime = TorchRuntime | OpenVINORuntime | ONNXRuntimeRuntime


class Options(NamedTuple):
    """What a Predictor is asked for; see there."""

    backend: str
    precision: str
    device: torch.device
    threads: int | None


class Predictor:
    """Label maps of pictures: ``labels = Predictor(config, checkpoint)(cv2.imread('street.png'))``.

    It may be called from several threads.

    Args:
        config: A config, as a file or an ``mmengine.Config``; or a file that tools/export.py wrote
            (.onnx, .xml, .pt2), which says itself what it holds and which backend runs it; or
            'camvid', a network for street scenes that comes with the package, weights included.
        checkpoint: Weights of any layout. None: random ones.
        backend: 'torch', 'openvino', 'onnxruntime', or 'auto', the fastest that is installed:
            'openvino' on a CPU, else 'torch'. ``.backend`` says which.
        precision: 'fp32', 'bf16', 'fp16', or 'auto': FP16 on a GPU, BF16 on processors that
            multiply it faster than FP32, where the backend can, else FP32. ``.precision`` says
            which; for a file that was quantised it is 'int8'.
        device: By default 'cuda' if there is a GPU, else 'cpu'.
        size: (height, width) at which the network sees every picture. By default as the pipeline
            of the config's test loader resizes, so that labels are those of `mim test`.
        threads: Of the processor; all cores by default. This also sets PyTorch's number for the
            whole process, since PyTorch computes the labels.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If an option has a value that it, or this backend, does not know; or if an
            exported file is damaged or refused, see :mod:`mmseg_bisenetv2.deploy.exported_file`.
        TypeError: If the config's network cannot be deployed, see :class:`FrameNetwork`.
        ImportError: If the runtime asked for is not installed.
    """

    def __init__(self, config: str | os.PathLike | Config,
                 checkpoint: str | os.PathLike | None = None, backend: str = 'auto',
                 precision: str = 'auto', device: str | torch.device | None = None,
                 size: Sequence[int] | None = None, threads: int | None = None) -> None:
        self.device = _device(device)
        self.size: tuple[int, int] | None = None
        if size is not None:
            network_height, network_width = _positive('size', size, 2)
            self.size = network_height, network_width
        if threads is not None:
            threads, = _positive('threads', threads, 1)
            torch.set_num_threads(threads)
        if backend not in ('auto', *PRECISIONS):
            raise ValueError(f"backend={backend!r}: expected 'auto' or one of {[*PRECISIONS]}")
        if isinstance(config, str) and config in SHIPPED:
            if checkpoint:
                raise ValueError(f'{config!r} has its weights: expected no checkpoint beside it')
            config, checkpoint = find_shipped(config, precision)
        suffix = '.py' if isinstance(config, Config) else Path(config).suffix
        exported = EXPORTED.get(suffix)
        if backend == 'auto':
            fits = self.device.type == 'cpu' and importlib.util.find_spec('openvino')
            backend = exported or ('openvino' if fits else 'torch')
        if exported not in (None, backend):
            raise ValueError(f'backend={backend!r}: this file is for {exported!r}')
        if backend == 'openvino' and self.device.type != 'cpu':
            raise ValueError(f"backend='openvino' runs on the CPU, not on {self.device}")
        options = Options(backend, precision, self.device, threads)
        if exported:
            self.runtime, self.metadata, self.precision = _from_exported_file(
                Path(config), checkpoint, options)
            if self.metadata.size and self.size not in (None, self.metadata.size):
                raise ValueError(
                    f'size={size!r}: {config} takes frames of {self.metadata.size} only')
        elif suffix in ('.py', '.json', '.yaml', '.yml'):
            self.runtime, self.metadata, self.precision = _from_config(config, checkpoint, options)
        else:
            raise ValueError(f'{config}: expected a config (.py), a file of tools/export.py '
                             f'({", ".join(EXPORTED)}) or one of {[*SHIPPED]}; a checkpoint comes '
                             'second')
        self.backend = backend
        # A file for frames of one size has a batch of one, and so has every PyTorch program.
        self._one_at_a_time = bool(self.metadata.size or exported == 'torch')
        self.classes = self.metadata.classes
        self.palette = np.array(self.metadata.palette, np.uint8)
        self._last = threading.local()

    def __repr__(self) -> str:
        size = self.size or self.metadata.size or 'any'
        return (f'Predictor({self.metadata.config}, {self.metadata.checkpoint}: '
                f'{len(self.classes)} classes, backend={self.backend!r}, '
                f"precision={self.precision!r}, device='{self.device}', size={size})")

    def __call__(self, image: Any) -> np.ndarray | list[np.ndarray]:
        """Labels of a picture, or of several.

        Args:
            image: (H, W, 3), uint8, BGR, as OpenCV reads it. Grey pictures, those with an alpha
                channel, and 16-bit ones are converted as OpenCV does. Or a path. Or a list of
                these, or (N, H, W, 3); pictures of one size go through the network together.

        Returns:
            Class of each pixel, (H, W), uint8, at the size of the picture. For several, a list of
            them.

        Raises:
            FileNotFoundError: If a path leads nowhere.
            ValueError: If a file cannot be decoded, or an array is no picture.
        """
        several = isinstance(image, (list, tuple)) or getattr(image, 'ndim', 0) == 4
        images = [read_image(item) for item in image] if several else [read_image(image)]
        self._last.seconds = 0.0
        labels: list[Any] = [None] * len(images)
        for indices in _indices_by_shape(images):
            for index, result in zip(indices, self._predict([images[i] for i in indices]),
                                     strict=True):
                labels[index] = result
        return labels if several else labels[0]

    def _predict(self, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Labels of pictures of one size."""
        height, width = images[0].shape[:2]
        size = self._network_size(height, width)
        frames = [image if image.shape[:2] == size else
                  cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
                  for image in images]
        # PyTorch wants memory that is contiguous and writable; a single picture that is so is not
        # copied.
        batch = (np.require(frames[0], requirements=['C', 'W'])[None] if len(frames) == 1 else
                 np.stack(frames))
        rows = AxisTransform(size[0], 0, size[0], False, height)
        columns = AxisTransform(size[1], 0, size[1], False, width)
        for part in np.split(batch, len(batch)) if self._one_at_a_time else [batch]:
            start = time.perf_counter()
            logits = self.runtime(part)
            if logits.is_cuda:
                torch.cuda.current_stream(logits.device).synchronize()
            self._last.seconds += time.perf_counter() - start
            for low in logits:
                labels = upsample_argmax(low, rows, columns, self.metadata.align_corners)
                yield labels.cpu().numpy()

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or self.metadata.network_size(height, width)

    @property
    def network_seconds(self) -> float:
        """How long the network took in this thread's last call, without what is around it."""
        return getattr(self._last, 'seconds', 0.0)

    def warm_up(self, height: int | None = None, width: int | None = None, batch: int = 1) -> None:
        """Compiles for pictures of this size, so that the first is as fast as the others.

        On a GPU PyTorch compiles the network, which may take a minute, and records its CUDA graph.

        Args:
            height: Of the pictures. By default that of the network's input, where ``size``, the
                config or the file gives it.
            width: Likewise.
            batch: How many at a time.

        Raises:
            ValueError: If the size is not given and nothing else gives it, or is less than 1.
        """
        if height is None and width is None:
            width, height = self.metadata.scale or (None, None)
            height, width = self.size or self.metadata.size or (height, width)
            if height is None:
                raise ValueError('The network takes pictures of any size: warm_up(height, width)')
        height, width = _positive('height, width', (height, width), 2)
        batch, = _positive('batch', batch, 1)
        if isinstance(self.runtime, TorchRuntime) and self.device.type == 'cuda':
            self.runtime.compile(np.zeros((1 if self._one_at_a_time else batch,
                                           *self._network_size(height, width), 3), np.uint8))
        for _ in range(2):  # The CUDA graph of a size is recorded when the size comes again.
            self(np.zeros((batch, height, width, 3), np.uint8))

    def overlay(self, image: Any, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
        """The picture with its labels in the colours of the palette.

        Args:
            image: (H, W, 3), uint8, BGR, or a path.
            labels: (H, W), what the predictor returned. Ids without a class leave the picture.
            opacity: Of the colours, 0 to 1.

        Returns:
            (H, W, 3), uint8, BGR.
        """
        image = read_image(image)
        if image.shape[:2] != labels.shape:
            raise ValueError(f'labels of {labels.shape} for a picture of {image.shape[:2]}')
        if not 0 <= opacity <= 1:
            raise ValueError(f'opacity={opacity!r}: expected a number from 0 to 1')
        colours = colour_table(self.metadata.palette)[:, None, ::-1]  # RGB -> BGR
        blended = cv2.addWeighted(
            image, 1 - opacity, cv2.LUT(cv2.merge([labels] * 3), colours), opacity, 0)
        other = labels >= len(self.palette)
        if other.any():
            blended[other] = image[other]
        return blended


def _from_config(config: str | os.PathLike | Config, checkpoint: str | os.PathLike | None,
                 options: Options) -> tuple[Runtime, ExportMetadata, str]:
    """What runs the network of a config with a checkpoint's weights; its metadata and precision."""
    backend, device = options.backend, options.device
    if checkpoint is None:
        name = config.filename if isinstance(config, Config) else config
        print_log(f'{name} without a checkpoint: the weights are random',
                  logger='current', level=logging.WARNING)
    model = init_model(config if isinstance(config, Config) else str(config),
                       None if checkpoint is None else str(checkpoint), device='cpu')
    metadata = ExportMetadata.from_model(model, checkpoint)
    precision = _choose_precision(options, PRECISIONS[backend])
    network = FrameNetwork(model, WINOGRAD_HEADS.get((backend, device.type, precision)))
    if backend == 'torch':
        return TorchRuntime(network.set_precision(DTYPES[precision]), device), metadata, precision
    convert = converters.openvino_model if backend == 'openvino' else converters.onnx_model
    return _start(convert(network, metadata), precision, options), metadata, precision


def _from_exported_file(path: Path, checkpoint: str | os.PathLike | None,
                        options: Options) -> tuple[Runtime, ExportMetadata, str]:
    """The same for a file that tools/export.py wrote, checked against what it says of itself."""
    if checkpoint:
        raise ValueError(f'{path} holds its weights: expected no checkpoint beside it')
    metadata, model = read_exported_file(path)
    if options.precision == 'auto' and metadata.precision != 'fp32':
        options = options._replace(precision=metadata.precision)
    possible = PRECISIONS[options.backend]
    # The precision of an INT8 file, and of a PyTorch program, was fixed when it was exported.
    if metadata.precision == 'int8' or options.backend == 'torch':
        possible = (metadata.precision, )
    precision = _choose_precision(options, possible)
    try:
        runtime = _start(model, precision, options)
        found = tuple(runtime(np.zeros((1, *(metadata.size or PROBE_SIZE), 3), np.uint8)).shape)
    except ImportError:
        raise
    except Exception as error:  # Each runtime raises its own.
        raise ValueError(f'{path} cannot be run: {short_reason(error)}') from error
    if len(found) != 4 or found[1] != len(metadata.classes):
        raise ValueError(f'{path} says that it has {len(metadata.classes)} classes, but its logits '
                         f'are {found}, expected (1, {len(metadata.classes)}, height, width)')
    if isinstance(runtime, OpenVINORuntime) and not metadata.size:
        runtime.forget()  # Else the trial's size would take the place of the first real one.
    return runtime, metadata, precision


def _start(model: Any, precision: str, options: Options) -> Runtime:
    if options.backend == 'openvino':
        return OpenVINORuntime(model, precision, options.threads)
    if options.backend == 'onnxruntime':
        return ONNXRuntimeRuntime(model, options.device, options.threads)
    return TorchRuntime(model, options.device)


def _device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except RuntimeError:
        found = None
    if found is None or found.type not in ('cpu', 'cuda'):
        raise ValueError(f"device={device!r}: expected 'cpu' or 'cuda'")
    if found.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'device={device!r}: PyTorch finds no GPU')
    return found


def _choose_precision(options: Options, possible: tuple[str, ...]) -> str:
    if options.device.type == 'cpu':  # FP16 is for GPUs: few processors can multiply it.
        possible = tuple(name for name in possible if name != 'fp16')
    if options.precision == 'auto':
        wish = ('fp16' if options.device.type == 'cuda' else
                'bf16' if 'bf16' in possible and bf16_is_faster() else 'fp32')
        return wish if wish in possible else 'fp32'
    if options.precision not in possible:
        raise ValueError(f"precision={options.precision!r}: {options.backend!r} has 'auto' and "
                         f'{list(possible)} here')
    return options.precision


def _positive(name: str, value: Any, number: int) -> tuple[int, ...]:
    """So many whole numbers from 1, as ints; NumPy's, and arrays of them, are accepted."""
    found = np.atleast_1d(value)
    if found.shape != (number, ) or found.dtype.kind not in 'iu' or (found < 1).any():
        expected = {1: 'a whole number', 2: '(height, width), whole numbers'}[number]
        raise ValueError(f'{name}={value!r}: expected {expected} from 1')
    return tuple(found.tolist())


def _indices_by_shape(images: list[np.ndarray]) -> Iterable[list[int]]:
    groups: dict[tuple, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return groups.values()
