"""BatchNorm folded into the convolutions before it: the same function of the image, less work."""
import copy

import torch
from mmcv.cnn import fuse_conv_bn, is_norm
from torch import nn


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy for inference: each convolution and its BatchNorm become one, in channels-last.

    Args:
        network: Layers of MMCV; it is not changed.

    Returns:
        The copy, in evaluation mode and without gradients. Its results differ by rounding: 1e-6
        of the logits' range.

    Raises:
        ValueError: If a BatchNorm has no running statistics.
    """
    # Not by nn.BatchNorm2d: what MMEngine makes of SyncBN for one device is another class.
    if any(is_norm(layer, exclude=nn.InstanceNorm2d) and getattr(layer, 'running_mean', 0) is None
           for layer in network.modules()):
        raise ValueError('BatchNorm without running statistics cannot be folded: expected '
                         'norm_cfg without track_running_stats=False')
    folded = fuse_conv_bn(copy.deepcopy(network).eval())
    return folded.to(memory_format=torch.channels_last).requires_grad_(False)
