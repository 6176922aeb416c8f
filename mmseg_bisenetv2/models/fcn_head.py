"""MMSegmentation's FCNHead, with a loss that needs no full-size logits."""
from typing import Any

from torch import Tensor, nn

from mmseg_bisenetv2.models.bisenetv2 import reset_parameters
from mmseg_bisenetv2.models.checkpointing import (
    checkpointed,
    checkpointing_choice,
    recompute_activations,
    should_recompute_activations,
)
from mmseg_bisenetv2.models.losses import (
    UpsampleCrossEntropy,
    ohem_weight,
    upsample_cross_entropy,
)
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.structures import SegDataSample
from mmseg.structures.sampler import OHEMPixelSampler


@MODELS.register_module()
class FCNHead(MMSegFCNHead):
    """Drop-in for MMSegmentation's FCNHead: same arguments, parameters and state-dict keys.

    With ``init_cfg=None`` every layer keeps PyTorch's default initialisation, from which the
    reference trains. MMSegmentation's head draws its convolutions from Kaiming normal whatever
    ``init_cfg`` says, and ``conv_seg`` from N(0, 0.01) unless told otherwise.

    With ``loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')`` the loss is computed
    from the head's own, low-resolution logits, and so is what ``OHEMPixelSampler`` chooses pixels
    by. Any other loss or sampler, or several losses, get resized logits, as in MMSegmentation.

    Args:
        *args: Those of ``mmseg.models.decode_heads.FCNHead``.
        with_cp: Activation checkpointing, None, 'activations' or 'stages' (the whole head): see
            :mod:`mmseg_bisenetv2.models.checkpointing`.
        **kwargs: Those of ``mmseg.models.decode_heads.FCNHead``.

    Raises:
        ValueError: If ``with_cp`` is anything else, or if a softmax cross-entropy has a single
            channel to work on, or another number of class weights than there are channels.
    """

    def __init__(self, *args: Any, with_cp: str | bool | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.with_cp = checkpointing_choice(with_cp, self.norm_cfg)
        several = isinstance(self.loss_decode, nn.ModuleList)
        for loss in self.loss_decode if several else [self.loss_decode]:
            if isinstance(loss, UpsampleCrossEntropy) or (
                    isinstance(loss, CrossEntropyLoss) and not loss.use_sigmoid
                    and not loss.use_mask):
                _check_softmax(loss, self.out_channels)
        if self.init_cfg is None:
            reset_parameters(self)

    def init_weights(self) -> None:
        """Applies ``init_cfg``; without one, keeps what the constructor drew."""
        if self.init_cfg is not None:
            super().init_weights()

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Feature maps of the backbone -> logits (N, classes, h, w)."""
        # Activations are recomputed for a plain sequence of layers only: not in a subclass with a
        # _forward_feature of its own, nor in a head that concatenates its input.
        if (not self.concat_input and isinstance(self.convs, nn.Sequential)
                and should_recompute_activations(self, self.convs, self.with_cp)
                and getattr(self._forward_feature, '__func__', None)
                is MMSegFCNHead._forward_feature):
            return recompute_activations(
                [*self.convs], self._transform_inputs(inputs), last=self.cls_seg)
        return checkpointed(self, inputs, with_cp=self.with_cp, function=super().forward)

    def loss_by_feat(self, seg_logits: Tensor,
                     batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """The loss and the pixel accuracy in percent, under MMSegmentation's names.

        Args:
            seg_logits: (N, C, h, w).
            batch_data_samples: N samples with labels (1, H, W).
        """
        fused = (isinstance(self.loss_decode, UpsampleCrossEntropy)
                 and (self.sampler is None or type(self.sampler) is OHEMPixelSampler))
        if not fused:
            for sample in batch_data_samples:  # PyTorch's cross-entropy takes no uint8
                sample.gt_sem_seg.data = sample.gt_sem_seg.data.long()
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (N, H, W)
        weight = None if self.sampler is None else self._hard_pixels(seg_logits, labels)
        loss, accuracy = self.loss_decode(
            seg_logits, labels, weight, ignore_index=self.ignore_index,
            align_corners=self.align_corners, return_accuracy=True)
        return {self.loss_decode.loss_name: loss, 'acc_seg': accuracy}

    def _hard_pixels(self, seg_logits: Tensor, labels: Tensor) -> Tensor:
        """The weights 0 or 1, (N, H, W), that MMSegmentation's OHEMPixelSampler would give."""
        # With a threshold the sampler looks at probabilities, in which class weights have no part;
        # without one, at the losses, which have them.
        by_probability = self.sampler.thresh is not None
        losses, _ = upsample_cross_entropy(
            seg_logits.detach(), labels, reduction='none', ignore_index=self.ignore_index,
            class_weight=None if by_probability else self.loss_decode.class_weight,
            align_corners=self.align_corners)
        return ohem_weight(losses, labels != self.ignore_index, self.sampler.thresh,
                           self.sampler.min_kept * len(labels))


def _check_softmax(loss: UpsampleCrossEntropy | CrossEntropyLoss, channels: int) -> None:
    kind, weights = type(loss).__name__, loss.class_weight
    if channels == 1:
        raise ValueError(
            f'{kind} with one output channel: the softmax of a single logit is 1 whatever the '
            'logit is, so that nothing is learned. Expected two output channels, or '
            "loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)")
    if weights is not None and len(weights) != channels:
        raise ValueError(f'{kind}: class_weight has {len(weights)} numbers for {channels} output '
                         'channels. Expected one for each')
