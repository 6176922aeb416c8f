"""The one file that reaches into third-party internals, so that MMSegmentation runs today.

Two things keep MMSegmentation 1.2.2 from working on a current PyTorch:

* ``import mmseg.models`` imports ``mmcv.ops``, whose compiled extension ``mmcv._ext`` exists
  only in the full ``mmcv``: half an hour of compiling on PyTorch 2.13, for which no wheel is
  published. Neither BiSeNetV2 nor FCNHead calls any of these operators. With ``mmcv-lite`` a
  stand-in lets the import through and raises a clear error when an operator is really called.
* ``torch.load`` unpickles tensors only (``weights_only=True``, since PyTorch 2.6), while the
  checkpoints that MMEngine's runner writes also hold its log buffers.

Nothing is replaced where the full ``mmcv`` is installed, and nothing here loosens
``weights_only``: classes are allowed by name, one by one. It is tightened in one place: MMEngine
unpickles downloads (``open-mmlab://`` and the like) freely, and does so no more.
"""
import functools
import importlib.machinery
import importlib.util
import pickle
import sys
import types

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import checkpoint

_EXTENSION = 'mmcv._ext'


class MissingOpError(RuntimeError):
    """A compiled MMCV operator was called, but MMCV was installed without them."""


class _MissingExtension(types.ModuleType):
    """Stands in for ``mmcv._ext``: every operator can be looked up and none can be called.

    ``mmcv.utils.ext_loader.load_ext`` only asks whether the names exist. The module spec has no
    loader, so that ``mmengine.utils.dl_utils.mmcv_full_available()`` still answers False.
    """

    def __init__(self):
        super().__init__(_EXTENSION, 'Stand-in: mmcv-lite has no compiled operators.')
        self.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, loader=None)

    def __getattr__(self, op):
        if op.startswith('__'):
            raise AttributeError(op)

        def missing(*args, **kwargs):
            raise MissingOpError(
                f'The compiled MMCV operator "{op}" was called, but the installed MMCV has none. '
                'BiSeNetV2 and FCNHead need none; another part of this model does. Compile them: '
                'pip uninstall -y mmcv mmcv-lite && pip install --no-build-isolation '
                '-c constraints.txt "mmseg_bisenetv2[full]"')

        missing.__name__ = op
        return missing


def provide_mmcv_extension():
    """Puts the stand-in in place if, and only if, MMCV has no compiled extension.

    Raises:
        ImportError: If there is no MMCV at all.
    """
    try:
        missing = _EXTENSION not in sys.modules and importlib.util.find_spec(_EXTENSION) is None
    except ModuleNotFoundError as error:
        raise ImportError(
            'mmseg_bisenetv2 needs MMCV, with compiled operators or without. Without, which is '
            'enough for BiSeNetV2: pip install -c constraints.txt "mmseg_bisenetv2[lite]"'
        ) from error
    if missing:
        sys.modules[_EXTENSION] = _MissingExtension()


def _statistics_method(owner, name):
    """What ``getattr`` is in a checkpoint: MMEngine's log statistics, and nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused in a checkpoint')


def _number_type(code, align=False, copy=True):
    """What ``numpy.dtype`` is in a checkpoint: a type of numbers, as NumPy has it.

    A pickle asks for a copy and sets its flags, which can make numbers pass for pointers; NumPy's
    own types ignore them.
    """
    if code in ('f8', 'f4', 'i8', 'i4', 'u1', 'b1'):
        return np.dtype(code)
    raise pickle.UnpicklingError(f'numpy.dtype({code!r}) is refused in a checkpoint')


def allow_mmengine_checkpoints():
    """Allows the classes that MMEngine's checkpoints hold under ``weights_only=True``.

    The message hub stores one :class:`mmengine.logging.HistoryBuffer` per logged scalar, each
    with two NumPy arrays. NumPy 1 pickled them under ``numpy.core``, NumPy 2 under
    ``numpy._core``; both spellings are allowed, since checkpoints outlive installations. A
    buffer also pickles its four statistics, as ``getattr(HistoryBuffer, 'mean')`` and so on: in
    a checkpoint the name ``getattr`` means :func:`_statistics_method`.
    """
    reconstruct = np._core.multiarray._reconstruct
    scalar = np._core.multiarray.scalar
    dtypes = {type(np.dtype(code)) for code in ('f8', 'f4', 'i8', 'i4', 'u1', '?')}
    torch.serialization.add_safe_globals([
        HistoryBuffer, (_statistics_method, 'builtins.getattr'),
        np.ndarray, (_number_type, 'numpy.dtype'), *dtypes,
        reconstruct, (reconstruct, 'numpy.core.multiarray._reconstruct'),
        scalar, (scalar, 'numpy.core.multiarray.scalar'),
    ])


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


provide_mmcv_extension()
allow_mmengine_checkpoints()
checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)
