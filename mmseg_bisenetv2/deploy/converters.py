"""Files for other runtimes, each run at once in its runtime and compared with PyTorch."""
import contextlib
import io
import json
import logging
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from mmseg_bisenetv2.deploy.metadata import FILE, KEY, ExportMetadata
from mmseg_bisenetv2.deploy.network import LabelNetwork
from mmseg_bisenetv2.deploy.runtimes import import_optional

OPSET = 18
TRACED_SIZE = (96, 160)  # of a dynamic graph: any will do
# 7 % of the multiplications stay as they are. The first convolution would pass on what quantising
# the image loses; in the semantic branch every addition and multiplication would quantise once
# more. Quantised too, the first costs 0.4 to 0.8 % of the labels, a stage of the branch 0.4 to 6 %,
# and each gives 5 % of the time at best. The aggregation's AvgPool must not be in INT8 at all:
# OpenVINO (2026.4) then pads it with the integer 0, which is not the number 0 in an asymmetric
# range; wrong borders, and 6 % of the labels lost at 480x360.
NOT_QUANTISED = [r'.*backbone\.detail\.detail_branch\.0\.0\..*',
                 r'.*backbone\.semantic\..*',
                 r'.*backbone\.bga(?!\.(conv|detail_down\.0)\.).*']
# The share of a picture's activations that its range leaves out, at either end. Ranges up to the
# extremes keep 97.8 % of FP32's labels on pictures of CamVid, for a network trained on RUGD, these
# 98.3 (99.2 and 99.3 on a picture of RUGD); ten times as much 97.9 and 98.6.
OUTLIERS = 5e-5


def example(size):
    """Frames (1, H, W, 3) to trace with."""
    return torch.zeros(1, *(size or TRACED_SIZE), 3, dtype=torch.uint8)


def onnx_model(network, metadata, size=None):
    """An ONNX model: 'frames' (N, H, W, 3) uint8 BGR -> 'labels' (N, H, W) uint8.

    Args:
        network (FrameNetwork): In float32.
        metadata (ExportMetadata): Goes into its metadata.
        size (tuple, optional): (height, width) of the frames; any by default, N too.

    Returns:
        onnx.ModelProto: With a tensor 'logits' (N, C, H/8, W/8) inside.
    """
    return _to_onnx(
        LabelNetwork(network, metadata.align_corners), example(size), metadata,
        inputs=dict(frames={0: 'n', 1: 'height', 2: 'width'}), outputs=['labels', 'logits'],
        dynamic=size is None)


def raw_onnx_model(network, metadata, size=None):
    """An ONNX model: 'images' (N, 3, H, W) normalised float32 -> 'logits' (N, C, H/8, W/8).

    Args:
        network (ImageNetwork): In float32.
        metadata (ExportMetadata): Goes into its metadata.
        size (tuple, optional): (height, width) of the images; any by default, N too.
    """
    return _to_onnx(
        network, torch.zeros(1, 3, *(size or TRACED_SIZE)), metadata,
        inputs=dict(images={0: 'n', 2: 'height', 3: 'width'}), outputs=['logits'],
        dynamic=size is None)


def _to_onnx(network, sample, metadata, inputs, outputs, dynamic):
    onnx = import_optional('onnx')
    import_optional('onnxscript')
    with _quiet():
        program = torch.onnx.export(
            network.eval(), (sample, ), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=outputs,
            dynamic_shapes=tuple(inputs.values()) if dynamic else None)
    model = program.model_proto
    for output in list(model.graph.output)[1:]:  # stays inside, by its name
        model.graph.output.remove(output)
    for node in model.graph.node:  # where each came from in Python: half of the text of the file
        del node.metadata_props[:]
        node.doc_string = ''
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, metadata.to_json()
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _quiet():
    """Without the exporter's notes on operators that nothing here uses."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def openvino_model(network, metadata, size=None):
    """An OpenVINO model: 'frames' (N, H, W, 3) uint8 BGR -> 'labels' (N, H, W) uint8.

    Args:
        network (FrameNetwork): In float32.
        metadata (ExportMetadata): Goes into its rt_info.
        size (tuple, optional): (height, width) of the frames; any by default, N too.

    Returns:
        openvino.Model: With a tensor 'logits' (N, C, H/8, W/8) inside.
    """
    return with_labels(openvino_logits(network, size), metadata)


def openvino_logits(network, size=None):
    """The part of :func:`openvino_model` up to the logits, which alone is quantised."""
    openvino = import_optional('openvino')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the tracer: constants that are constant indeed
        model = openvino.convert_model(network.eval(), example_input=example(size))
    model.reshape([1, *size, 3] if size else [-1, -1, -1, 3])
    model.input(0).set_names({'frames'})
    model.output(0).set_names({'logits'})
    return model


def with_labels(model, metadata):
    """Appends resizing and argmax to an OpenVINO model that gives logits; see LabelNetwork."""
    openvino = import_optional('openvino')
    ops = import_optional('openvino.opset13')
    frames, logits = model.input(0), model.output(0).get_node().input_value(0)
    size = ops.gather(ops.shape_of(frames), np.array([1, 2]), np.array(0))
    full = ops.interpolate(
        logits, size, 'linear_onnx', 'sizes', axes=np.array([2, 3]),
        coordinate_transformation_mode=(
            'align_corners' if metadata.align_corners else 'half_pixel'))
    highest = ops.reduce_max(full, np.array([1]), keep_dims=True)
    number = len(metadata.classes)
    classes = np.arange(number, dtype=np.float32).reshape(1, -1, 1, 1)
    chosen = ops.select(ops.greater_equal(full, highest), classes, np.float32(number))
    labels = ops.convert(ops.reduce_min(chosen, np.array([1])), 'u8')
    logits.get_tensor().set_names({'logits'})
    result = openvino.Model([labels.output(0)], model.get_parameters(), 'bisenetv2')
    result.output(0).set_names({'labels'})
    result.set_rt_info(metadata.to_json(), KEY)
    return result


def quantise(network, metadata, frames, size=None):
    """An OpenVINO model in INT8, calibrated on frames; see :func:`openvino_model`.

    Detail branch, decode head and the aggregation's two large convolutions are in INT8, 93 % of the
    multiplications.

    Args:
        network (FrameNetwork): In float32.
        metadata (ExportMetadata): Goes into its rt_info.
        frames (Sequence[np.ndarray]): Calibration frames (H, W, 3), uint8, BGR, at the size that
            the network will see; a few dozen are enough.
        size (tuple, optional): As for :func:`openvino_model`.
    """
    # Bias correction costs up to 1 % of the labels. The overflow fix takes one bit from the weights
    # of the first quantised layer, meant for one that reads the image, which is not so here.
    nncf = import_optional('nncf')
    nncf.set_log_level(logging.ERROR)  # else a line for each layer that is left out
    advanced = import_optional('nncf.quantization.advanced_parameters')
    ranges = import_optional('nncf.quantization.range_estimator')
    bound = ranges.StatisticsCollectorParameters(
        statistics_type=ranges.StatisticsType.QUANTILE,
        aggregator_type=ranges.AggregatorType.MEAN, quantile_outlier_prob=OUTLIERS)
    model = nncf.quantize(
        openvino_logits(network, size),
        nncf.Dataset(frames, lambda frame: np.ascontiguousarray(frame)[None]),
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(frames),
        ignored_scope=nncf.IgnoredScope(patterns=NOT_QUANTISED),
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            disable_bias_correction=True, overflow_fix=advanced.OverflowFix.DISABLE,
            activations_range_estimator_params=ranges.RangeEstimatorParameters(bound, bound)))
    return with_labels(model, metadata)


def torch_program(network, metadata, size=None):
    """A ``torch.export`` program: frames (N, H, W, 3) uint8 -> labels and logits.

    Args:
        network (FrameNetwork): In float32.
        metadata (ExportMetadata): How logits are resized.
        size (tuple, optional): (height, width) of the frames; any from 33x33 by default (smaller
            ones are of another graph: a size of one broadcasts). N is 1 for the same reason.
    """
    sample = example(size)
    dynamic = None
    if size is None:
        auto = torch.export.Dim.AUTO
        dynamic = ({1: auto, 2: auto}, )
    return torch.export.export(
        LabelNetwork(network, metadata.align_corners).eval(), (sample, ),
        dynamic_shapes=dynamic)


def save(model, path, metadata):
    """Writes any of these models.

    Args:
        model: An ONNX, OpenVINO or torch.export model.
        path (str | Path): Ends in .onnx, .xml or .pt2.
        metadata (ExportMetadata): For the archive of ``torch.export``.

    Returns:
        list[Path]: The files.
    """
    path = Path(path)
    if path.suffix == '.onnx':
        import_optional('onnx').save(model, path)
    elif path.suffix == '.xml':
        import_optional('openvino').save_model(model, path, compress_to_fp16=False)
        return [path.with_suffix('.bin'), path]
    else:
        torch.export.save(model, path, extra_files={FILE: metadata.to_json()})
    return [path]


def read(path):
    """Reads a file that :func:`save` wrote.

    Args:
        path (str | Path): Ends in .onnx, .xml or .pt2.

    Returns:
        tuple: Its :class:`ExportMetadata`, and the ONNX, OpenVINO or torch.export model.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it cannot be read, or is of another origin.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'No file {path}')
    try:
        if path.suffix == '.onnx':
            model = import_optional('onnx').load(path)
            text = {entry.key: entry.value for entry in model.metadata_props}.get(KEY)
        elif path.suffix == '.xml':
            model = import_optional('openvino').Core().read_model(path)
            text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        else:
            _refuse_pickles(path)
            extra = {FILE: ''}
            model = torch.export.load(path, extra_files=extra)
            text = extra[FILE]
    except ImportError:
        raise
    except Exception as error:  # each library has its own
        reason = ' '.join(str(error).split())[:300]
        raise ValueError(f'{path} cannot be read: {reason}') from error
    return ExportMetadata.from_json(text, path), model


def _refuse_pickles(path):
    """Raises where ``torch.export.load`` would unpickle anything but tensors."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith('.pt'):  # example inputs
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif name.endswith('_config.json'):  # of weights and constants
                entries = json.loads(archive.read(name))['config'].values()
                if any(entry['use_pickle'] for entry in entries):
                    raise ValueError(f'{name} holds pickled objects')
