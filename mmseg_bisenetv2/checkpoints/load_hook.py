"""What a segmentor does with a state dict of any layout before it is loaded."""
import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_bisenetv2.checkpoints.layouts import (
    BGA_BIASES,
    CheckpointError,
    check_tensor,
    convert_state_dict,
    first_names,
)


class TrainingBegan:
    """Whether ``init_weights()`` was called; copies of a model share it.

    MMEngine's EMAHook copies the model before the runner calls ``init_weights()``, and loads the
    checkpoint into both.
    """

    is_set = False

    def __deepcopy__(self, memo: dict[int, Any]) -> 'TrainingBegan':
        return self


CLASSIFIER = ('conv_seg.weight', 'conv_seg.bias')


def load_hook(segmentor: nn.Module, state_dict: dict[str, Any], prefix: str,
              local_metadata: dict[str, Any], strict: bool, *_: Any) -> None:
    """Converts a state dict in place and checks it: a hook to run before a segmentor loads.

    MMEngine loads non-strictly and only logs what does not fit, so that a wrong file would test
    random weights. Whatever the mode, it is an error here if

    - a tensor has another shape or type than the model's, or values that
      :func:`~mmseg_bisenetv2.checkpoints.layouts.check_tensor` refuses;
    - hardly any of the model's tensors are there;
    - the number of classes differs, unless the model is being fine-tuned: then the classifiers
      are left out, with a warning;
    - a tensor that inference needs is missing, unless the model is being fine-tuned, or
      ``load_state_dict`` was called with ``strict=False``.

    Everything else is left to the loader: names that are missing or superfluous are an error in
    strict mode and a warning of MMEngine's otherwise. There is no warning of the auxiliary heads,
    which inference does not need, where a file without them is tested.

    A model is being fine-tuned if ``init_weights()`` was called: MMEngine's runner does so before
    it loads for training, and nobody does for testing or inference. It means that the model has
    weights of its own to fall back on.

    Args:
        segmentor: With ``training_began``, see :class:`TrainingBegan`.
        state_dict: Changed in place.
        prefix: What the segmentor's keys begin with.
        local_metadata: Has the file's name as ``source`` if it was read by this package.
        strict: True for MMEngine's loader in both its modes.

    Raises:
        CheckpointError: See above.
    """
    state = {key.removeprefix(prefix) if isinstance(key, str) else key: value
             for key, value in state_dict.items() if str(key).startswith(prefix)}
    if prefix and not state:
        return  # a wrapper loads something else
    tuned: bool = segmentor.training_began.is_set  # type: ignore[union-attr, assignment]
    source, own = local_metadata.get('source'), segmentor.state_dict()
    try:
        state = convert_state_dict(state)
        _fit(state, own, tuned, strict)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}' if source else str(error)) from None
    auxiliary = {key: value for key, value in own.items() if key.startswith('auxiliary_head.')}
    if source and not tuned and not auxiliary.keys() & state.keys():
        state.update(auxiliary)
    for key in list(state_dict):
        if str(key).startswith(prefix):
            del state_dict[key]
    state_dict.update((prefix + key, value) for key, value in state.items())


def _fit(state: dict[str, Any], own: dict[str, Tensor], tuned: bool, strict: bool) -> None:
    for bias in BGA_BIASES:
        if bias in state and bias not in own and bias.replace('.bias', '.weight') in own:
            check_tensor(bias, state[bias])
            if torch.any(state.pop(bias) != 0):
                raise CheckpointError(f'{bias} is not 0, and the model was built without it. Add '
                                      '--cfg-options model.backbone.bga_bias=True')
    _fit_classes(state, own, tuned)
    common = state.keys() & own.keys()
    for key in sorted(common):
        check_tensor(key, state[key])
        if state[key].shape != own[key].shape:
            raise CheckpointError(f'{key}: the checkpoint has {tuple(state[key].shape)}, the model '
                                  f'{tuple(own[key].shape)}. Is it for another config?')
        if state[key].is_floating_point() != own[key].is_floating_point():
            raise CheckpointError(f'{key}: the checkpoint has {state[key].dtype}, the model '
                                  f'{own[key].dtype}')
    if len(common) < len(own) / 10:
        raise CheckpointError(
            f'the checkpoint fits {len(common)} of the {len(own)} tensors of this model. It has '
            f'{first_names(state)}, the model {first_names(own)}')
    missing = [key for key in own if key not in state
               and not key.startswith('auxiliary_head.')
               and not key.endswith('num_batches_tracked')]
    if missing and strict and not tuned:
        remedy = ('Add --cfg-options model.backbone.bga_bias=False'
                  if set(missing) == set(BGA_BIASES) else
                  'To train from such a checkpoint, give it as load_from')
        raise CheckpointError(f'{len(missing)} tensors that inference needs are missing: '
                              f'{first_names(missing)} {remedy}')


def _fit_classes(state: dict[str, Any], own: dict[str, Tensor], tuned: bool) -> None:
    """Handles classifiers whose number of classes differs from the model's, nothing else."""
    differing = [
        key for key in state.keys() & own.keys()
        if key.endswith(CLASSIFIER) and isinstance(state[key], torch.Tensor)
        and state[key].dim() == own[key].dim() and state[key].shape[1:] == own[key].shape[1:]
        and state[key].shape != own[key].shape]
    if not differing:
        return
    theirs, ours = len(state[differing[0]]), len(own[differing[0]])
    message = f'the checkpoint has {theirs} classes, the config {ours}'
    if not tuned:
        raise CheckpointError(
            f'{message}. To test it, set num_classes={theirs} in model.decode_head and in every '
            'model.auxiliary_head; to fine-tune from it, give it as load_from of a training')
    for key in differing:
        del state[key]
    print_log(f'{message}: {len(differing)} tensors of the classifiers are left out and start '
              'anew', logger='current', level=logging.WARNING)
