"""MMSegmentation's EncoderDecoder: resizes once, keeps labels, loads any checkpoint or says why."""
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import nn

from mmseg_bisenetv2.checkpoints import TrainingBegan, load_hook
from mmseg_bisenetv2.models.fcn_head import FCNHead
from mmseg_bisenetv2.models.folding import FoldedCopy
from mmseg_bisenetv2.models.upsample_argmax import AxisTransform, upsample_argmax
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.structures import SegDataSample


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """Drop-in for MMSegmentation's EncoderDecoder: same arguments, same state-dict keys.

    Checkpoints of SSSegmentation and CoinCheung/BiSeNet load like MMSegmentation's, and one that
    fits nothing is an error: see :func:`mmseg_bisenetv2.checkpoints.load_hook`.

    Predicts the same labels as MMSegmentation's, straight from the low-resolution logits and with
    BatchNorm folded into the convolutions. ``seg_logits`` of a prediction are resized to the full
    size when their ``data`` is asked for, as by test-time augmentation, and not kept; what goes
    through ``to_dict``, as to metrics, needs ``keep_logits=True`` for them. Slide mode, a single
    output channel, and heads or subclasses that predict in a way of their own go MMSegmentation's.

    Args:
        *args: Those of ``mmseg.models.segmentors.EncoderDecoder``.
        keep_logits (bool): Predict as MMSegmentation does, full-size logits beside the labels.
        **kwargs: Those of ``mmseg.models.segmentors.EncoderDecoder``.
    """

    def __init__(self, *args, keep_logits=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.keep_logits = keep_logits
        self.training_began = TrainingBegan()
        self._folded = FoldedCopy()
        self.register_load_state_dict_pre_hook(load_hook)

    def init_weights(self):
        """Draws the initial weights, as MMEngine's runner asks for before a training."""
        self.training_began.is_set = True
        super().init_weights()

    def train(self, mode=True):
        """Sets the mode, as every validation does; what was folded before is dropped."""
        self._folded = FoldedCopy()
        return super().train(mode)

    def loss(self, inputs, data_samples):
        """The losses of all heads.

        Labels become int64 where a head is not ours, since PyTorch's loss needs that. The decode
        head, the largest, comes last, so that backward begins with it: it frees what it holds
        before the others' gradients are there. Dropout is thus drawn in another order than
        MMSegmentation's.
        """
        heads = [self.decode_head]
        if self.with_auxiliary_head:
            several = isinstance(self.auxiliary_head, nn.ModuleList)
            heads += self.auxiliary_head if several else [self.auxiliary_head]
        if not all(isinstance(head, FCNHead) for head in heads):
            for sample in data_samples:
                sample.gt_sem_seg.data = sample.gt_sem_seg.data.long()
        features = self.extract_feat(inputs)
        auxiliary = (self._auxiliary_head_forward_train(features, data_samples)
                     if self.with_auxiliary_head else {})
        return self._decode_head_forward_train(features, data_samples) | auxiliary

    def predict(self, inputs, data_samples=None):
        """Labels of a batch of images.

        Args:
            inputs (Tensor): Normalised images, (N, 3, H, W).
            data_samples (list[SegDataSample], optional): Their sizes, padding and flips.

        Returns:
            list[SegDataSample]: With ``pred_sem_seg``, (1, H', W') int64 at the size of the
            original image, and ``seg_logits``, (C, H', W') once its ``data`` is asked for.
        """
        if self.keep_logits or not self._labels_are_argmax_of_resized_logits():
            return super().predict(inputs, data_samples)
        size = tuple(inputs.shape[2:])
        if data_samples is None:
            data_samples = [SegDataSample() for _ in inputs]
            geometries = [tuple(map(AxisTransform.identity, size))] * len(inputs)
        else:
            size = self._resized_to(data_samples[0].metainfo)
            geometries = [_sides(size, sample.metainfo) for sample in data_samples]
        parts = [part for part in (self.backbone, getattr(self, 'neck', None), self.decode_head)
                 if part is not None]
        logits = self._folded.of(nn.Sequential(*parts))(inputs)
        for sample, low, (rows, columns) in zip(data_samples, logits, geometries, strict=True):
            labels = upsample_argmax(low, rows, columns, self.align_corners)
            sample.pred_sem_seg = PixelData(data=labels.long()[None])
            sample.seg_logits = SegLogits(
                low=low, metainfo=dict(rows=rows, columns=columns,
                                       align_corners=self.align_corners))
        return data_samples

    def _labels_are_argmax_of_resized_logits(self):
        head = type(self.decode_head)
        ours, theirs = type(self), MMSegEncoderDecoder
        return (self.test_cfg.get('mode', 'whole') == 'whole' and self.out_channels > 1
                and ours.extract_feat is theirs.extract_feat
                and ours.encode_decode is theirs.encode_decode
                and head.predict is BaseDecodeHead.predict
                and head.predict_by_feat is BaseDecodeHead.predict_by_feat)

    @staticmethod
    def _resized_to(meta):
        """The network's input, as MMSegmentation's head has it."""
        return tuple(meta.get('pad_shape', meta['img_shape']))[:2]


def _sides(size, meta):
    """What MMSegmentation's postprocess_result does to the logits of one image."""
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    direction = meta.get('flip_direction') if meta.get('flip') else None
    if meta.get('flip') and direction not in ('horizontal', 'vertical'):
        raise ValueError(f"flip_direction is {direction!r}, expected 'horizontal' or 'vertical'")
    height, width = meta['ori_shape'][:2]
    return (AxisTransform(size[0], top, size[0] - bottom, direction == 'vertical', height),
            AxisTransform(size[1], left, size[1] - right, direction == 'horizontal', width))


class SegLogits(PixelData):
    """Logits kept at the network's resolution, ``low`` (C, h, w); ``data`` is resized anew.

    The resizing, cropping and flipping are those of MMSegmentation.
    """

    @property
    def data(self):
        """(C, H, W) at the size of the original image."""
        rows, columns = self.rows, self.columns

        def resize(logits, size):
            return F.interpolate(
                logits[None], size, mode='bilinear', align_corners=self.align_corners)[0]

        logits = resize(torch.as_tensor(self.low), (rows.size, columns.size))
        logits = logits[:, rows.start:rows.stop, columns.start:columns.stop]
        logits = logits.flip([1] * rows.flip + [2] * columns.flip)
        logits = resize(logits, (rows.out, columns.out))
        return logits.numpy() if isinstance(self.low, np.ndarray) else logits  # after .numpy()

    def __getitem__(self, item):
        return PixelData(data=self.data)[item]
