"""BatchNorm folded into the convolutions before it: the same function of the image, less work."""
import copy

import torch
from mmcv.cnn import fuse_conv_bn, is_norm
from torch import nn

OTHER_NORMS = (
    nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy for inference: each convolution and its BatchNorm become one, in channels-last.

    Args:
        network: Layers of MMCV, in evaluation mode; it is not changed.

    Returns:
        The copy, without gradients. Its results differ by rounding: 1e-6 of the logits' range.

    Raises:
        ValueError: If a BatchNorm still learns from what it sees.
    """
    if any(norm.training or norm.running_mean is None for norm in network.modules()
           if is_norm(norm, exclude=OTHER_NORMS)):
        raise ValueError('BatchNorm in training mode, or without running statistics, cannot be '
                         'folded. Call .eval() first')
    folded = fuse_conv_bn(copy.deepcopy(network))
    return folded.to(memory_format=torch.channels_last).requires_grad_(False)
