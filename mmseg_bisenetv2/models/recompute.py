"""Half of a training's activations, computed again in backward from the other half.

Autograd keeps two tensors for each convolution with BatchNorm and ReLU: what the convolution gives,
for the normalisation, and what the activation gives, for the next convolution. The second is one
pass over the first with statistics that are known; no convolution is computed twice, and nothing
is counted twice in the running statistics.
"""
import functools

import torch
from mmcv.cnn import ConvModule as MMCVConvModule
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

# Values in a tensor from which on it is worth it: at 2 x 512x1024 those of the decode head, of the
# detail branch, and of the first layers of the semantic branch. The others are many and small
LEAST = 2 ** 21


class ConvModule(MMCVConvModule):
    """MMCV's ConvModule, which keeps half as much while it is trained with BatchNorm and ReLU.

    For this package's own layers: padded with zeros, in the order convolution, norm, activation.
    Same parameters and results; gradients differ by rounding, and cannot be differentiated again.
    """

    def forward(self, x):
        """(N, C, h, w) -> (N, C', h', w')."""
        if not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return super().forward(x)
        x = convolve(self.conv, x)
        if x.numel() >= LEAST and _applies(self, x):
            norm = self.norm
            norm.num_batches_tracked.add_(1)
            return NormReLU.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                                  norm.momentum, norm.eps)
        if self.with_norm:
            x = self.norm(x)
        return self.activate(x) if self.with_activation else x


def _applies(module, x):
    """Whether what follows the convolution is what :class:`NormReLU` computes."""
    norm = module.norm
    return (isinstance(norm, _BatchNorm) and type(norm).forward is _BatchNorm.forward
            and norm.training and norm.affine
            and norm.track_running_stats and norm.momentum is not None
            and module.with_activation and type(module.activate) is nn.ReLU
            and not any(is_watched(layer) for layer in (norm, module.activate))
            and norm.weight.requires_grad
            and norm.weight.dtype != torch.float16  # too short for the square of a deviation
            and x.numel() > x.size(1))  # BatchNorm of a single value is an error


def is_watched(module):
    """Whether somebody hooked in to see what comes and goes."""
    return bool(module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks)


def convolve(conv, x):
    """``conv(x)``, which does not keep an ``x`` that :class:`NormReLU` gave."""
    if torch.compiler.is_compiling() or not isinstance(x.grad_fn, NormReLU._backward_cls):
        return conv(x)
    return computed_again(conv, x, functools.partial(output_of, x.grad_fn))


class NormReLU(torch.autograd.Function):
    """BatchNorm of a batch, then ReLU, in PyTorch's own kernels; keeps its input only."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        """(N, C, h, w) -> the same shape."""
        y, mean, invstd, reserve, implementation = torch._batch_norm_impl_index(
            x, weight, bias, running_mean, running_var, True, momentum, eps,
            torch.backends.cudnn.enabled)
        ctx.save_for_backward(x, weight, bias, mean, invstd, reserve)
        ctx.eps, ctx.implementation = eps, implementation
        ctx.again = ctx.noise = None
        return y.relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """The gradients of x, weight and bias."""
        y = output_of(ctx)
        x, weight, _, mean, invstd, reserve = ctx.again[1]
        ctx.again = None
        grad = torch.ops.aten.threshold_backward.grad_input(
            grad, y, 0, grad_input=y)  # y has served
        gradients = torch.ops.aten._batch_norm_impl_index_backward(
            ctx.implementation, x, grad, weight, None, None, mean, invstd, True, ctx.eps,
            ctx.needs_input_grad[:3], reserve)
        return *gradients, None, None, None, None


def output_of(node):
    """What a :class:`NormReLU` returned, computed again once for all that ask in one backward.

    Args:
        node: ``y.grad_fn`` of its result. With ``noise``, what the result was multiplied by.
    """
    if node.again is None:
        kept = node.saved_tensors  # asked for once: checkpoint allows no more
        x, weight, bias, mean, invstd, _ = kept
        y = nn.functional.batch_norm(
            x, mean, invstd.square().reciprocal() - node.eps, weight, bias, False, 0.0, node.eps)
        y.relu_()
        # Where the noise is 0 the gradient is too, and elsewhere the sign stays
        node.again = y if node.noise is None else y.mul_(node.noise), kept
    return node.again[0]


def dropped_and_convolved(dropout, conv, x):
    """``conv(dropout(x))``, which keeps what the dropout draws and not what it gives.

    Args:
        dropout (nn.Dropout2d): Its draws are the same as when it is called.
        conv (nn.Conv2d): The convolution.
        x (Tensor): (N, C, h, w), of which nobody else knows: what :class:`NormReLU` gave is
            overwritten.
    """
    draws = dropout.training and 0 < dropout.p < 1 and not torch.compiler.is_compiling()
    node = x.grad_fn if draws else None
    if node is None or not isinstance(node, NormReLU._backward_cls):
        return convolve(conv, dropout(x))
    node.noise = x.new_empty(x.size(0), x.size(1), 1, 1).bernoulli_(1 - dropout.p)
    node.noise.div_(1 - dropout.p)
    return computed_again(conv, x.mul_(node.noise), functools.partial(output_of, node))


def computed_again(module, x, recompute):
    """``module(x)``, which keeps ``recompute`` for backward instead of ``x``.

    PyTorch then does not see when the weights are changed in place before backward.
    """
    address, shape = x.data_ptr(), x.shape  # not x: autograd holds on to this function

    def pack(tensor):
        same = tensor.data_ptr() == address and tensor.shape == shape
        return recompute if same else tensor

    with saved_tensors_hooks(pack, lambda kept: kept() if callable(kept) else kept):
        return module(x)
