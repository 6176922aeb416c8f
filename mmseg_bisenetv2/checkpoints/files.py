"""Checkpoint files: read without running anything in them, written completely or not at all."""
import io
import json
import os
import re
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from mmengine.runner import CheckpointLoader

from mmseg_bisenetv2.atomic_write import flush_to_disk, write_atomically
from mmseg_bisenetv2.checkpoints.audit import audit_pickle, audit_zip
from mmseg_bisenetv2.checkpoints.content import prepare_content
from mmseg_bisenetv2.checkpoints.layouts import (
    CheckpointError,
    check_tensor,
    convert_state_dict,
    first_names,
    recognise,
    unwrap,
)
from mmseg_bisenetv2.compat import mmengine_load_checkpoint, replace_mmengine_loading

LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # how torch.save began before 1.6
META = 'mmengine.meta'  # where a safetensors file keeps "meta", as JSON
MapLocation = str | torch.device | Callable | None


def read_checkpoint(path: str, map_location: MapLocation = None) -> Any:
    """Reads a checkpoint file, of any layout, without executing anything in it.

    Args:
        path: A file of ``torch.save``, current or legacy format, or of safetensors; told apart
            by their content.
        map_location: See ``torch.load``. None is the CPU: weights that were saved on a GPU load
            everywhere. Safetensors are always read to the CPU.

    Returns:
        The content, as ``torch.load(path, weights_only=True)`` gives it; for safetensors the
        tensors, and ``meta`` if :func:`write_checkpoint` stored it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, is no checkpoint, or asks for anything but
            tensors and numbers to be built; with its name, and what was refused.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} can not be found.')
    try:
        with open(path, 'rb') as file:
            head = file.read(64)
        if head[8:9] == b'{':
            return _read_safetensors(path)
        if head.startswith(b'PK\x03\x04'):
            audit_zip(path)
        elif head.startswith(LEGACY):
            with open(path, 'rb') as file:
                for _ in range(5):  # magic number, version, system, content, storage keys
                    audit_pickle(file)
        else:
            raise CheckpointError(f'it begins with {head!r}, as no checkpoint does')
        return torch.load(path, map_location or 'cpu', weights_only=True)
    except CheckpointError as error:
        raise CheckpointError(f'{path} is refused: {error}') from None
    except Exception as error:
        text = str(error) or type(error).__name__
        refused = re.search(r'GLOBAL (\S+)', text)
        if refused:  # PyTorch's own text advises to load with weights_only=False
            raise CheckpointError(f'{path} is refused: it asks to run {refused[1]}') from None
        reason = re.search(r'WeightsUnpickler error:\s*(.+)', text)
        raise CheckpointError(f'{path} is damaged, incomplete or no checkpoint: '
                              f'{reason[1] if reason else text.splitlines()[0]}') from None


def _read_safetensors(path: str) -> dict[str, Any]:
    with safetensors.safe_open(path, 'pt') as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
        meta = json.loads((file.metadata() or {}).get(META, '{}'))
    return {'meta': meta, 'state_dict': state}


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """Reads a file for MMEngine, whose log says "local" because of this function's name."""
    return read_checkpoint(filename, map_location)


def load_checkpoint(filename: str, map_location: MapLocation = None,
                    logger: Any = 'current') -> dict[str, Any]:
    """MMEngine's ``CheckpointLoader.load_checkpoint``, whose content is prepared and harmless.

    Its runner, ``init_model`` and the inferencers all read checkpoints through that method,
    whatever the address begins with; see :func:`prepare_content` for what they get.
    """
    return prepare_content(mmengine_load_checkpoint(filename, map_location, logger), str(filename))


replace_mmengine_loading(load_checkpoint)


def write_checkpoint(checkpoint: dict[str, Any], path: str) -> None:
    """Writes a checkpoint completely or not at all; until the end, an old file stays as it was.

    Args:
        checkpoint: For ``torch.save``. Of it, a path that ends in ``.safetensors`` gets the state
            dict and ``meta``.
        path: File to write or replace.

    Raises:
        OSError: If it cannot be written; a full disk, for example.
    """
    content: Any
    if path.endswith('.safetensors'):
        meta = {META: json.dumps(checkpoint.get('meta', {}), default=_to_json)}
        content = safetensors.torch.save(unwrap(checkpoint), meta)
    else:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
    write_atomically(content, path)
    flush_to_disk(path)


def _to_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def convert_checkpoint(source: str, target: str, to: str = 'mmsegmentation',
                       strip: bool = False,
                       half: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """Converts a checkpoint file; see :func:`convert_state_dict`.

    Args:
        source: File or address.
        target: File; one that ends in ``.safetensors`` holds the tensors and ``meta``.
        to: Layout of the target.
        strip: Keep what inference needs: no auxiliary heads, optimiser or message hub.
        half: Store the weights of convolutions in FP16, which halves the file. A network that
            loads it computes in FP32 as before. Normalisation stays in FP32: its variances may
            be smaller or larger than FP16 can represent.

    Returns:
        ``tensors``, ``parameters`` and ``bytes`` (of the tensors) before and after.

    Raises:
        CheckpointError: See :func:`read_checkpoint` and :func:`convert_state_dict`.
    """
    content = mmengine_load_checkpoint(source, 'cpu')  # as it is, for the sizes before
    checkpoint = prepare_content(content, source)
    state = unwrap(content)
    if recognise(state) is None:
        raise CheckpointError(f'{source} holds no BiSeNetV2, but {first_names(state)}')
    for key, value in state.items():
        check_tensor(f'{source}: {key}', value)
    before = _sizes(state)
    state = unwrap(checkpoint)
    if strip:
        checkpoint = {'meta': checkpoint['meta']}
        state = {key: value for key, value in state.items()
                 if not key.startswith('auxiliary_head.')}
    state = {key: value.detach().clone(memory_format=torch.contiguous_format)
             for key, value in convert_state_dict(state, to).items()}
    if half:
        state = {key: value.half() if value.ndim > 1 and value.is_floating_point() else value
                 for key, value in state.items()}
        for key, value in state.items():
            if value.dtype == torch.half:  # which ends at 65504
                check_tensor(f'{source}: {key} in FP16', value)
    write_checkpoint(dict(
        mmsegmentation={**checkpoint, 'state_dict': state},
        sssegmentation={'model': state},
        coincheung=state)[to], target)
    return before, _sizes(state)


def _sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    return dict(
        tensors=len(state),
        parameters=sum(value.numel() for key, value in state.items()
                       if not key.endswith(buffers)),
        bytes=sum(value.numel() * value.element_size() for value in state.values()))
