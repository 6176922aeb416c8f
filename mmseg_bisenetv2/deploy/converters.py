"""Conversion to ONNX, OpenVINO (also quantised to INT8) and torch.export, and writing the files."""
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmseg_bisenetv2.deploy.metadata import METADATA_FILE, METADATA_KEY, ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork, ImageNetwork, LabelNetwork
from mmseg_bisenetv2.deploy.runtimes import import_optional

OPSET = 18
TRACED_SIZE = (96, 160)  # (height, width) with which a graph for any size is traced
# These layers, 7 % of the multiplications, stay in floating point. The first convolution would pass
# on what quantising the image loses, and in the semantic branch every addition and multiplication
# would be quantised once more. Quantising the first costs 0.4 to 0.8 % of the labels, quantising a
# stage of the branch 0.4 to 6 %, and each saves 5 % of the time at best. The aggregation's AvgPool
# must not be in INT8 at all: OpenVINO (2026.4) then pads it with the integer 0, which does not
# stand for the number 0 in an asymmetric range. The borders are then wrong, and 6 % of the labels
# are lost at 480x360.
NOT_QUANTISED = [r'.*backbone\.detail\.detail_branch\.0\.0\..*',
                 r'.*backbone\.semantic\..*',
                 r'.*backbone\.bga(?!\.(conv|detail_down\.0)\.).*',
                 r'aten::.*']  # what LabelNetwork does with the logits
# The share of a picture's activations, at either end, that the range of an INT8 layer leaves out.
# On pictures of CamVid, with a network trained on RUGD, this keeps 98.3 % of FP32's labels; ranges
# that reach to the extremes keep 97.8 %, and ten times this share keeps 97.9 %. On a picture of
# RUGD the three keep 99.3, 99.2 and 98.6 %.
OUTLIERS = 5e-5


def onnx_model(network: FrameNetwork, metadata: ExportMetadata) -> Any:
    """An ONNX model: 'frames' (N, H, W, 3) uint8 BGR -> 'labels' (N, H, W) uint8.

    Args:
        network: In float32.
        metadata: Goes into the model. Without a ``size`` in it, the model takes any size and batch.

    Returns:
        An ``onnx.ModelProto`` with a tensor 'logits' (N, C, H/8, W/8) inside.
    """
    return _to_onnx(LabelNetwork(network, metadata.align_corners), _example_frames(metadata),
                    metadata, dict(frames={0: 'n', 1: 'height', 2: 'width'}), ['labels', 'logits'])


def raw_onnx_model(network: ImageNetwork, metadata: ExportMetadata) -> Any:
    """An ONNX model: 'images' (N, 3, H, W) normalised float32 -> 'logits' (N, C, H/8, W/8).

    The arguments are those of :func:`onnx_model`.
    """
    images = torch.zeros(1, 3, *(metadata.size or TRACED_SIZE))
    return _to_onnx(network, images, metadata, dict(images={0: 'n', 2: 'height', 3: 'width'}),
                    ['logits'])


def _example_frames(metadata: ExportMetadata) -> Tensor:
    """Frames (1, H, W, 3) to trace with."""
    return torch.zeros(1, *(metadata.size or TRACED_SIZE), 3, dtype=torch.uint8)


def _to_onnx(network: nn.Module, sample: Tensor, metadata: ExportMetadata, inputs: dict,
             outputs: list[str]) -> Any:
    onnx = import_optional('onnx')
    import_optional('onnxscript')
    with _quiet():
        program = torch.onnx.export(
            network.eval(), (sample, ), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=outputs,
            dynamic_shapes=None if metadata.size else tuple(inputs.values()))
    assert program is not None  # It is None where a file is written.
    model = program.model_proto
    for output in list(model.graph.output)[1:]:  # The logits stay inside, under their name.
        model.graph.output.remove(output)
    for node in model.graph.node:  # Notes on the Python source are half of the file's text.
        del node.metadata_props[:]
        node.doc_string = ''
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.to_json()
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's notes on operators that nothing here uses."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def openvino_model(network: FrameNetwork, metadata: ExportMetadata,
                   calibration: Sequence[np.ndarray] = ()) -> Any:
    """An ``openvino.Model``: 'frames' (N, H, W, 3) uint8 BGR -> 'labels' (N, H, W) uint8.

    In INT8 detail branch, decode head and the aggregation's two large convolutions are quantised,
    93 % of the multiplications.

    Args:
        network: In float32.
        metadata: Goes into the model. Without a ``size`` in it, the model takes any size and batch.
        calibration: Frames (H, W, 3), uint8, BGR, at the size that the network will see, to
            quantise with where the precision is INT8; a few dozen are enough.

    Returns:
        A model with a tensor 'logits' (N, C, H/8, W/8) inside.
    """
    openvino = import_optional('openvino')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # The tracer warns of constants that are really constant.
        model = openvino.convert_model(LabelNetwork(network, metadata.align_corners).eval(),
                                       example_input=_example_frames(metadata))
    model.reshape([1, *metadata.size, 3] if metadata.size else [-1, -1, -1, 3])
    if metadata.precision == 'int8':
        model = _quantise(model, calibration)
    logits = model.get_results()[1]
    logits.input_value(0).get_tensor().set_names({'logits'})
    model.remove_result(logits)  # The logits stay inside, under their name.
    model.input(0).set_names({'frames'})
    model.output(0).set_names({'labels'})
    model.set_rt_info(metadata.to_json(), METADATA_KEY)
    return model


def _quantise(model: Any, frames: Sequence[np.ndarray]) -> Any:
    nncf = import_optional('nncf')
    nncf.set_log_level(logging.ERROR)  # It would print a line for each layer that is left out.
    advanced = import_optional('nncf.quantization.advanced_parameters')
    ranges = import_optional('nncf.quantization.range_estimator')
    bound = ranges.StatisticsCollectorParameters(
        statistics_type=ranges.StatisticsType.QUANTILE,
        aggregator_type=ranges.AggregatorType.MEAN, quantile_outlier_prob=OUTLIERS)
    # Bias correction costs up to 1 % of the labels. The overflow fix takes one bit from the weights
    # of the first quantised layer; it is meant for a layer that reads the image, and here that one
    # is not quantised.
    return nncf.quantize(
        model, nncf.Dataset(frames, lambda frame: np.ascontiguousarray(frame)[None]),
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(frames),
        ignored_scope=nncf.IgnoredScope(patterns=NOT_QUANTISED),
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            disable_bias_correction=True, overflow_fix=advanced.OverflowFix.DISABLE,
            activations_range_estimator_params=ranges.RangeEstimatorParameters(bound, bound)))


def torch_program(network: FrameNetwork,
                  metadata: ExportMetadata) -> torch.export.ExportedProgram:
    """A ``torch.export`` program: frames (1, H, W, 3) uint8 -> labels and logits.

    Without a size in the metadata it takes any from 33x33: a side of less gives the context a size
    of one, which broadcasts, and that would be another graph. The batch is 1 for the same reason.
    """
    auto = torch.export.Dim.AUTO
    return torch.export.export(
        LabelNetwork(network, metadata.align_corners).eval(), (_example_frames(metadata), ),
        dynamic_shapes=None if metadata.size else ({1: auto, 2: auto}, ))


def save_model(model: Any, path: str | Path, metadata: ExportMetadata) -> list[Path]:
    """Writes any of these models, as its suffix says: .onnx, .xml or .pt2. Returns the files."""
    path = Path(path)
    if path.suffix == '.onnx':
        import_optional('onnx').save(model, path)
    elif path.suffix == '.xml':
        import_optional('openvino').save_model(model, path, compress_to_fp16=False)
        return [path.with_suffix('.bin'), path]
    else:
        torch.export.save(model, path, extra_files={METADATA_FILE: metadata.to_json()})
    return [path]
