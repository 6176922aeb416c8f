"""The network as it is deployed: camera frames in, labels out, nothing that only training needs.

The model that was trained is not changed: everything here works on a folded copy of it.
"""
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_bisenetv2.compat import swaps_channels
from mmseg_bisenetv2.deploy.winograd import WinogradHead, with_winograd
from mmseg_bisenetv2.models.bisenetv2 import BiSeNetV2
from mmseg_bisenetv2.models.folding import fold_batch_norm

from mmseg.models.segmentors import EncoderDecoder


class ImageNetwork(nn.Module):
    """From normalised images to low-resolution logits: backbone and decode head.

    BatchNorm is folded into the convolutions and the auxiliary heads are left out.

    Args:
        model: MMSegmentation's or ours, with a BiSeNetV2 of this package.

    Raises:
        TypeError: If the model has another backbone, a neck, more than 256 classes, or a way to
            predict of its own.
    """

    backbone: Any
    decode_head: Any

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.backbone, self.decode_head = _without_training_parts(model)
        # The two convolutions that see the image
        self.first_convs = (self.backbone.detail.detail_branch[0][0].conv,
                            self.backbone.semantic.stage1.conv_first.conv)
        self.in_channels = self.first_convs[0].in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W), normalised float -> logits (N, C, H/8, W/8)."""
        return self.decode_head(self.backbone(images))


class FrameNetwork(ImageNetwork):
    """The same from camera frames: with the normalisation of the data preprocessor.

    The order of the channels and the standard deviation go into the two convolutions that see the
    image; the mean is subtracted, since their padding is zero.

    Args:
        model: As for :class:`ImageNetwork`.
        winograd: A class of :mod:`mmseg_bisenetv2.deploy.winograd`, for a CPU; it replaces the
            head where that is one 3x3 convolution.

    Raises:
        TypeError: As of :class:`ImageNetwork`; or if the images have other than 3 channels, or the
            decode head gives no logits of a batch of frames.
    """

    mean: Tensor

    def __init__(self, model: EncoderDecoder,
                 winograd: type[WinogradHead] | None = None) -> None:
        super().__init__(model)
        if self.in_channels != 3:
            raise TypeError(
                f'A network for images of {self.in_channels} channels cannot be deployed with this '
                'package: expected 3, since frames are BGR pictures')
        if winograd:
            self.decode_head = with_winograd(self.decode_head, winograd)
        preprocessor = model.data_preprocessor
        # MMSegmentation takes one mean for all channels, too, and no mean at all.
        mean, std = (getattr(preprocessor, name, torch.tensor(value)).flatten().expand(3)
                     for name, value in (('mean', 0.0), ('std', 1.0)))
        swap = swaps_channels(preprocessor)
        for conv in self.first_convs:
            weight = conv.weight / std[:, None, None]
            conv.weight.data = (weight.flip(1) if swap else weight).contiguous(
                memory_format=torch.channels_last)
        mean = mean.flip(0) if swap else mean
        self.register_buffer('mean', mean.clone().view(1, 3, 1, 1), persistent=False)
        self._check_logits()

    def _check_logits(self) -> None:
        """Raises TypeError where two frames do not become logits, as with DMHead and DAHead."""
        try:
            with torch.no_grad():
                frames = torch.zeros(2, 72, 104, 3, dtype=torch.uint8, device=self.mean.device)
                found: Any = tuple(self(frames).shape)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Each head fails in its own way.
            found = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        expected = (2, self.decode_head.out_channels, 9, 13)
        if found != expected:
            raise TypeError(
                f'A {type(self.decode_head).__name__} cannot be deployed with this package: '
                f'expected a head such as FCNHead, which gives logits {expected} for two frames of '
                f'72x104; got {found}')

    def set_precision(self, dtype: torch.dtype) -> Self:
        """Weights and activations in ``dtype``; the mean is subtracted in float32. Returns self."""
        self.backbone.to(dtype)
        self.decode_head.to(dtype)
        return self

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N, H, W, 3), uint8, BGR -> logits (N, C, H/8, W/8)."""
        # TensorRT accepts uint8 inputs only where they are converted at once. The permuted images
        # are in channels-last memory.
        images = frames.float().permute(0, 3, 1, 2) - self.mean
        return super().forward(images.to(self.decode_head.conv_seg.weight.dtype))


def _without_training_parts(model: EncoderDecoder) -> nn.Sequential:
    """A folded copy of backbone and decode head.

    Raises:
        TypeError: If more than these two, or something else, takes part in prediction.
    """
    if not isinstance(model.backbone, BiSeNetV2) or model.with_neck:
        raise TypeError(
            f'A {type(model.backbone).__name__}{" with a neck" * model.with_neck} cannot be '
            'deployed with this package: expected mmseg_bisenetv2.BiSeNetV2 alone')
    if model.decode_head.in_index != 0 or not 1 < model.out_channels <= 256:
        raise TypeError(
            f'A decode head with in_index={model.decode_head.in_index} and '
            f'{model.out_channels} output channels cannot be deployed with this package: expected '
            'the aggregation (0) and 2 to 256 channels, since labels are uint8')
    if model.test_cfg.get('mode', 'whole') != 'whole' or model.data_preprocessor.test_cfg:
        raise TypeError(
            f'test_cfg={dict(model.test_cfg)} and data_preprocessor.test_cfg='
            f'{model.data_preprocessor.test_cfg} cannot be deployed with this package: expected '
            'whole images without padding')
    network: Any = fold_batch_norm(nn.Sequential(model.backbone, model.decode_head))
    network[0].out_indices = (0, )
    for module in network.modules():
        if hasattr(module, 'with_cp'):  # Activation checkpointing is for training, and cannot be
            module.with_cp = None  # traced: OpenVINO's conversion would fail.
    return network


class LabelNetwork(nn.Module):
    """From frames to labels, in operations that every runtime has.

    The argmax is written as a maximum, a comparison and a minimum. As an ArgMax, TensorRT would
    sort (its TopK, without uint8 and slow across channels), and OpenVINO takes twice the time.

    Args:
        network: What gives the logits.
        align_corners: As in :func:`torch.nn.functional.interpolate`.
    """

    classes: Tensor

    def __init__(self, network: FrameNetwork, align_corners: bool = False) -> None:
        super().__init__()
        self.network = network
        self.align_corners = align_corners
        classes = network.decode_head.out_channels
        self.register_buffer(
            'classes', torch.arange(classes, dtype=torch.float32).view(1, -1, 1, 1),
            persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, H, W, 3) -> labels (N, H, W), uint8, and the logits (N, C, H/8, W/8)."""
        logits = self.network(frames).float()
        full = F.interpolate(
            logits, frames.shape[1:3], mode='bilinear', align_corners=self.align_corners)
        highest = full.amax(1, keepdim=True)
        labels = torch.where(full >= highest, self.classes, float(self.classes.numel())).amin(1)
        return labels.to(torch.uint8), logits
