"""Activation checkpointing: less memory in training, for some of the forward computed twice.

For each convolution with BatchNorm and ReLU autograd keeps what the convolution gives and what the
activation gives. ``with_cp='activations'`` keeps the first and computes normalisation and
activation again in backward, which costs little; ``with_cp='stages'`` keeps the input of a stage
and computes all of it again. Both give the gradients and the running statistics of a training
without checkpointing, to the last bit.
"""
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mmseg_bisenetv2.compat import has_forward_hooks

CHOICES = (None, 'activations', 'stages')
KEPT_OPERATIONS = [torch.ops.aten.convolution.default]


def checkpointing_choice(with_cp: str | bool | None, norm_cfg: dict | None) -> str | None:
    """What ``with_cp`` of a config means.

    Args:
        with_cp: One of None, 'activations' and 'stages'; or True, which is 'stages', or False,
            which is None, as in MMSegmentation's configs.
        norm_cfg: Normalisation of the layers.

    Raises:
        ValueError: If it is anything else, or 'activations' without a normalisation.
    """
    choice = {True: 'stages', False: None}[with_cp] if isinstance(with_cp, bool) else with_cp
    if choice not in CHOICES:
        raise ValueError(
            f"with_cp={with_cp!r}: expected None, 'activations' (computes normalisation and "
            "activation again in backward) or 'stages' (computes whole stages again)")
    if choice == 'activations' and norm_cfg is None:
        raise ValueError(
            "with_cp='activations' without norm_cfg: an activation would overwrite what its "
            "convolution gave. Expected None or 'stages'")
    return choice


def small_maps_choice(with_cp: str | None) -> str | None:
    """What ``with_cp`` means for layers whose maps are small.

    'activations' leaves them alone: there it would take a twentieth of a training step's time to
    save a thirtieth of its memory.

    Args:
        with_cp: A result of :func:`checkpointing_choice`.
    """
    return with_cp if with_cp == 'stages' else None


def checkpointed(module: nn.Module, *inputs: Any, with_cp: str | None,
                 function: Callable[..., Any] | None = None) -> Any:
    """``module(*inputs)``, part of which is computed again in backward.

    Nothing is computed again without gradients, under torch.compile, which weighs memory against
    time by itself, and where a forward hook would be called again. 'activations' leaves
    synchronised BatchNorm alone, since it would have to communicate again.

    Args:
        module: The module.
        *inputs: Its arguments.
        with_cp: A result of :func:`checkpointing_choice`.
        function: What to call in place of the module: a function that runs layers of it.
    """
    function = function or module
    if (with_cp is None or not torch.is_grad_enabled() or torch.compiler.is_compiling()
            or has_forward_hooks(module) or (with_cp == 'activations' and any(
                isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()))):
        return function(*inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        if with_cp == 'stages':
            return nullcontext(), _Recomputation(module, nullcontext())
        keep, reuse = create_selective_checkpoint_contexts(KEPT_OPERATIONS)
        return keep, _Recomputation(module, reuse)

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


class _Recomputation:
    """The context in which a module is called again in backward.

    The batch has been counted in the running statistics by the first call, so that what the
    second call adds is dropped. Switching off BatchNorm's tracking instead would change how many
    tensors are saved, which checkpoint() rejects.

    Args:
        module: The module.
        reuse: The context that gives what the first call has kept. PyTorch gives it once: a
            second backward through the same graph computes all of the module again.
    """

    def __init__(self, module: nn.Module, reuse: AbstractContextManager) -> None:
        self.module = module
        self.reuse = reuse

    def __enter__(self) -> None:
        self.buffers = [(layer, name, buffer) for layer in self.module.modules()
                        for name, buffer in layer.named_buffers(recurse=False)]
        for layer, name, buffer in self.buffers:
            setattr(layer, name, buffer.clone())
        self.reuse.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.reuse.__exit__(*error)
        self.reuse = nullcontext()
        for layer, name, buffer in self.buffers:
            setattr(layer, name, buffer)
        del self.buffers
