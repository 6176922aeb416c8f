"""Activation checkpointing: less memory in training, for some of the forward computed twice.

For each convolution with BatchNorm and ReLU autograd keeps what the convolution gives and what the
activation gives. ``with_cp='activations'`` keeps the first and computes normalisation and
activation again in backward, which costs little: no convolution is computed twice.
``with_cp='stages'`` keeps the input of a stage and computes all of it again. Both give the
gradients and the running statistics of a training without checkpointing, to the last bit.
"""
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg_bisenetv2.compat import has_hooks

CHOICES = (None, 'activations', 'stages')


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


def checkpointed(module: nn.Module, *inputs: Any, with_cp: str | None,
                 function: Callable[..., Any] | None = None) -> Any:
    """``module(*inputs)``, computed again in backward with 'stages'.

    Nothing is computed again without gradients, under torch.compile, which weighs memory against
    time by itself, and where a hook would be called again.

    Args:
        module: The module.
        *inputs: Its arguments.
        with_cp: A result of :func:`checkpointing_choice`.
        function: What to call in place of the module: a function that runs layers of it.
    """
    function = function or module
    if with_cp != 'stages' or not _may_recompute(module):
        return function(*inputs)
    return _checkpoint(module, function, *inputs)


def should_recompute_activations(module: nn.Module, layers: Iterable[nn.Module],
                                 with_cp: str | None) -> bool:
    """Whether layers of a module are run by :func:`recompute_activations`.

    'activations' says so, except where :func:`checkpointed` computes nothing again, either.
    Synchronised BatchNorm is left alone, since it would have to communicate again, and so are
    layers that are not MMCV's.
    """
    return (with_cp == 'activations' and _may_recompute(module)
            and all(type(layer) is ConvModule for layer in layers)
            and not any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()))


def recompute_activations(layers: Sequence[ConvModule], x: Tensor,
                          last: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """``last(layers(x))``, without keeping the normalised and the activated maps.

    A checkpointed part begins with the normalisation of one layer and ends with the convolution
    of the next. Computing it again stops at once when this convolution has its input, so that no
    convolution is computed twice (:class:`torch.utils.checkpoint.set_checkpoint_early_stop`).

    Args:
        layers: One after the other.
        x: Their input.
        last: Called on the last layer's output; it has to end with a convolution. None: the last
            layer's output is returned, and kept.
    """
    def convolve(layer: ConvModule, x: Tensor) -> Tensor:
        return layer(x, activate=False, norm=False)

    def finish(layer: ConvModule, x: Tensor) -> Tensor:
        x = layer.norm(x)
        return layer.activate(x) if layer.with_activation else x

    following = [partial(convolve, layer) for layer in layers[1:]] + ([last] if last else [])
    x = convolve(layers[0], x)
    for layer, follow in zip(layers, following, strict=False):
        x = _checkpoint(layer, lambda x, layer, follow: follow(finish(layer, x)), x, layer, follow)
    return x if last else finish(layers[-1], x)


def _may_recompute(module: nn.Module) -> bool:
    return (torch.is_grad_enabled() and not torch.compiler.is_compiling()
            and not has_hooks(module))


def _checkpoint(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _Recomputation(module)))


class _Recomputation:
    """The context in which layers of a module are called again in backward.

    The batch has been counted in the running statistics by the first call, so that what the
    second call adds is dropped. Switching off BatchNorm's tracking instead would change how many
    tensors are saved, which checkpoint() rejects.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.buffers = [(layer, name, buffer) for layer in self.module.modules()
                        for name, buffer in layer.named_buffers(recurse=False)]
        for layer, name, buffer in self.buffers:
            setattr(layer, name, buffer.clone())

    def __exit__(self, *error: Any) -> None:
        for layer, name, buffer in self.buffers:
            setattr(layer, name, buffer)
        del self.buffers
