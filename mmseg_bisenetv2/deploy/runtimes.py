"""What runs the network: PyTorch, OpenVINO or ONNX Runtime, all from frames to logits.

A runtime is called with frames (N, H, W, 3), uint8, BGR, C-contiguous, and returns logits
(N, C, h, w) as a tensor. It may be called from several threads.
"""
import functools
import importlib
import logging
import threading
import time

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch.export.passes import move_to_device_pass


def import_optional(module):
    """Imports an optional package.

    Raises:
        ImportError: That names the extra which brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{module} is not installed: pip install -c constraints.txt "mmseg_bisenetv2[deploy]"'
        ) from error


def cpu_has_bf16():
    """Whether the processor multiplies BF16 at all (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@functools.lru_cache(maxsize=1)
def bf16_is_faster():
    """Whether it does so faster than FP32: a convolution in both tells, in a tenth of a second.

    That it has the instructions does not tell. Those of AVX-512 take half of FP32's time on Zen 4,
    but twice of it on Sapphire Rapids without AMX, as virtual machines may show it.
    """
    if not cpu_has_bf16():
        return False
    image, kernel = torch.ones(1, 128, 32, 64), torch.ones(128, 128, 3, 3)
    seconds = {torch.float32: [], torch.bfloat16: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other on a busy machine
    for _ in range(5):
        for dtype, times in seconds.items():
            x, weight = (tensor.to(dtype, memory_format=torch.channels_last)
                         for tensor in (image, kernel))
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    fp32, bf16 = map(min, seconds.values())
    return 1.25 * bf16 < fp32  # less would not be worth the labels that it changes


class TorchRuntime:
    """The network itself, or an archive of ``torch.export``.

    On the CPU it runs in channels-last, on a GPU as one CUDA graph for each size of frame that
    comes again.

    Args:
        network (FrameNetwork | ExportedProgram): In the precision that it shall have.
        device (torch.device): Where.
    """

    MAX_GRAPHS = 4
    lock = threading.Lock()  # for all of them: while one records a graph no other may begin to

    def __init__(self, network, device):
        if isinstance(network, torch.export.ExportedProgram):
            self.network = program_logits(move_to_device_pass(network, str(device)))
        else:
            self.network = network.to(device)
        self.device = device
        self.graphs = {}
        self.compiled = False

    def compile(self, frames):
        """Has PyTorch compile the network once; warns where it cannot.

        Other sizes need no new compilation, but for a few: a batch after a single frame, sides of
        less than 33.

        Args:
            frames (np.ndarray): (N, H, W, 3), such as will come.
        """
        with self.lock:
            if self.compiled:
                return
            network = torch.compile(self.network, dynamic=True)
            try:
                with torch.inference_mode():
                    network(torch.from_numpy(frames).to(self.device))
            except Exception as error:  # no Triton, no compiler: each says so in its own way
                reason = str(error).strip().splitlines() or [type(error).__name__]
                print_log('PyTorch could not compile the network, which runs as it is: '
                          f'{reason[0]}', logger='current', level=logging.WARNING)
                return
            self.network, self.graphs, self.compiled = network, {}, True

    def __call__(self, frames):
        """See the module."""
        frames = torch.from_numpy(frames)
        with torch.inference_mode():
            return self.network(frames) if self.device.type == 'cpu' else self._replay(frames)

    def _replay(self, frames):
        with self.lock, torch.cuda.device(self.device):
            if frames.shape not in self.graphs:  # a size that may not come again
                if len(self.graphs) == self.MAX_GRAPHS:
                    del self.graphs[next(iter(self.graphs))]
                self.graphs[frames.shape] = None
                return self.network(frames.to(self.device))
            captured = self.graphs.pop(frames.shape) or self._capture(frames.shape)
            self.graphs[frames.shape] = captured  # now the one used last
            graph, static, logits = captured
            static.copy_(frames, non_blocking=True)
            graph.replay()
            return logits.clone()

    def _capture(self, shape):
        static = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # what cuDNN and the allocator do only at first
                self.network(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            logits = self.network(static)
        return graph, static, logits


def program_logits(program):
    """From frames to logits, out of a ``torch.export`` program that gives labels and logits.

    Raises:
        ValueError: When called, on frames of a size that the program was not exported for.
    """
    module = program.module()
    output = module.graph.output_node()
    _, logits = output.args[0]
    output.args = ((logits, logits), )  # the labels at full size are computed no more
    for node in reversed(module.graph.nodes):
        if node.target == torch.ops.aten._assert_tensor_metadata.default and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()

    def run(frames):
        try:
            return module(frames)[1]
        except AssertionError as error:
            raise ValueError(f'The file takes no frames of {tuple(frames.shape[1:3])}: {error}'
                             ) from error

    return run


def openvino_config(precision, threads=None):
    """What OpenVINO has to be told: of itself it computes in BF16 where the processor can.

    An INT8 file does so on purpose with the layers that are not quantised, where it is faster: 280
    instead of 350 ms for 2048x1024 on two Zen 4 cores, and 0.05 to 0.5 % of the labels.
    """
    bf16 = precision == 'bf16' or (precision == 'int8' and bf16_is_faster())
    config = dict(PERFORMANCE_HINT='LATENCY',
                  INFERENCE_PRECISION_HINT='bf16' if bf16 else 'f32')
    return config | (dict(INFERENCE_NUM_THREADS=threads) if threads else {})


class OpenVINORuntime:
    """An OpenVINO model, compiled for each size of frame.

    Args:
        model (openvino.Model): From 'frames' to a tensor named 'logits'; other outputs are cut.
        precision (str): 'fp32', 'bf16' or 'int8'; see :func:`openvino_config`.
        threads (int, optional): How many; all cores by default.
    """

    MAX_SIZES = 4  # from then on one model for any size, which is slower at first

    def __init__(self, model, precision, threads=None):
        self.openvino = import_optional('openvino')
        self.model = only_logits(model)
        self.config = openvino_config(precision, threads)
        self.compiled = {}
        self.requests = threading.local()
        self.lock = threading.Lock()

    def __call__(self, frames):
        """See the module."""
        shape = frames.shape
        with self.lock:
            if shape not in self.compiled and len(self.compiled) >= self.MAX_SIZES:
                shape = (-1, -1, -1, 3)
            if shape not in self.compiled:
                model = self.model.clone()
                model.reshape(list(shape))
                self.compiled[shape] = self.openvino.Core().compile_model(
                    model, 'CPU', self.config)
        own = self.requests.__dict__  # a request serves one thread at a time
        if shape not in own:
            own[shape] = self.compiled[shape].create_infer_request()
        result = own[shape].infer([frames], share_inputs=True)
        return torch.from_numpy(result[0])


def only_logits(model):
    """An OpenVINO model that ends at its tensor 'logits'."""
    openvino = import_optional('openvino')
    found = [output for node in model.get_ordered_ops() for output in node.outputs()
             if 'logits' in output.get_names()]
    if found:  # the converter also gives tensors the names of Python's variables
        return openvino.Model(found[-1:], model.get_parameters())
    raise ValueError('The OpenVINO model has no tensor "logits": it was not written by '
                     'tools/export.py')


class ONNXRuntimeRuntime:
    """An ONNX model in ONNX Runtime.

    Args:
        model (onnx.ModelProto): From 'frames' to a tensor named 'logits'.
        device (torch.device): The CPU, or a GPU if onnxruntime-gpu is installed.
        threads (int, optional): How many on the CPU; all cores by default.
    """

    def __init__(self, model, device, threads=None):
        onnxruntime, onnx = import_optional('onnxruntime'), import_optional('onnx')
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        if [value.name for value in model.graph.input] != ['frames']:
            raise ValueError('The ONNX model takes no frames: it was exported with --raw')
        if not any('logits' in node.output for node in cut.graph.node):
            raise ValueError('The ONNX model has no tensor "logits": it was not written by '
                             'tools/export.py')
        del cut.graph.output[:]  # what only served the labels is then removed
        cut.graph.output.append(onnx.helper.make_tensor_value_info(
            'logits', onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        provider, settings = 'CPUExecutionProvider', {}
        if device.type == 'cuda':
            provider, settings = 'CUDAExecutionProvider', dict(device_id=device.index or 0)
        if provider not in onnxruntime.get_available_providers():
            raise ImportError(f'This ONNX Runtime has no {provider}: pip install onnxruntime-gpu')
        self.session = onnxruntime.InferenceSession(
            cut.SerializeToString(), options, providers=[(provider, settings)])

    def __call__(self, frames):
        """See the module."""
        return torch.from_numpy(self.session.run(['logits'], {'frames': frames})[0])
