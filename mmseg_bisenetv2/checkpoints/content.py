"""What was read from a checkpoint file, prepared for MMEngine: checked, harmless, in one shape."""
from typing import Any

import torch

from mmseg_bisenetv2.checkpoints.layouts import (
    CheckpointError,
    convert_state_dict,
    recognise,
    unwrap,
)
from mmseg_bisenetv2.checkpoints.stored_config import keep_literals
from mmseg_bisenetv2.compat import with_source

MAX_DEPTH = 100  # levels of containers; copying and pickling them fails at about 300
MAX_ITEMS = 200_000  # a training checkpoint of BiSeNetV2 has 3,000


def prepare_content(content: Any, source: str) -> dict[str, Any]:
    """Gives the content of a checkpoint file the shape that MMEngine's callers rely on.

    A BiSeNetV2 of any layout becomes MMEngine's and is converted here already, because an
    ``init_cfg`` of type 'Pretrained' picks the keys of a prefix before any load hook sees them;
    the load hook then finds nothing left to convert. Another network keeps its shape. Configs,
    which MMEngine would run, are reduced to literals; attributes that a pickle gave its
    dictionaries stay behind.

    Args:
        content: What was read.
        source: The file's name or address, for messages, those of the load hook too.

    Returns:
        MMEngine's layout with all it holds; of other layouts ``{'meta': {}, 'state_dict': ...}``.

    Raises:
        CheckpointError: With the source, if there is no state dict, if containers are nested more
            than 100 deep or hold more than 200,000 items, or if what MMEngine reads beside the
            weights is no dictionary.
    """
    try:
        copied = _Copier().copy(content)
        state = unwrap(copied)
        _check_beside_weights(copied)
        keep_literals(copied, source)
        layout = recognise(state)
        if layout:
            state = convert_state_dict(copied)
            if layout != 'mmsegmentation' or 'state_dict' not in copied:
                copied = {'state_dict': {}}
            copied = {'meta': {}, **copied}
        else:
            state = copied.get('state_dict', copied)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    state = with_source(state, dict.get(content, 'state_dict', content), source)
    return {**copied, 'state_dict': state} if 'state_dict' in copied else state


class _Copier:
    """Copies containers without the attributes that a pickle may have given them."""

    def __init__(self) -> None:
        self.items = 0  # those of a container that is met again count again

    def copy(self, value: Any, level: int = 0) -> Any:
        """Copies dictionaries, lists and tuples, and hands everything else on.

        Raises:
            CheckpointError: If there are too many levels or items, or a tensor claims more than
                its data.
        """
        if isinstance(value, torch.Tensor):
            # An expanded tensor would take the memory that it claims once it is copied.
            if value.layout is torch.strided and (
                    value.numel() * value.element_size() > value.untyped_storage().nbytes()):
                raise CheckpointError('it holds a tensor that is larger than its data')
            return value
        if not isinstance(value, (dict, list)) and type(value) is not tuple:
            return value
        self.items += len(value)
        if level == MAX_DEPTH or self.items > MAX_ITEMS:
            raise CheckpointError(f'it holds containers nested more than {MAX_DEPTH} deep, or with '
                                  f'more than {MAX_ITEMS} items in all')
        if not isinstance(value, dict):
            return type(value)(self.copy(item, level + 1) for item in value)
        copied = type(value)()  # a Counter or OrderedDict stays one
        for key, item in dict.items(value):
            copied[key] = self.copy(item, level + 1)
        return copied


def _check_beside_weights(content: dict[str, Any]) -> None:
    """Refuses what MMEngine would stumble over."""
    meta = _dictionary(content, 'meta')
    _dictionary(meta, 'dataset_meta')
    hub = _dictionary(content, 'message_hub')
    for name in ('log_scalars', 'runtime_info', 'resumed_keys'):
        _dictionary(hub, name)


def _dictionary(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CheckpointError(f'"{name}" is not a dictionary with names for keys')
    return value
