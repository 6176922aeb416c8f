"""What tools/export.py does: convert, run the file in its runtime, compare it, keep it or not."""
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mmseg_bisenetv2.deploy import converters
from mmseg_bisenetv2.deploy.exported_file import read_exported_file
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.deploy.metadata import ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork, ImageNetwork
from mmseg_bisenetv2.deploy.runtimes import import_optional, openvino_config, openvino_core
from mmseg_bisenetv2.metrics import IoUMetric, mean_iou
from mmseg_bisenetv2.models.upsample_argmax import upsample_argmax

from mmseg.models.segmentors import EncoderDecoder

# Least share of pixels, in per cent, whose label is that of PyTorch in FP32
MIN_AGREEMENT = dict(fp32=99.9, bf16=99.0, int8=98.0)
MAX_MIOU_DROP = 0.5  # points of mIoU that a file may lose

# From a frame (H, W, 3) to its labels (H, W) and logits (C, h, w); one of them may be None.
FrameRunner = Callable[[np.ndarray], tuple[np.ndarray | None, np.ndarray | None]]


class DisagreementError(RuntimeError):
    """An exported file does not do what PyTorch does; it was not written."""


def export_and_verify(
        model: EncoderDecoder, metadata: ExportMetadata, path: str | Path,
        pictures: Sequence[str | Path | np.ndarray], raw: bool = False,
        calibration: Sequence[str | Path | np.ndarray] = (),
        min_agreement: float | None = None, truths: Sequence[np.ndarray] | None = None,
        max_miou_drop: float | None = None) -> dict[str, Any]:
    """Exports, runs the file in its runtime, and keeps it if it agrees.

    Args:
        model: What ``mmseg.apis.init_model`` returned.
        metadata: Of it; ``precision`` and ``size`` are those of the file.
        path: Ends in .onnx, .xml or .pt2.
        pictures: Paths, or arrays (H, W, 3), uint8, BGR, to compare on.
        raw: Normalised images in and logits out; for .onnx only.
        calibration: Pictures to quantise with, where ``precision`` is 'int8'.
        min_agreement: In per cent; by default MIN_AGREEMENT.
        truths: The true labels of the pictures, for the mIoU.
        max_miou_drop: How many points of mIoU the file may lose, with ``truths``; by default
            MAX_MIOU_DROP.

    Returns:
        The figures: agreement and largest difference of the logits, mIoU if asked for.

    Raises:
        DisagreementError: If a figure is out of its bounds. Nothing is written then.
        ValueError: If the options do not go together, or a picture cannot be read.
    """
    path, precision = Path(path), metadata.precision
    if path.suffix not in ('.onnx', '.xml', '.pt2'):
        raise ValueError(f'{path}: expected a name that ends in .onnx, .xml or .pt2. A TensorRT '
                         'engine is made from the .onnx by trtexec')
    if raw and path.suffix != '.onnx':
        raise ValueError(f'{path}: raw export is for .onnx')
    if precision != 'fp32' and path.suffix != '.xml':
        raise ValueError(f'{path}: {precision} is for OpenVINO, .xml')
    if precision == 'int8' and not calibration:
        raise ValueError("INT8 needs pictures to calibrate on: --calibrate 'train/*.png'")
    if calibration and precision != 'int8':
        raise ValueError(f'Pictures to calibrate on, and {precision}: they are for INT8, '
                         '--precision int8')
    if max_miou_drop is not None and truths is None:
        raise ValueError(f'A limit of {max_miou_drop} points of mIoU needs true labels: --val N')
    network = FrameNetwork(model)

    def frame(picture: str | Path | np.ndarray) -> np.ndarray:
        image = read_image(picture)
        wanted = metadata.network_size(*image.shape[:2])
        return cv2.resize(image, wanted[::-1]) if image.shape[:2] != wanted else image

    # One that cannot be read is noticed before the conversion, which takes minutes in INT8.
    frames, calibration_frames = list(map(frame, pictures)), list(map(frame, calibration))
    if path.suffix == '.onnx':
        built = (converters.raw_onnx_model(ImageNetwork(model), metadata) if raw else
                 converters.onnx_model(network, metadata))
    elif path.suffix == '.pt2':
        built = converters.torch_program(network, metadata)
    else:
        built = converters.openvino_model(network, metadata, calibration_frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An earlier file of this name stays until the new one is known to be right.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        files = converters.save_model(built, Path(folder, path.name), metadata)
        run = _raw_runner(files[-1], model) if raw else _frame_runner(files[-1], precision)
        figures = _compare(path, run, network, metadata, frames, truths)
        least = MIN_AGREEMENT[precision] if min_agreement is None else min_agreement
        if not figures['agreement'] >= least:
            raise DisagreementError(
                f'{path} would agree with PyTorch on {figures["agreement"]:.3f} % of the pixels, '
                f'expected {least} %. It was not written')
        most = MAX_MIOU_DROP if max_miou_drop is None else max_miou_drop
        if truths and not figures['miou'] >= figures['pytorch_miou'] - most:
            raise DisagreementError(
                f'{path} would have {figures["miou"]:.2f} % mIoU, PyTorch '
                f'{figures["pytorch_miou"]:.2f} %, expected {most} less at most. It was not '
                'written')
        figures['size_mb'] = sum(file.stat().st_size for file in files) / 1e6
        for file in files:
            os.replace(file, path.with_name(file.name))
    return figures


def _compare(path: Path, run: FrameRunner, network: FrameNetwork, metadata: ExportMetadata,
             frames: list[np.ndarray], truths: Sequence[np.ndarray] | None) -> dict[str, Any]:
    same = total = 0
    largest = 0.0
    counts: dict[str, Any] = {}
    for i, frame in enumerate(frames):
        with torch.inference_mode():
            logits = network(torch.from_numpy(frame[None]))[0].float()
        height, width = frame.shape[:2]
        expected = upsample_argmax(logits, height, width, metadata.align_corners).numpy()
        labels, other = run(frame)
        if labels is None:
            labels = upsample_argmax(torch.from_numpy(other), height, width,
                                     metadata.align_corners).numpy()
        if labels.shape != expected.shape or labels.dtype != np.uint8:
            raise DisagreementError(f'{path} gives labels {labels.shape} of {labels.dtype}, '
                                    f'expected {expected.shape} of uint8. It was not written')
        same += (labels == expected).sum()
        total += labels.size
        if other is not None:
            largest = max(largest, float(np.abs(other - logits.numpy()).max()))
        if not truths:
            continue
        truth = truths[i]
        for name, result in (('pytorch_miou', expected), ('miou', labels)):
            result = cv2.resize(result, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
            counts[name] = counts.get(name, 0) + IoUMetric.intersect_and_union(
                torch.from_numpy(result), torch.from_numpy(truth), len(metadata.classes),
                network.decode_head.ignore_index).to_dense()
    return dict(agreement=100 * same / total, logit_difference=largest or None,
                **{name: mean_iou(confusion) for name, confusion in counts.items()})


def _frame_runner(path: Path, precision: str) -> FrameRunner:
    """An exported file in its runtime, used as somebody without this package would use it."""
    if path.suffix == '.onnx':
        session = import_optional('onnxruntime').InferenceSession(
            path, providers=['CPUExecutionProvider'])
        return lambda frame: (session.run(['labels'], {'frames': frame[None]})[0][0], None)
    if path.suffix == '.xml':
        compiled = openvino_core().compile_model(path, 'CPU', openvino_config(precision))
        return lambda frame: (compiled(frame[None])['labels'][0].copy(), None)
    # Read by this package's reader, which shows that Predictor will accept it.
    program = read_exported_file(path)[1].module()

    def run(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            labels, logits = program(torch.from_numpy(frame[None]))
        return labels[0].numpy(), logits[0].numpy()

    return run


def _raw_runner(path: Path, model: EncoderDecoder) -> FrameRunner:
    """A file that takes normalised images, which the model's own preprocessor makes."""
    session = import_optional('onnxruntime').InferenceSession(
        path, providers=['CPUExecutionProvider'])

    def run(frame: np.ndarray) -> tuple[None, np.ndarray]:
        image = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))
        images = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
        return None, session.run(['logits'], {'images': images.numpy()})[0][0]

    return run
