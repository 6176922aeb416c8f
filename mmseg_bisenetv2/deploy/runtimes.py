"""What runs the network: PyTorch, OpenVINO or ONNX Runtime, all from frames to logits.

A runtime is called with frames (N, H, W, 3), uint8, BGR, C-contiguous, and returns logits
(N, C, h, w) as a tensor. It may be called from several threads.
"""
import functools
import importlib
import logging
import threading
import time
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from mmseg_bisenetv2.compat import cpu_has_bf16


def import_optional(module: str) -> ModuleType:
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


@functools.cache
def openvino_core() -> Any:
    """The process's only OpenVINO core, which is never deleted.

    On processors with AMX each core of OpenVINO 2026.4 gives its thread another stack for signal
    handlers, and at its end puts back the one before, even if that belongs to a core whose memory
    is gone. The next signal, of a finished child process or of Ctrl-C, then ends the process with
    a segmentation fault.
    """
    return import_optional('openvino').Core()


@functools.lru_cache(maxsize=1)
def bf16_is_faster() -> bool:
    """Whether the processor multiplies BF16 faster than FP32; takes a tenth of a second.

    A convolution is timed in both, since the instructions alone do not tell. Those of AVX-512 take
    half of FP32's time on Zen 4, but twice its time on Sapphire Rapids without AMX, which is what
    some virtual machines show. With AMX, BF16 takes an eighth of FP32's time.
    """
    if not cpu_has_bf16():
        return False
    image, kernel = torch.ones(1, 128, 32, 64), torch.ones(128, 128, 3, 3)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # On a busy machine several threads would wait for each other.
    for _ in range(5):
        for dtype, times in seconds.items():
            x, weight = (tensor.to(dtype, memory_format=torch.channels_last)
                         for tensor in (image, kernel))
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    fp32, bf16 = map(min, seconds.values())
    return 1.25 * bf16 < fp32  # A smaller gain is not worth the labels that BF16 changes.


# PyTorch before 2.13 keeps the CUDA graphs of torch.compile for a single thread: a call from
# another one ends with an AssertionError (https://github.com/pytorch/pytorch/issues/123177).
GRAPHS_IN_ANY_THREAD = torch.__version__ >= '2.13'  # compared as versions


class TorchRuntime:
    """The network itself, or a program of ``torch.export``, in PyTorch.

    Args:
        network: In the precision that it shall have.
        device: Where to run it.
    """

    # One lock for all of them: while one records a CUDA graph no other may use the GPU.
    lock = threading.Lock()

    def __init__(self, network: nn.Module | ExportedProgram, device: torch.device) -> None:
        self.device = device
        self.network: Any = (ProgramLogits(move_to_device_pass(network, str(device)))
                                  if isinstance(network, ExportedProgram) else network.to(device))
        self.compiled: Any = None
        self.thread = threading.local()  # has "compiled" in the thread that compiled

    def compile(self, frames: np.ndarray) -> None:
        """Has PyTorch compile the network once, with CUDA graphs; warns where it cannot.

        Other sizes need no new compilation, but for a few: a batch after a single frame, sides of
        less than 33. Other threads than the caller's run the network as it is before PyTorch 2.13.

        Args:
            frames: (N, H, W, 3), such as will come.
        """
        with self.lock:
            if self.compiled is not None:
                return
            network = torch.compile(self.network, dynamic=True, mode='reduce-overhead')
            try:
                with torch.inference_mode():
                    network(torch.from_numpy(frames).to(self.device))
            except Exception as error:  # Without Triton or a compiler each says so in its own way.
                reason = str(error).strip().splitlines() or [type(error).__name__]
                print_log('PyTorch could not compile the network, which runs as it is: '
                          f'{reason[0]}', logger='current', level=logging.WARNING)
                return
            self.compiled, self.thread.compiled = network, True

    def __call__(self, frames: np.ndarray) -> Tensor:
        """See the module."""
        with torch.inference_mode():
            inputs = torch.from_numpy(frames).to(self.device)
            if self.compiled is None or not (
                    GRAPHS_IN_ANY_THREAD or getattr(self.thread, 'compiled', False)):
                return self.network(inputs)
            with self.lock:  # The next replay of a CUDA graph overwrites what this one returns.
                return self.compiled(inputs).clone()


class ProgramLogits(nn.Module):
    """From frames to logits, out of a ``torch.export`` program that gives labels and logits.

    Labels at full size are not computed.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.module = module = program.module()
        output = module.graph.output_node()
        labels_and_logits: Any = output.args[0]
        output.args = ((labels_and_logits[1], ) * 2, )
        for node in reversed(module.graph.nodes):
            if 'assert_tensor_metadata' in node.name:  # It would keep what only labels need.
                module.graph.erase_node(node)
        module.graph.eliminate_dead_code()
        module.recompile()

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (1, H, W, 3), uint8, BGR -> logits (1, C, H/8, W/8).

        Raises:
            ValueError: If the program was not exported for frames of this size.
        """
        try:
            return self.module(frames)[1]
        except (AssertionError, RuntimeError) as error:  # which of them depends on PyTorch
            if isinstance(error, RuntimeError) and 'Expected input' not in str(error):
                raise
            raise ValueError(f'The file takes no frames of {tuple(frames.shape[1:3])}: {error}'
                             ) from error


def openvino_config(precision: str, threads: int | None = None) -> dict[str, Any]:
    """The settings for OpenVINO, which would by itself compute in BF16 where the processor can.

    In an INT8 file the layers that are not quantised run in BF16 where that is faster: 280 instead
    of 350 ms for 2048x1024 on two Zen 4 cores, for 0.05 to 0.5 % of the labels.
    """
    bf16 = precision == 'bf16' or (precision == 'int8' and bf16_is_faster())
    config = dict(PERFORMANCE_HINT='LATENCY',
                  INFERENCE_PRECISION_HINT='bf16' if bf16 else 'f32')
    return config | (dict(INFERENCE_NUM_THREADS=threads) if threads else {})


class OpenVINORuntime:
    """An OpenVINO model, compiled for the sizes of frames that come again.

    A compilation takes seconds. The first size has one of its own. Every other size runs on a
    model for any size at first, which is slower by a tenth to a half, and is compiled when it
    comes again, up to ``MAX_SIZES``: a folder of pictures of many sizes needs two compilations.

    Args:
        model: From 'frames' to a tensor named 'logits'; other outputs are cut.
        precision: 'fp32', 'bf16' or 'int8'; see :func:`openvino_config`.
        threads: How many; all cores by default.
    """

    MAX_SIZES = 5  # how many sizes get a compiled model of their own
    ANY_SIZE = (-1, -1, -1, 3)

    def __init__(self, model: Any, precision: str, threads: int | None = None) -> None:
        self.model = only_logits(model)
        self.config = openvino_config(precision, threads)
        if any(operator.get_type_name() == 'GroupNormalization' for operator in model.get_ops()):
            # OpenVINO (2026.4) ends the process when it makes a snippet of one of a fixed size.
            self.config['SNIPPETS_MODE'] = 'DISABLE'
        self.compiled: dict[tuple[int, ...], Any] = {}
        self.seen: set[tuple[int, ...]] = set()
        self.requests = threading.local()
        self.lock = threading.Lock()

    def __call__(self, frames: np.ndarray) -> Tensor:
        """See the module."""
        shape: tuple[int, ...] = frames.shape
        if shape not in self.compiled:  # Else it need not wait for another size's compilation.
            shape = self._compile_for(shape)
        own: dict[Any, Any] = self.requests.__dict__  # A request serves one thread at a time.
        if shape not in own:
            own[shape] = self.compiled[shape].create_infer_request()
        result = own[shape].infer([frames], share_inputs=True)
        return torch.from_numpy(result[0])

    def forget(self) -> None:
        """Drops what was compiled for a trial, so that the next size is the first."""
        self.compiled.clear()
        self.seen.clear()
        self.requests = threading.local()

    def _compile_for(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sees to a compiled model for frames of a shape, and returns the shape it is for."""
        with self.lock:
            others = len(self.compiled.keys() - {self.ANY_SIZE})
            gets_its_own = not others or (shape in self.seen and others < self.MAX_SIZES)
            self.seen.add(shape)
            if shape not in self.compiled and not gets_its_own:
                shape = self.ANY_SIZE
            if shape not in self.compiled:
                model = self.model.clone()
                model.reshape(list(shape))
                self.compiled[shape] = openvino_core().compile_model(model, 'CPU', self.config)
        return shape


def only_logits(model: Any) -> Any:
    """An OpenVINO model that ends at its tensor 'logits'."""
    openvino = import_optional('openvino')
    found = [output for node in model.get_ordered_ops() for output in node.outputs()
             if 'logits' in output.get_names()]
    if found:  # The last, since the converter also gives tensors the names of Python's variables.
        return openvino.Model(found[-1:], model.get_parameters())
    raise ValueError('The OpenVINO model has no tensor "logits": it was not written by '
                     'tools/export.py')


class ONNXRuntimeRuntime:
    """An ONNX model in ONNX Runtime.

    Args:
        model: From 'frames' to a tensor named 'logits'.
        device: The CPU, or a GPU if onnxruntime-gpu is installed.
        threads: How many on the CPU; all cores by default.
    """

    def __init__(self, model: Any, device: torch.device, threads: int | None = None) -> None:
        onnxruntime, onnx = import_optional('onnxruntime'), import_optional('onnx')
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        if [value.name for value in model.graph.input] != ['frames']:
            raise ValueError('The ONNX model takes no frames: it was exported with --raw')
        if not any('logits' in node.output for node in cut.graph.node):
            raise ValueError('The ONNX model has no tensor "logits": it was not written by '
                             'tools/export.py')
        del cut.graph.output[:]  # ONNX Runtime then removes what only served the labels.
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
        # Where the provider's libraries cannot be loaded, ONNX Runtime takes the CPU.
        if provider not in self.session.get_providers():
            raise ImportError(f'ONNX Runtime could not start {provider}, whose log says why: its '
                              'CUDA and cuDNN have to be those that it was built for')

    def __call__(self, frames: np.ndarray) -> Tensor:
        """See the module."""
        return torch.from_numpy(self.session.run(['logits'], {'frames': frames})[0])
