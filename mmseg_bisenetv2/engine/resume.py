"""Which checkpoint a training goes on from, and whether it can go on from it."""
import math
import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

FINE_TUNING = 'To fine-tune from its weights, give it as load_from without --resume'
# Their states are factors and lists; those of PyTorch's other optimisers are of the parameter's
# shape, and its fused kernels write to them without looking.
OTHER_SHAPES = (torch.optim.Adafactor, torch.optim.LBFGS)


class ResumeError(RuntimeError):
    """A training cannot go on from what it was given."""


def find_newest_checkpoint(folder: str, filename_tmpl: str) -> tuple[str | None, dict[str, str]]:
    """Finds the newest checkpoint that is whole.

    The time that a checkpoint holds is compared, since copying a folder changes the times of its
    files, and an older, longer run in the same folder leaves higher iterations behind.

    Args:
        folder: Where the checkpoints are.
        filename_tmpl: Their name, with ``{}`` or ``{:06d}`` for the iteration or epoch.

    Returns:
        The path, or None; and for each checkpoint that is damaged, and not older, the reason.
    """
    pattern = re.compile(r'(\d+)'.join(map(re.escape, re.split(r'\{.*?\}', filename_tmpl))))
    dated, damaged = [], {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if match := pattern.fullmatch(name):
            path = os.path.join(folder, name)
            try:
                meta = torch.load(path, 'cpu', mmap=True, weights_only=True)['meta']
                dated.append((str(meta['time']), int(match[1]), path))
            except Exception as error:
                damaged[path] = _first_line(error)
    for _, _, path in sorted(dated, reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                torn = archive.testzip()
            if torn is None:
                return path, damaged
            damaged[path] = f'its part {torn} is damaged'
        except Exception as error:
            damaged[path] = _first_line(error)
    return None, damaged


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_resumable(checkpoint: Any, source: str, model: nn.Module, optim_wrapper: OptimWrapper,
                    limits: dict[str, float]) -> None:
    """Refuses a checkpoint from which this training cannot go on.

    Args:
        checkpoint: What the file holds.
        source: Its name, for the error.
        model: Whose weights it shall be.
        optim_wrapper: Takes the checkpoint's state over, since only then can it be compared.
        limits: The ``iter`` and ``epoch`` with which the training ends.

    Raises:
        ResumeError: If something that resuming needs is missing, or does not fit the parameters.
    """
    refusal = f'{source} cannot be resumed from'
    for key in ('meta', 'state_dict', 'message_hub', 'optimizer'):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
            raise ResumeError(
                f'{refusal}: it holds no {key}, as best_*.pth, stripped and converted files do. '
                'To go on with a training, use --resume without load_from (--cfg-options '
                f'load_from=None). {FINE_TUNING}')
    limits = dict(limits, seed=2**32 - 1)  # the last that NumPy takes
    for key, limit in limits.items():
        value = checkpoint['meta'].get(key)
        if key == 'seed' and value is None:
            continue
        if type(value) is not int or not 0 <= value <= limit:
            raise ResumeError(
                f'{refusal}: its {key} is {str(value)[:40]}, expected a whole number from 0 to '
                f'{limit}' + ', the end of this training' * (key != 'seed'))
    for wrong in _misfits(checkpoint, model, optim_wrapper):
        raise ResumeError(f'{refusal}, since it does not fit this config: {wrong}. {FINE_TUNING}')


def _misfits(checkpoint: dict[str, Any], model: nn.Module,
             optim_wrapper: OptimWrapper) -> Iterator[str]:
    """What does not fit, in words."""
    saved = checkpoint['state_dict']
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        value = saved.get(name, saved.get(f'module.{name}'))
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            yield (f'{name} is of {tuple(value.shape)} in the file and of '
                   f'{tuple(parameter.shape)} in the model')
    try:
        # Copies, since MMEngine's wrapper takes entries out of the dictionary that it loads, and
        # the runner loads the same dictionary again.
        optim_wrapper.load_state_dict({
            key: dict(value) if isinstance(value, dict) else value
            for key, value in checkpoint['optimizer'].items()})
    except Exception as error:
        yield f'its optimizer cannot be loaded: {type(error).__name__}: {_first_line(error)}'
    wrappers = (list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict)
                else [optim_wrapper])
    for wrapper in wrappers:
        yield from _optimizer_misfits(wrapper.optimizer, names)


def _optimizer_misfits(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> Iterator[str]:
    """What an optimiser has loaded that would corrupt its memory, or make the weights NaN."""
    same_shape = (type(optimizer).__module__.startswith('torch.optim.')
                  and not isinstance(optimizer, OTHER_SHAPES))
    for group in optimizer.param_groups:
        for key, default in optimizer.defaults.items():
            if isinstance(default, (float, tuple)) and key not in group:
                yield f'its optimizer has no {key}, which {type(optimizer).__name__} needs'
        for key, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f'its optimizer has {key} {value}'
    for parameter, values in optimizer.state.items():
        if not isinstance(parameter, Tensor) or not isinstance(values, dict):
            yield f'its optimizer has a state for parameter {parameter}, which does not exist'
            return
        for key, value in values.items():
            what = f'{key} of {names.get(id(parameter), "a parameter")}'
            if not isinstance(value, Tensor):
                if same_shape and not isinstance(value, (int, float, type(None))):
                    yield f'{what} is a {type(value).__name__}'
            elif same_shape and value.dim() and value.shape != parameter.shape:
                yield (f'{what} is of {tuple(value.shape)}, the parameter of '
                       f'{tuple(parameter.shape)}')
            elif same_shape and (value.layout != torch.strided or
                                 value.untyped_storage().nbytes() < value.numel() * value.itemsize):
                yield f'{what} is in an unexpected layout'
            elif not all_finite(value):
                yield f'{what} holds NaN or infinity'


def all_finite(value: Any) -> bool:
    """Whether a tensor holds no NaN and no infinity; true for all else."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    # The sum takes a sixth of the time of isfinite, and is finite for almost all finite tensors
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def tensors_within(content: Any, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dictionaries, with the way to them as their names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from tensors_within(value, f'{name}.{key}' if name else str(key))
