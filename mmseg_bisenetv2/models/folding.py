"""BatchNorm folded into the convolutions before it: the same function of the image, less work."""
import copy

import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network):
    """A copy for inference: MMCV's conv-BN modules become one convolution, in channels-last.

    Args:
        network (nn.Module): In evaluation mode; it is not changed.

    Returns:
        nn.Module: The copy. Its results differ by rounding: 1e-6 of the logits' range.

    Raises:
        ValueError: If a normalisation still learns from what it sees.
    """
    if any(isinstance(module, _BatchNorm) and _learns(module) for module in network.modules()):
        raise ValueError('BatchNorm in training mode, or without running statistics, cannot be '
                         'folded. Call .eval() first')
    network = copy.deepcopy(network)
    for module in network.modules():
        if (isinstance(module, ConvModule) and module.with_norm
                and tuple(module.order) == ('conv', 'norm', 'act')
                and type(module.conv) is nn.Conv2d and isinstance(module.norm, _BatchNorm)):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.add_module(module.norm_name, nn.Identity())
    return network.to(memory_format=torch.channels_last).requires_grad_(False)


def _learns(norm):
    return norm.training or norm.running_mean is None


class FoldedCopy:
    """Keeps one folded copy of a network, and makes a new one when its weights have changed.

    It sees loading, new tensors, and operations on them. Fused optimisers and writes to ``.data``
    (MMEngine's EMA) leave no trace in PyTorch: whoever owns the copy drops it when training may
    have gone on.
    """

    def __init__(self):
        self.kept = None, None  # one assignment, so that no thread sees half of it

    def of(self, network):
        """The folded copy; the network itself where that is not to be had.

        That is while it learns, while gradients are wanted, or while hooks watch its layers.
        """
        modules = list(network.modules())
        if torch.is_grad_enabled() or any(
                module._forward_hooks or module._forward_pre_hooks
                or (isinstance(module, _BatchNorm) and _learns(module)) for module in modules):
            return network
        tensors = [*network.parameters(), *network.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            return network  # such tensors do not count their changes
        state = [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]
        known, folded = self.kept
        if state != known:
            with torch.inference_mode(False), torch.no_grad():
                folded = fold_batch_norm(network)
            self.kept = state, folded
        return folded

    def __deepcopy__(self, memo):
        return FoldedCopy()

    def __reduce__(self):
        return FoldedCopy, ()
