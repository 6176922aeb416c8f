"""MMSegmentation's FCNHead, with a loss that needs no full-size logits."""
from mmcv.cnn import ConvModule as MMCVConvModule

from mmseg_bisenetv2.models.bisenetv2 import reset_parameters
from mmseg_bisenetv2.models.losses import (
    UpsampleCrossEntropy,
    ohem_weight,
    upsample_cross_entropy,
)
from mmseg_bisenetv2.models.recompute import (
    ConvModule,
    convolve,
    dropped_and_convolved,
    is_watched,
)
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead
from mmseg.structures.sampler import OHEMPixelSampler


@MODELS.register_module()
class FCNHead(MMSegFCNHead):
    """Drop-in for MMSegmentation's FCNHead: same arguments, parameters and state-dict keys.

    With ``init_cfg=None`` every layer keeps PyTorch's default initialisation, from which the
    reference trains. MMSegmentation's head draws its convolutions from Kaiming normal whatever
    ``init_cfg`` says, and ``conv_seg`` from N(0, 0.01) unless told otherwise.

    With ``loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')`` the loss is computed
    from the head's own, low-resolution logits, the ``OHEMPixelSampler`` too. Any other loss or
    sampler, or several losses, go MMSegmentation's way and get resized logits.

    Args:
        **kwargs: Those of ``mmseg.models.decode_heads.FCNHead``.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for module in self.modules():
            if type(module) is MMCVConvModule:
                # MMSegmentation builds them; the same but for what it keeps for backward
                module.__class__ = ConvModule
        if self.init_cfg is None:
            reset_parameters(self)

    def init_weights(self):
        """Applies ``init_cfg``; without one, keeps what the constructor drew."""
        if self.init_cfg is not None:
            super().init_weights()

    def cls_seg(self, feat):
        """Classifies each pixel, (N, C, h, w) -> logits (N, classes, h, w)."""
        if self.dropout is None:
            return convolve(self.conv_seg, feat)
        if self.num_convs > 0 and not any(map(is_watched, self.modules())):
            return dropped_and_convolved(self.dropout, self.conv_seg, feat)
        return convolve(self.conv_seg, self.dropout(feat))  # others see feat

    def loss_by_feat(self, seg_logits, batch_data_samples):
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

    def _hard_pixels(self, seg_logits, labels):
        by_probability = self.sampler.thresh is not None
        losses, _ = upsample_cross_entropy(
            seg_logits.detach(), labels, reduction='none', ignore_index=self.ignore_index,
            class_weight=None if by_probability else self.loss_decode.class_weight,
            align_corners=self.align_corners)
        return ohem_weight(losses, labels != self.ignore_index, self.sampler.thresh,
                           self.sampler.min_kept * len(labels))
