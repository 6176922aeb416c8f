"""The one file that reaches into third-party internals, so that MMSegmentation runs today.

MMEngine, MMCV and MMSegmentation come from OpenMMLab, or from the maintained forks of them, whose
packages on the index are named onedl-mmengine, onedl-mmcv, onedl-mmsegmentation and onedl-mim.

Two things keep MMSegmentation 1.2.2 from working on a current PyTorch:

* ``import mmseg.models`` imports ``mmcv.ops``, whose compiled extension ``mmcv._ext`` exists
  only in the full ``mmcv``: half an hour of compiling on PyTorch 2.13, for which no wheel is
  published. Neither BiSeNetV2 nor FCNHead calls any of these operators. With ``mmcv-lite`` a
  stand-in lets the import through and raises a clear error when an operator is really called.
* ``torch.load`` unpickles tensors only (``weights_only=True``, since PyTorch 2.6), while the
  checkpoints that MMEngine's runner writes also hold its log buffers.

Nothing is replaced where the full ``mmcv`` is installed, and nothing here loosens
``weights_only``: classes are allowed by name, one by one.

One thing is told in a private place: PyTorch keeps a state dict's versions, which its load hooks
are given, in an attribute ``_metadata``; a checkpoint's file name goes the same way.
"""
import contextlib
import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

if not all(map(importlib.util.find_spec, ('mmengine', 'mmcv', 'mmseg'))):
    raise ImportError('mmseg_bisenetv2 needs MMEngine, MMCV and MMSegmentation: '
                      'pip install -c constraints.txt "mmseg_bisenetv2[lite]"')

from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.model import BaseDataPreprocessor
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import CheckpointLoader, Runner, checkpoint

try:
    from mmengine.config.utils import MODULE2PACKAGE
except ImportError:
    MODULE2PACKAGE = {}

_EXTENSION = 'mmcv._ext'
_COMPILE = {
    'mmcv': 'pip uninstall -y mmcv mmcv-lite && pip install --no-build-isolation '
            '-c constraints.txt "mmseg_bisenetv2[full]"',
    # Without the cache, from which pip would take the wheel without operators again.
    'onedl-mmcv': 'pip uninstall -y onedl-mmcv && pip install --no-cache-dir '
                  '--no-build-isolation onedl-mmcv'}


def is_distribution(name: str) -> bool:
    """Whether a package is installed under this name of the package index."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def name_the_fork() -> None:
    """Tells MMEngine the name under which MMSegmentation is installed, if it is the fork's.

    In a config, ``_base_ = 'mmseg::...'`` is looked for in the installed package that MMEngine's
    table ``MODULE2PACKAGE`` names for ``mmseg``. The table says mmsegmentation, also in
    onedl-mmengine, and then every config that inherits from MMSegmentation ends in an error where
    onedl-mmsegmentation is installed. A config is read before its ``custom_imports``; therefore
    this package has to be imported first, which all of its own tools do.

    MMEngine does not document the table. Without it, nothing is told.
    """
    if is_distribution('onedl-mmsegmentation') and not is_distribution('mmsegmentation'):
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


class MissingOpError(RuntimeError):
    """A compiled MMCV operator was called, but MMCV was installed without them."""


class _MissingExtension(types.ModuleType):
    """Stands in for ``mmcv._ext``: every operator can be looked up and none can be called.

    ``mmcv.utils.ext_loader.load_ext`` only asks whether the names exist. The module spec has no
    loader, so that ``mmengine.utils.dl_utils.mmcv_full_available()`` still answers False.
    """

    def __init__(self) -> None:
        super().__init__(_EXTENSION, 'Stand-in: mmcv-lite has no compiled operators.')
        self.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, loader=None)

    def __getattr__(self, op: str) -> Any:
        if op.startswith('__'):
            raise AttributeError(op)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise MissingOpError(
                f'The compiled MMCV operator "{op}" was called, but the installed MMCV has none. '
                'BiSeNetV2 and FCNHead need none; another part of this model does. Compile them: '
                + _COMPILE['onedl-mmcv' if is_distribution('onedl-mmcv') else 'mmcv'])

        missing.__name__ = op
        return missing


def provide_mmcv_extension() -> None:
    """Puts the stand-in in place if, and only if, MMCV has no compiled extension."""
    if _EXTENSION not in sys.modules and importlib.util.find_spec(_EXTENSION) is None:
        sys.modules[_EXTENSION] = _MissingExtension()


def _statistics_method(owner: Any, name: str) -> Any:
    """What ``getattr`` is in a checkpoint: MMEngine's log statistics, and nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused in a checkpoint')


def _number_type(code: Any, align: bool = False, copy: bool = True) -> np.dtype:
    """What ``numpy.dtype`` is in a checkpoint: a type of numbers, as NumPy has it.

    A pickle asks for a copy and sets its flags, which can make numbers pass for pointers; NumPy's
    own types ignore them.
    """
    if code in ('f8', 'f4', 'i8', 'i4', 'u1', 'b1'):
        return np.dtype(code)
    raise pickle.UnpicklingError(f'numpy.dtype({code!r}) is refused in a checkpoint')


def _empty_array(owner: Any, shape: Any, code: Any) -> np.ndarray:
    """What ``_reconstruct`` is in a checkpoint: the empty array that NumPy fills afterwards.

    NumPy's own would allocate any shape.
    """
    if owner is np.ndarray and shape == (0, ) and code == b'b':
        return np.empty(0, np.int8)
    raise pickle.UnpicklingError(f'an array of shape {shape!r} is refused in a checkpoint')


def allow_mmengine_checkpoints() -> None:
    """Allows the classes that MMEngine's checkpoints hold under ``weights_only=True``.

    The message hub stores one :class:`mmengine.logging.HistoryBuffer` per logged scalar, each
    with two NumPy arrays. NumPy 1 pickled them under ``numpy.core``, NumPy 2 under
    ``numpy._core``; both spellings are allowed, since checkpoints outlive installations. A
    buffer also pickles its four statistics, as ``getattr(HistoryBuffer, 'mean')`` and so on: in
    a checkpoint the name ``getattr`` means :func:`_statistics_method`, and likewise
    ``numpy.dtype`` and ``_reconstruct`` mean the functions above.
    """
    scalar = np.float64(0).__reduce__()[0]  # numpy's "scalar", wherever this version keeps it
    dtypes = {type(np.dtype(code)) for code in ('f8', 'f4', 'i8', 'i4', 'u1', '?')}
    names: list[Any] = [(function, f'{package}.multiarray.{name}')
                        for package in ('numpy.core', 'numpy._core')
                        for name, function in (('_reconstruct', _empty_array), ('scalar', scalar))]
    torch.serialization.add_safe_globals([
        HistoryBuffer, (_statistics_method, 'builtins.getattr'),
        np.ndarray, (_number_type, 'numpy.dtype'), *dtypes, *names])


mmengine_load_checkpoint = CheckpointLoader.load_checkpoint


def replace_mmengine_loading(load_checkpoint: Callable) -> None:
    """Lets MMEngine's runner, ``init_model`` and the inferencers read checkpoints by a function.

    They all call ``CheckpointLoader.load_checkpoint``, which has no place for a function of our
    own. Whoever calls something else in a later MMEngine still gets :func:`read_checkpoint` for
    files, which is registered in public.
    """
    CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)


def replace_mmengine_download(load_from_http: Callable) -> None:
    """Lets MMEngine's own schemes, such as ``open-mmlab://``, download by a function.

    They look up an address and call ``load_from_http`` of their module. If a later MMEngine calls
    something else, PyTorch's ``weights_only`` still guards what is read.
    """
    checkpoint.load_from_http = load_from_http


def with_source(state: dict[str, Any], original: Any, source: str) -> dict[str, Any]:
    """A copy of a state dict that tells load hooks the name of the file that it is from.

    ``Module.load_state_dict`` gives its hooks what ``_metadata`` holds under a module's name. If
    PyTorch gave that up, the errors of the load hook would not name the file.

    Args:
        state: Names and tensors.
        original: The dictionary that was read, whose versions of modules are kept.
        source: What a hook on the whole model finds as ``local_metadata['source']``.
    """
    found = getattr(original, '_metadata', {})
    versions: dict[str, dict[str, Any]] = {}
    for name, module in dict.items(found) if isinstance(found, dict) else ():
        if isinstance(module, dict) and type(dict.get(module, 'version')) is int:
            versions[name] = {'version': dict.get(module, 'version')}
    copy = OrderedDict(state)
    copy._metadata = {**versions, '': {**versions.get('', {}), 'source': source}}  # type: ignore
    return copy


def resume_and_load_from(runner: Runner) -> tuple[bool, str | None]:
    """What a runner was told of ``resume`` and ``load_from``.

    MMEngine's keeps these arguments under private names. Without them its config is asked, which
    has them unless the runner was built in Python.
    """
    return (bool(getattr(runner, '_resume', runner.cfg.get('resume'))),
            getattr(runner, '_load_from', runner.cfg.get('load_from')))


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a forward or backward hook, or pre-hook, watches the module or a layer of it.

    PyTorch lists them under private names. Without these the answer is False, and a checkpointed
    layer calls its hooks a second time, in backward, as ``torch.utils.checkpoint`` does.
    """
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return any(getattr(layer, kind, None) for layer in module.modules() for kind in kinds)


def swaps_channels(preprocessor: BaseDataPreprocessor) -> bool:
    """Whether a data preprocessor turns BGR into RGB, or back.

    MMSegmentation keeps this in ``channel_conversion``, and onedl-mmsegmentation, as MMEngine's
    ImgDataPreprocessor, in ``_channel_conversion``.

    Raises:
        AttributeError: If it is kept elsewhere, since colours that are swapped in silence would
            give wrong labels.
    """
    if hasattr(preprocessor, 'channel_conversion'):
        return bool(preprocessor.channel_conversion)
    return bool(preprocessor._channel_conversion)


def copy_without_blocking(preprocessor: BaseDataPreprocessor) -> None:
    """Makes a data preprocessor copy pinned batches to the GPU while it works on.

    MMEngine's ``BaseDataPreprocessor`` takes ``non_blocking``, but MMSegmentation's constructor
    does not hand it on. Without the private name the copies block, as MMSegmentation's do.
    """
    if hasattr(preprocessor, '_non_blocking'):
        preprocessor._non_blocking = True


def draw_pictures_of_any_layout() -> None:
    """Lets MMSegmentation's visualizer draw pictures whose bytes lie in another order.

    Its ``browse_dataset`` turns the channels by an index, after which NumPy keeps them apart in
    memory, and OpenCV refuses to draw a class name there. In this process the method copies first.
    """
    from mmseg.visualization import SegLocalVisualizer  # importable once this module is imported
    original = SegLocalVisualizer.add_datasample

    def add_datasample(self: Any, name: str, image: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        return original(self, name, np.ascontiguousarray(image), *args, **kwargs)

    SegLocalVisualizer.add_datasample = add_datasample


@contextlib.contextmanager
def amp_wrapper_on_cpu() -> Iterator[None]:
    """Lets MMEngine's AmpOptimWrapper be built without a GPU, with a gradient scaler for the CPU.

    Its module asks ``is_cuda_available`` and takes ``GradScaler`` from there. If a later MMEngine
    asks elsewhere, its own refusal of a CPU is what the user sees.
    """
    scaler = functools.partial(torch.amp.GradScaler, 'cpu')
    with mock.patch.multiple(amp_optimizer_wrapper, create=True, GradScaler=scaler,
                             is_cuda_available=lambda: True):
        yield


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions that multiply BF16: AVX-512 BF16 or AMX.

    ``torch.cpu.get_capabilities`` is public, but younger than PyTorch 2.7. Before it two private
    functions are asked. Where there is neither, the answer is False: FP32 is used, which is slower
    on such a processor but right.
    """
    if hasattr(torch.cpu, 'get_capabilities'):
        found = torch.cpu.get_capabilities()
        return bool(found.get('avx512_bf16') or found.get('amx_bf16'))
    return any(getattr(torch.cpu, name, bool)()
               for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))


name_the_fork()
provide_mmcv_extension()
allow_mmengine_checkpoints()
