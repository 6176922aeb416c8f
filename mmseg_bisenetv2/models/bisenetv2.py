"""BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation.

Paper: https://arxiv.org/abs/2004.02147, IJCV 2021.

    @article{yu2021bisenet,
      title={BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic
             Segmentation},
      author={Yu, Changqian and Gao, Changxin and Wang, Jingbo and Yu, Gang and Shen, Chunhua
              and Sang, Nong},
      journal={International Journal of Computer Vision},
      year={2021}
    }

The network is that of the SSSegmentation model zoo (FCN + BiSeNetV2, Cityscapes val: 74.62 %
mIoU in FP32, 74.17 % in FP16), of MMSegmentation (73.21 %) and, with ``bga_upsample='nearest'``,
of CoinCheung/BiSeNet (74.95 %). The tests compare every stage with numbers computed by the first
and the third, and with the installed second; state-dict keys are MMSegmentation's.

This file follows the paper from the image to the fused feature map: detail branch, semantic
branch, bilateral guided aggregation. Shapes are given for an image of (N, 3, H, W); every stride
rounds up, so any input size works.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmseg_bisenetv2.models.checkpointing import (
    checkpointed,
    checkpointing_choice,
    recompute_activations,
    should_recompute_activations,
)
from mmseg_bisenetv2.registry import MODELS

BGA_UPSAMPLE_MODES = ('bilinear', 'nearest')


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, **kwargs: Any) -> ConvModule:
    """A 3x3 convolution without bias, normalised and activated as ``kwargs`` say."""
    return ConvModule(in_channels, out_channels, 3, stride, padding=1, **kwargs)


def depthwise_separable(
        in_channels: int, out_channels: int, stride: int, norm_cfg: dict,
        pointwise_norm: bool, bias: bool | str = 'auto') -> nn.Sequential:
    """Depthwise 3x3 with norm, then pointwise 1x1, neither of them activated.

    MMCV's ``DepthwiseSeparableConvModule`` has the same state-dict keys, but no option for a bias
    of the pointwise layer alone.
    """
    return nn.Sequential(OrderedDict(
        depthwise_conv=conv3x3(
            in_channels, in_channels, stride, groups=in_channels, norm_cfg=norm_cfg, act_cfg=None),
        pointwise_conv=ConvModule(
            in_channels, out_channels, 1, bias=bias,
            norm_cfg=norm_cfg if pointwise_norm else None, act_cfg=None)))


def reset_parameters(module: nn.Module) -> None:
    """Draws every layer of ``module`` anew from PyTorch's default initialisation.

    The reference trains from it. MMCV's ``ConvModule`` draws Kaiming normal in its constructor.
    """
    for layer in module.modules():
        reset = getattr(layer, 'reset_parameters', None)
        if reset is not None:
            reset()


class DetailBranch(nn.Module):
    """Wide and shallow: three stages of 3x3 convolutions, each halving the resolution.

    Args:
        in_channels: Channels of the image.
        channels: Channels of the stages.
        with_cp: Activation checkpointing of each stage.
        **cfg: ``norm_cfg`` and ``act_cfg`` of every layer.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], with_cp: str | None,
                 **cfg: Any) -> None:
        super().__init__()
        self.with_cp = with_cp
        stages = []
        for i, width in enumerate(channels):
            repeats = 1 if i == 0 else 2
            stages.append(nn.Sequential(
                conv3x3(in_channels, width, 2, **cfg),
                *(conv3x3(width, width, **cfg) for _ in range(repeats))))
            in_channels = width
        self.detail_branch = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 128, H/8, W/8)."""
        layers = [layer for stage in self.detail_branch for layer in stage.children()]
        if should_recompute_activations(self, layers, self.with_cp):
            return recompute_activations(layers, x)
        for stage in self.detail_branch:
            x = checkpointed(stage, x, with_cp=self.with_cp)
        return x


class StemBlock(nn.Module):
    """Start of the semantic branch: two ways to halve the resolution, concatenated and fused."""

    def __init__(self, in_channels: int, channels: int, **cfg: Any) -> None:
        super().__init__()
        self.conv_first = conv3x3(in_channels, channels, 2, **cfg)
        self.convs = nn.Sequential(
            ConvModule(channels, channels // 2, 1, **cfg),
            conv3x3(channels // 2, channels, 2, **cfg))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fuse_last = conv3x3(channels * 2, channels, **cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 16, H/4, W/4)."""
        x = self.conv_first(x)
        return self.fuse_last(torch.cat([self.convs(x), self.pool(x)], dim=1))


class GELayer(nn.Module):
    """Gather-and-expansion layer: 3x3 conv, depthwise expansion, 1x1 projection, shortcut.

    With stride 2 there are two depthwise convolutions, and the shortcut is a depthwise separable
    one.

    Args:
        in_channels: Input channels.
        out_channels: Output channels; equal to ``in_channels`` where ``stride`` is 1.
        expansion: Expansion ratio of the depthwise layers.
        stride: 1 or 2.
        norm_cfg: Normalisation of every layer.
        act_cfg: Activation of every activated layer.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int,
                 norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__()
        mid = in_channels * expansion
        activated: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        linear: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=None)
        self.conv1 = conv3x3(in_channels, in_channels, **activated)
        if stride == 1:
            self.dwconv = nn.Sequential(conv3x3(in_channels, mid, groups=in_channels, **activated))
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.dwconv = nn.Sequential(
                conv3x3(in_channels, mid, stride, groups=in_channels, **linear),
                conv3x3(mid, mid, groups=mid, **activated))
            self.shortcut = nn.Sequential(depthwise_separable(
                in_channels, out_channels, stride, norm_cfg, pointwise_norm=True))
        self.conv2 = nn.Sequential(ConvModule(mid, out_channels, 1, **linear))
        self.act = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h / stride, w / stride)."""
        return self.act(self.conv2(self.dwconv(self.conv1(x))) + self.shortcut(x))


class CEBlock(nn.Module):
    """Context embedding block: adds the global average of the map to each of its positions.

    Its first normalisation sees one value per image and channel, which is why training needs at
    least two images per device (or SyncBN over several).
    """

    def __init__(self, channels: int, norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__()
        cfg: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.gap = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), build_norm_layer(norm_cfg, channels)[1])
        self.conv_gap = ConvModule(channels, channels, 1, **cfg)
        self.conv_last = conv3x3(channels, channels, **cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape.

        Raises:
            ValueError: If a batch of one picture is to be normalised by its own statistics.
        """
        try:
            pooled = self.conv_gap(self.gap(x))  # (N, C, 1, 1)
        except ValueError as error:
            if x.size(0) != 1:
                raise
            raise ValueError(
                'A training batch of one picture: the context embedding normalises one value per '
                'channel and picture, of which BatchNorm needs at least two. Expected '
                'train_dataloader.batch_size=2 or more on each device; where an epoch leaves one '
                'picture for its last batch, train_dataloader.drop_last=True') from error
        return self.conv_last(x + pooled)


class SemanticBranch(nn.Module):
    """Narrow and deep: stem, three stages of gather-and-expansion layers, context embedding.

    Args:
        in_channels: Channels of the image.
        channels: Channels of the four stages.
        depths: Gather-and-expansion layers of stages 2 to 4.
        expansion: Expansion ratio of the gather-and-expansion layers.
        with_cp: Activation checkpointing of each stage.
        **cfg: ``norm_cfg`` and ``act_cfg`` of every layer.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], depths: Sequence[int],
                 expansion: int, with_cp: str | None, **cfg: Any) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.stage1 = StemBlock(in_channels, channels[0], **cfg)
        for i, depth in enumerate(depths, start=1):
            self.add_module(f'stage{i + 1}', nn.Sequential(
                GELayer(channels[i - 1], channels[i], expansion, stride=2, **cfg),
                *(GELayer(channels[i], channels[i], expansion, stride=1, **cfg)
                  for _ in range(depth - 1))))
        self.stage4_CEBlock = CEBlock(channels[-1], **cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> the four stages and the context embedding."""
        run: Callable[..., Tensor] = partial(checkpointed, with_cp=self.with_cp)
        stage1 = run(self.stage1, x)  # (N, 16, H/4, W/4)
        stage2 = run(self.stage2, stage1)  # (N, 32, H/8, W/8)
        stage3 = run(self.stage3, stage2)  # (N, 64, H/16, W/16)
        stage4 = run(self.stage4, stage3)  # (N, 128, H/32, W/32)
        return stage1, stage2, stage3, stage4, self.stage4_CEBlock(stage4)


class BGALayer(nn.Module):
    """Bilateral guided aggregation: each branch is gated by the other, at both resolutions.

    Args:
        channels: Channels of both branches and of the result.
        bias: Whether the two 1x1 convolutions have a bias.
        upsample: 'bilinear' or 'nearest'.
        align_corners: For bilinear upsampling.
        norm_cfg: Normalisation of every layer.
        act_cfg: Activation of the last layer.
    """

    def __init__(self, channels: int, bias: bool, upsample: str, align_corners: bool,
                 norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__()
        linear: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=None)
        self.resize: dict[str, Any] = dict(
            mode=upsample, align_corners=align_corners if upsample == 'bilinear' else None)
        self.detail_dwconv = nn.Sequential(depthwise_separable(
            channels, channels, 1, norm_cfg, pointwise_norm=False, bias=bias))
        self.detail_down = nn.Sequential(
            conv3x3(channels, channels, 2, **linear), nn.AvgPool2d(3, stride=2, padding=1))
        self.semantic_conv = nn.Sequential(conv3x3(channels, channels, **linear))
        self.semantic_dwconv = nn.Sequential(depthwise_separable(
            channels, channels, 1, norm_cfg, pointwise_norm=False, bias=bias))
        self.conv = conv3x3(channels, channels, norm_cfg=norm_cfg, act_cfg=act_cfg)

    def extra_repr(self) -> str:
        """How it resizes, which no layer of its own shows."""
        return ', '.join(f'{key}={value!r}' for key, value in self.resize.items())

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        """(N, C, H/8, W/8) and (N, C, H/32, W/32) -> (N, C, H/8, W/8)."""
        size = detail.shape[2:]
        gate = torch.sigmoid(F.interpolate(self.semantic_conv(semantic), size, **self.resize))
        fine = self.detail_dwconv(detail) * gate  # (N, 128, H/8, W/8)
        coarse = self.detail_down(detail) * torch.sigmoid(self.semantic_dwconv(semantic))
        return self.conv(fine + F.interpolate(coarse, size, **self.resize))


@MODELS.register_module()
class BiSeNetV2(BaseModule):
    """The BiSeNetV2 backbone: MMSegmentation's keywords (but ``conv_cfg``) and state-dict keys.

    Unlike MMSegmentation's, it hands ``norm_cfg`` and ``act_cfg`` to every layer, and an
    ``init_cfg`` of None leaves PyTorch's default initialisation, as the reference does.

    Args:
        in_channels: Channels of the image.
        detail_channels: Channels of the detail branch's stages.
        semantic_channels: Channels of the semantic branch's stages. The last
            must equal ``bga_channels``, as must the last of ``detail_channels``.
        semantic_expansion_ratio: Expansion ratio of the gather-and-expansion layers.
        bga_channels: Channels of the bilateral guided aggregation, and of the first output.
        width_factor: Alpha in the paper: multiplies every number of channels above.
            2 for BiSeNetV2-Large.
        depth_factor: d in the paper: multiplies the number of gather-and-expansion layers
            of every stage. 3 for BiSeNetV2-Large.
        bga_bias: Whether the two 1x1 convolutions in the aggregation have a bias. MMSegmentation
            has it, SSSegmentation and CoinCheung do not; zero makes the networks equal.
        bga_upsample: 'bilinear', or 'nearest' as in CoinCheung's network.
        align_corners: For bilinear upsampling in the aggregation.
        out_indices: Which of the five feature maps are returned, see below.
        norm_cfg: Normalisation of every layer.
        act_cfg: Activation of every activated layer.
        with_cp: Activation checkpointing, None, 'activations' or 'stages': see
            :mod:`mmseg_bisenetv2.models.checkpointing`.
        init_cfg: MMEngine's initialisation, for example
            ``dict(type='Kaiming', layer='Conv2d')``. None keeps PyTorch's default.

    Returns:
        For an image of (N, 3, H, W), in the order of ``out_indices``:

        - 0: the aggregation, (N, 128, H/8, W/8), for the decode head;
        - 1 to 4: the semantic stages, (N, 16, H/4, W/4), (N, 32, H/8, W/8), (N, 64, H/16, W/16)
          and (N, 128, H/32, W/32), for the booster heads. Sizes round up.

    Raises:
        ValueError: If an option has a value that it does not know.
    """

    def __init__(
            self,
            in_channels: int = 3,
            detail_channels: Sequence[int] = (64, 64, 128),
            semantic_channels: Sequence[int] = (16, 32, 64, 128),
            semantic_expansion_ratio: int = 6,
            bga_channels: int = 128,
            width_factor: float = 1,
            depth_factor: int = 1,
            bga_bias: bool = True,
            bga_upsample: str = 'bilinear',
            align_corners: bool = False,
            out_indices: Sequence[int] = (0, 1, 2, 3, 4),
            norm_cfg: dict = dict(type='BN'),  # noqa: B006 - MMSegmentation's convention, read only
            act_cfg: dict = dict(type='ReLU'),  # noqa: B006
            with_cp: str | bool | None = None,
            init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        if bga_upsample not in BGA_UPSAMPLE_MODES:
            raise ValueError(
                f'bga_upsample={bga_upsample!r}: expected one of {BGA_UPSAMPLE_MODES}')
        if isinstance(out_indices, int) or not set(out_indices) <= set(range(5)):
            raise ValueError(f'out_indices={out_indices}: expected a sequence of numbers from 0 '
                             '(aggregation) to 4 (semantic stage 4)')
        if depth_factor != int(depth_factor) or depth_factor < 1:
            raise ValueError(f'depth_factor={depth_factor}: expected a whole number from 1')
        if len(semantic_channels) != 4:
            raise ValueError(f'semantic_channels={semantic_channels}: expected four stages')
        if not detail_channels[-1] == semantic_channels[-1] == bga_channels:
            raise ValueError(
                f'detail_channels={detail_channels}, semantic_channels={semantic_channels}, '
                f'bga_channels={bga_channels}: the aggregation multiplies both branches, so their '
                'last widths and bga_channels must be equal')
        detail_channels, semantic_channels, (bga_channels, ) = (
            [round(width * width_factor) for width in widths]
            for widths in (detail_channels, semantic_channels, [bga_channels]))
        cfg = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        depths = [n * int(depth_factor) for n in (2, 2, 4)]
        self.out_indices = out_indices
        self.with_cp = with_cp = checkpointing_choice(with_cp, norm_cfg)
        self.detail = DetailBranch(in_channels, detail_channels, with_cp, **cfg)
        self.semantic = SemanticBranch(
            in_channels, semantic_channels, depths, semantic_expansion_ratio, with_cp, **cfg)
        self.bga = BGALayer(bga_channels, bga_bias, bga_upsample, align_corners, **cfg)
        reset_parameters(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps named by ``out_indices``, see the class."""
        *stages, context = self.semantic(x)
        fused = checkpointed(self.bga, self.detail(x), context, with_cp=self.with_cp)
        outs = (fused, *stages)
        return tuple(outs[i] for i in self.out_indices)
