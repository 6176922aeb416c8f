"""Which checkpoint a training goes on from, and whether it can go on from it."""
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
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
        filename_tmpl: Their name, with ``{}`` for the iteration or epoch.

    Returns:
        The path, or None; and for each checkpoint that is damaged, and not older, the reason.
    """
    pattern = re.compile(r'(\d+)'.join(re.escape(part) for part in filename_tmpl.split('{}')))
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
        optim_wrapper: Whose state it shall be.
        limits: The ``iter`` and ``epoch`` with which the training ends.

    Raises:
        ResumeError: If something that resuming needs is missing, or does not fit the parameters.
    """
    for key in ('meta', 'state_dict', 'message_hub', 'optimizer'):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
            raise ResumeError(
                f'{source} cannot be resumed from: it holds no {key}, as best_*.pth, stripped and '
                'converted files do. To go on with a training, use --resume without load_from '
                f'(--cfg-options load_from=None). {FINE_TUNING}')
    for key, limit in limits.items():
        value = checkpoint['meta'].get(key)
        if not isinstance(value, int) or not 0 <= value <= limit:
            raise ResumeError(
                f'{source} cannot be resumed from: its {key} is {str(value)[:40]}, expected a '
                f'whole number from 0 to {limit}, the end of this training')
    wrong = next(_misfits(checkpoint, model, optim_wrapper), None)
    if wrong:
        raise ResumeError(f'{source} cannot be resumed from, since it does not fit this config: '
                          f'{wrong}. {FINE_TUNING}')


def _misfits(checkpoint: dict, model: nn.Module, optim_wrapper: OptimWrapper) -> Iterator[str]:
    """What does not fit, in words."""
    saved = checkpoint['state_dict']
    names = {}
    for name, parameter in model.named_parameters():
        names[id(parameter)] = name
        value = saved.get(name, saved.get(f'module.{name}'))
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            yield (f'{name} is of {tuple(value.shape)} in the file and of '
                   f'{tuple(parameter.shape)} in the model')
    if isinstance(optim_wrapper, OptimWrapperDict):
        wrappers = [(wrapper, checkpoint['optimizer'].get(name))
                    for name, wrapper in optim_wrapper.items()]
    else:
        wrappers = [(optim_wrapper, checkpoint['optimizer'])]
    for wrapper, state in wrappers:
        yield from _optimizer_misfits(state, wrapper.optimizer, names)


def _optimizer_misfits(state: Any, optimizer: torch.optim.Optimizer,
                       names: dict[int, str]) -> Iterator[str]:
    kind = type(optimizer).__name__
    groups = state.get('param_groups') if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(state.get('state'), dict) or not all(
            isinstance(group, dict) and isinstance(group.get('params'), list) for group in groups):
        yield f'its optimizer is no state of {kind}'
        return
    sizes = [[len(group['params']) for group in gs] for gs in (groups, optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        yield (f'its optimizer holds groups of {sizes[0]} parameters, and this one has groups of '
               f'{sizes[1]}')
        return
    for group in groups:
        for key, default in optimizer.defaults.items():
            if isinstance(default, (float, tuple)) and key not in group:
                yield f'its optimizer has no {key}, which {kind} needs'
        for key, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f'its optimizer has {key} {value}'
    parameters: dict[Any, Tensor] = {}
    for saved_group, group in zip(groups, optimizer.param_groups, strict=True):
        parameters.update(zip(saved_group['params'], group['params'], strict=True))
    same_shape = (type(optimizer).__module__.startswith('torch.optim.')
                  and not isinstance(optimizer, OTHER_SHAPES))
    for index, values in state['state'].items():
        if index not in parameters or not isinstance(values, dict):
            yield f'its optimizer has a state for parameter {index}, which does not exist'
            return
        parameter = parameters[index]
        name = names.get(id(parameter), str(index))
        for key, value in values.items():
            what = f'{key} of {name}'
            if isinstance(value, Tensor):
                if same_shape and value.dim() and value.shape != parameter.shape:
                    yield (f'{what} is of {tuple(value.shape)}, the parameter of '
                           f'{tuple(parameter.shape)}')
                elif same_shape and (
                        not value.is_floating_point() or value.layout != torch.strided
                        or value.untyped_storage().nbytes() < value.numel() * value.itemsize):
                    yield f'{what} is of type {value.dtype} in an unexpected layout'
                elif not all_finite(value):
                    yield f'{what} holds NaN or infinity'
            elif same_shape and not isinstance(value, (int, float, type(None))):
                yield f'{what} is a {type(value).__name__}'


def all_finite(value: Any) -> bool:
    """Whether a tensor holds no NaN and no infinity; true for all else."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    # The sum takes a sixth of the time of isfinite, and is finite for almost all finite tensors
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def tensors_within(content: Any, name: str = '') -> Iterable[tuple[str, Tensor]]:
    """All tensors of nested dictionaries, with the way to them as their names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from tensors_within(value, f'{name}.{key}' if name else str(key))
