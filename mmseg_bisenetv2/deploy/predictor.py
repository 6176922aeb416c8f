"""From a picture to its label map, on the fastest runtime that is installed."""
import importlib.util
import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.logging import print_log

from mmseg_bisenetv2.deploy import converters
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.deploy.metadata import ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.deploy.runtimes import (
    ONNXRuntimeRuntime,
    OpenVINORuntime,
    TorchRuntime,
    bf16_is_faster,
)
from mmseg_bisenetv2.deploy.winograd import (
    OpenVINOWinogradHead,
    OpenVINOWinogradHeadBF16,
    WinogradHead,
)
from mmseg_bisenetv2.models.upsample_argmax import AxisTransform, upsample_argmax

from mmseg.apis import init_model

PRECISIONS = dict(  # of each backend
    torch=dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16),
    openvino=('fp32', 'bf16'),
    onnxruntime=('fp32', ))
EXPORTED = {'.pt2': 'torch', '.xml': 'openvino', '.onnx': 'onnxruntime'}  # and what runs it


class Predictor:
    """Label maps of pictures: ``labels = Predictor(config, checkpoint)(cv2.imread('street.png'))``.

    It may be called from several threads.

    Args:
        config (str | Path): A config; or a file that tools/export.py wrote (.onnx, .xml, .pt2),
            which says itself what it holds and which backend runs it.
        checkpoint (str | Path, optional): Weights of any layout. None: random ones.
        backend (str): 'torch', 'openvino', 'onnxruntime', or 'auto', the fastest that is installed:
            'openvino' on a CPU, else 'torch'. ``.backend`` says which.
        precision (str): 'fp32', 'bf16', 'fp16', or 'auto': FP16 on a GPU, BF16 on processors that
            multiply it faster than FP32, where the backend can, else FP32. ``.precision`` says
            which; for a file that was quantised it is 'int8'.
        device (str | torch.device, optional): By default 'cuda' if there is a GPU, else 'cpu'.
        size (tuple, optional): (height, width) at which the network sees every picture. By
            default as the config's test pipeline resizes, so that labels are those of `mim test`.
        threads (int, optional): Of the processor; all cores by default. This also sets PyTorch's
            number for the whole process, since PyTorch computes the labels.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If an option has a value that it, or this backend, does not know.
        TypeError: If the config's network cannot be deployed, see :class:`FrameNetwork`.
        ImportError: If the runtime asked for is not installed.
    """

    def __init__(self, config, checkpoint=None, backend='auto', precision='auto', device=None,
                 size=None, threads=None):
        try:
            self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        except RuntimeError as error:
            raise ValueError(f"device={device!r}: expected 'cpu' or 'cuda'") from error
        if self.device.type not in ('cpu', 'cuda'):
            raise ValueError(f"device={device!r}: expected 'cpu' or 'cuda'")
        if self.device.type == 'cuda' and not torch.cuda.is_available():
            raise ValueError(f'device={device!r}: PyTorch finds no GPU')
        self.size = None if size is None else _whole_numbers('size', size, 2)
        if threads is not None:
            threads, = _whole_numbers('threads', threads, 1)
            torch.set_num_threads(threads)
        self._last = threading.local()
        suffix = Path(config).suffix
        if suffix not in ('.py', '.json', '.yaml', '.yml', *EXPORTED):
            raise ValueError(f'{config}: expected a config (.py) or a file of tools/export.py '
                             f'({", ".join(EXPORTED)}); a checkpoint comes second')
        fixed = EXPORTED.get(suffix)
        self.backend = self._choose_backend(backend, fixed)
        if fixed:
            if checkpoint:
                raise ValueError(f'{config} holds its weights: expected no checkpoint beside it')
            self.metadata, model = converters.read(config)
            own = self.metadata.size
            if own and self.size not in (None, own):
                raise ValueError(f'size={size!r}: {config} takes frames of {own} only')
        else:
            if checkpoint is None:
                print_log(f'{config} without a checkpoint: the weights are random',
                          logger='current', level=logging.WARNING)
            model = init_model(str(config), checkpoint and str(checkpoint), device='cpu')
            self.metadata = ExportMetadata.from_model(model, checkpoint)
        self.precision = self._choose_precision(precision, fixed)
        if not fixed:
            fast = {('openvino', 'cpu', 'fp32'): OpenVINOWinogradHead,
                    ('openvino', 'cpu', 'bf16'): OpenVINOWinogradHeadBF16,
                    ('torch', 'cpu', 'fp32'): WinogradHead}
            model = FrameNetwork(
                model, fast.get((self.backend, self.device.type, self.precision)))
        # torch.export fixes a dimension of one
        self._one_at_a_time = fixed == 'torch' or self.metadata.size is not None
        self.runtime = self._start(model, fixed, threads)
        self.classes = self.metadata.classes
        self.palette = np.array(self.metadata.palette, np.uint8).reshape(-1, 3)

    def _choose_backend(self, backend, fixed):
        if backend not in ('auto', *PRECISIONS):
            raise ValueError(f"backend={backend!r}: expected 'auto' or one of {[*PRECISIONS]}")
        if fixed and backend not in ('auto', fixed):
            raise ValueError(f'backend={backend!r}: this file is for {fixed!r}')
        backend = fixed or backend
        if backend == 'auto':
            fits = self.device.type == 'cpu' and importlib.util.find_spec('openvino')
            return 'openvino' if fits else 'torch'
        if backend == 'openvino' and self.device.type != 'cpu':
            raise ValueError(f"backend='openvino' runs on the CPU, not on {self.device}")
        return backend

    def _choose_precision(self, precision, fixed):
        if self.metadata.precision == 'int8':
            if precision not in ('auto', 'int8'):
                raise ValueError(f"precision={precision!r}, but the file was quantised to 'int8'")
            return 'int8'
        possible = PRECISIONS[self.backend]
        if fixed == 'torch':
            possible = ('fp32', )  # fixed at export
        elif self.device.type == 'cpu':
            possible = [name for name in possible if name != 'fp16']  # no processor multiplies it
        if precision == 'auto' and self.metadata.precision != 'fp32':
            return self.metadata.precision  # what the file was made for
        if precision == 'auto':
            wish = 'fp16' if self.device.type == 'cuda' else 'bf16' if bf16_is_faster() else 'fp32'
            return wish if wish in possible else 'fp32'
        if precision not in possible:
            raise ValueError(f"precision={precision!r}: {self.backend!r} has 'auto' and "
                             f'{list(possible)} here')
        return precision

    def _start(self, model, fixed, threads):
        if self.backend == 'openvino':
            model = model if fixed else converters.openvino_model(model, self.metadata)
            return OpenVINORuntime(model, self.precision, threads)
        if self.backend == 'onnxruntime':
            model = model if fixed else converters.onnx_model(model, self.metadata)
            return ONNXRuntimeRuntime(model, self.device, threads)
        if not fixed:
            model.set_precision(PRECISIONS['torch'][self.precision])
        return TorchRuntime(model, self.device)

    def __call__(self, image):
        """Labels of a picture, or of several.

        Args:
            image: (H, W, 3), uint8, BGR, as OpenCV reads it. Grey pictures, those with an alpha
                channel, and 16-bit ones are converted as OpenCV does. Or a path. Or a list of
                these, or (N, H, W, 3); pictures of one size go through the network together.

        Returns:
            np.ndarray: Class of each pixel, (H, W), uint8, at the size of the picture. For
            several, a list of them.

        Raises:
            FileNotFoundError: If a path leads nowhere.
            ValueError: If a file cannot be decoded, or an array is no picture.
        """
        several = isinstance(image, (list, tuple)) or getattr(image, 'ndim', 0) == 4
        images = [read_image(item) for item in image] if several else [read_image(image)]
        self._last.seconds = 0.0
        labels = [None] * len(images)
        for indices in _same_size(images):
            for index, result in zip(indices, self._predict([images[i] for i in indices]),
                                     strict=True):
                labels[index] = result
        return labels if several else labels[0]

    def _predict(self, images):
        height, width = images[0].shape[:2]
        size = self._network_size(height, width)
        frames = [image if image.shape[:2] == size else
                  cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
                  for image in images]
        if len(frames) == 1:
            frame = np.require(frames[0], requirements='CW')  # as PyTorch wants it
            frames = frame.reshape(1, *frame.shape)
        else:
            frames = np.stack(frames)
        rows = AxisTransform(size[0], 0, size[0], False, height)
        columns = AxisTransform(size[1], 0, size[1], False, width)
        for part in np.split(frames, len(frames)) if self._one_at_a_time else [frames]:
            start = time.perf_counter()
            logits = self.runtime(part)
            if logits.is_cuda:
                torch.cuda.current_stream(logits.device).synchronize()
            self._last.seconds += time.perf_counter() - start
            for low in logits:
                labels = upsample_argmax(low, rows, columns, self.metadata.align_corners)
                yield labels.cpu().numpy()

    def _network_size(self, height, width):
        return self.size or self.metadata.network_size(height, width)

    @property
    def network_seconds(self):
        """How long the network took in this thread's last call, without what is around it."""
        return getattr(self._last, 'seconds', 0.0)

    def warm_up(self, height=None, width=None, batch=1):
        """Compiles for pictures of this size, so that the first is as fast as the others.

        On a GPU PyTorch compiles the network, which may take a minute, and its CUDA graph is
        recorded.

        Args:
            height (int, optional): Of the pictures. By default that of the network's input, where
                ``size``, the config or the file gives it.
            width (int, optional): Likewise.
            batch (int): How many at a time.

        Raises:
            ValueError: If the size is not given and nothing else gives it.
        """
        if (height is None) != (width is None):
            raise ValueError('Expected both of height and width, or neither')
        scale = self.metadata.scale
        known = self.size or self.metadata.size or (scale and scale[::-1])
        if height is None and not known:
            raise ValueError('The network takes pictures of any size: warm_up(height, width)')
        height, width = known if height is None else (height, width)
        if self.backend == 'torch' and self.device.type == 'cuda':
            self.runtime.compile(np.zeros((1 if self._one_at_a_time else batch,
                                           *self._network_size(height, width), 3), np.uint8))
        for _ in range(2):  # the graph of a size is recorded when it comes again
            self(np.zeros((batch, height, width, 3), np.uint8))

    def overlay(self, image, labels, opacity=0.5):
        """The picture with its labels in the colours of the palette.

        Args:
            image: (H, W, 3), uint8, BGR, or a path.
            labels: (H, W), what the predictor returned. Ids without a class leave the picture.
            opacity: Of the colours, 0 to 1.

        Returns:
            np.ndarray: (H, W, 3), uint8, BGR.
        """
        image = read_image(image)
        if image.shape[:2] != labels.shape:
            raise ValueError(f'labels of {labels.shape} for a picture of {image.shape[:2]}')
        colours = np.zeros((256, 1, 3), np.uint8)
        colours[:len(self.palette), 0] = self.palette[:, ::-1]  # RGB -> BGR
        index = cv2.merge([labels] * 3)
        blended = cv2.addWeighted(image, 1 - opacity, cv2.LUT(index, colours), opacity, 0)
        other = labels >= len(self.palette)
        if other.any():
            blended[other] = image[other]
        return blended


def _whole_numbers(name, value, number):
    found = (value, ) if np.ndim(value) == 0 else tuple(value)
    if len(found) != number or not all(
            isinstance(item, (int, np.integer)) and item > 0 for item in found):
        expected = {1: 'a whole number', 2: '(height, width), whole numbers'}[number]
        raise ValueError(f'{name}={value!r}: expected {expected} from 1')
    return tuple(map(int, found))


def _same_size(images):
    groups = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return groups.values()
