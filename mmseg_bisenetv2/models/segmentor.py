"""MMSegmentation's EncoderDecoder: labels from low-resolution logits, checkpoints of any layout."""
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmseg_bisenetv2.checkpoints import TrainingBegan, load_hook
from mmseg_bisenetv2.models.fcn_head import FCNHead
from mmseg_bisenetv2.models.upsample_argmax import AxisTransform, upsample_argmax
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.structures import SegDataSample

# MMSegmentation's methods for which EncoderDecoder.predict is a shortcut. If a subclass overrides
# one, or somebody replaces one on an object or on MMSegmentation's class, the shortcut would leave
# that out, so that MMSegmentation's predict() is called. To notice a replacement, the originals are
# kept here, from the time when this module is imported.
PREDICT = MMSegEncoderDecoder.predict
SEGMENTOR_METHODS = (
    MMSegEncoderDecoder.inference, MMSegEncoderDecoder.whole_inference,
    MMSegEncoderDecoder.encode_decode, MMSegEncoderDecoder.postprocess_result)
HEAD_METHODS = (BaseDecodeHead.predict, BaseDecodeHead.predict_by_feat)


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """Drop-in for MMSegmentation's EncoderDecoder: same arguments, same state-dict keys.

    Checkpoints of SSSegmentation and CoinCheung/BiSeNet load like MMSegmentation's, and one that
    fits nothing is an error: see :func:`mmseg_bisenetv2.checkpoints.load_hook`.

    Predicts the same labels as MMSegmentation's, straight from the low-resolution logits. The
    ``seg_logits`` of a prediction are resized when they are asked for, see :class:`SegLogits`.
    MMEngine hands predictions to metrics as dictionaries (``to_dict``), in which they are not
    resized: a metric that reads logits needs ``keep_logits=True``. Slide mode, a single output
    channel, and models of which a method of the prediction was overridden or replaced are
    predicted by MMSegmentation's own code.

    Args:
        *args: Those of ``mmseg.models.segmentors.EncoderDecoder``.
        keep_logits: Whether to predict as MMSegmentation does, with full-size logits beside the
            labels.
        **kwargs: Those of ``mmseg.models.segmentors.EncoderDecoder``.

    Raises:
        ValueError: If a head would train on the pixels that the data preprocessor pads with.
    """

    def __init__(self, *args: Any, keep_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_logits = keep_logits
        self.training_began = TrainingBegan()
        self.register_load_state_dict_pre_hook(load_hook)
        padding = getattr(self.data_preprocessor, 'seg_pad_val', None)
        for head in self._heads():
            ignored = getattr(head, 'ignore_index', padding)
            if padding is not None and ignored != padding:
                raise ValueError(
                    f'data_preprocessor pads label maps with seg_pad_val={padding}, and '
                    f'{type(head).__name__} ignores {ignored}: padded pixels would be trained on. '
                    f'Expected the same number: data_preprocessor=dict(seg_pad_val={ignored})')

    def _heads(self) -> list[nn.Module]:
        if not self.with_auxiliary_head:
            return [self.decode_head]
        several = isinstance(self.auxiliary_head, nn.ModuleList)
        return [self.decode_head, *(self.auxiliary_head if several else [self.auxiliary_head])]

    def extract_feat(self, inputs: Tensor) -> Any:
        """The feature maps of backbone and neck.

        FCN heads take maps of any memory layout. Other heads may call ``Tensor.view``, as
        MMSegmentation's DMHead does, which fails for channels-last maps: where there are such
        heads, the maps are made contiguous.

        Args:
            inputs: Normalised images, (N, 3, H, W).
        """
        features = super().extract_feat(inputs)
        if all(isinstance(head, MMSegFCNHead) for head in self._heads()):
            return features
        return _contiguous(features)

    def init_weights(self) -> None:
        """Draws the initial weights, as MMEngine's runner asks for before a training."""
        self.training_began.is_set = True
        super().init_weights()

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """The losses of all heads.

        Labels become int64 where a head is not ours, since PyTorch's loss needs that. The decode
        head, the largest, is computed last, so that backward begins with it: its activations are
        freed before the gradients of the other heads take memory. Dropout is thus drawn in another
        order than MMSegmentation's.

        Args:
            inputs: Normalised images, (N, 3, H, W).
            data_samples: Their labels.
        """
        if not all(isinstance(head, FCNHead) for head in self._heads()):
            for sample in data_samples:
                sample.gt_sem_seg.data = sample.gt_sem_seg.data.long()
        features = self.extract_feat(inputs)
        auxiliary = (self._auxiliary_head_forward_train(features, data_samples)
                     if self.with_auxiliary_head else {})
        return self._decode_head_forward_train(features, data_samples) | auxiliary

    def predict(self, inputs: Tensor,
                data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Labels of a batch of images.

        Args:
            inputs: Normalised images, (N, 3, H, W).
            data_samples: Their sizes, padding and flips.

        Returns:
            The samples with ``pred_sem_seg``, (1, H', W') int64 at the size of the original
            image, and ``seg_logits``, (C, H', W').
        """
        if self.keep_logits or not self._labels_are_argmax_of_resized_logits():
            return super().predict(inputs, data_samples)
        size = tuple(inputs.shape[2:])
        if data_samples is None:
            data_samples = [SegDataSample() for _ in inputs]
            transforms = [tuple(map(AxisTransform.identity, size))] * len(inputs)
        else:
            size = self._resized_to(data_samples[0].metainfo)
            transforms = [_axis_transforms(size, sample.metainfo) for sample in data_samples]
        logits = self.decode_head.forward(self.extract_feat(inputs))
        for sample, low, (rows, columns) in zip(data_samples, logits, transforms, strict=True):
            labels = upsample_argmax(low, rows, columns, self.align_corners)
            sample.pred_sem_seg = PixelData(data=labels.long()[None])
            sample.seg_logits = SegLogits(
                low=low, metainfo=dict(rows=rows, columns=columns,
                                       align_corners=self.align_corners))
        return data_samples

    def _labels_are_argmax_of_resized_logits(self) -> bool:
        return (self.test_cfg.get('mode', 'whole') == 'whole' and self.out_channels > 1
                and _are_methods_of(super(), (PREDICT, ))
                and _are_methods_of(self, SEGMENTOR_METHODS)
                and _are_methods_of(self.decode_head, HEAD_METHODS))

    @staticmethod
    def _resized_to(meta: dict) -> tuple[int, int]:
        """The size of the network's input, as MMSegmentation's head reads it."""
        size = meta['img_shape']
        return tuple(size if isinstance(size, torch.Size) else meta.get('pad_shape', size))[:2]


def _are_methods_of(owner: object, functions: tuple[Callable, ...]) -> bool:
    return all(getattr(getattr(owner, function.__name__), '__func__', None) is function
               for function in functions)


def _axis_transforms(size: tuple[int, int], meta: dict) -> tuple[AxisTransform, AxisTransform]:
    """What MMSegmentation's postprocess_result does to the rows and columns of an image's logits.

    Args:
        size: Height and width of the network's input.
        meta: The image's ``metainfo``.
    """
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    direction = meta.get('flip_direction') if meta.get('flip') else None
    if meta.get('flip') and direction not in ('horizontal', 'vertical'):
        raise ValueError(f"flip_direction is {direction!r}, expected 'horizontal' or 'vertical'")
    height, width = meta['ori_shape'][:2]
    return (AxisTransform(size[0], top, size[0] - bottom, direction == 'vertical', height),
            AxisTransform(size[1], left, size[1] - right, direction == 'horizontal', width))


class SegLogits(PixelData):
    """Logits that are resized to the image's size, (C, H, W), when ``data`` is first asked for.

    Until then they are kept at the network's resolution, in ``low``, (C, h, w), with the
    ``rows`` and ``columns`` that say how they are resized, cropped and flipped: as MMSegmentation
    does. From then on, or once ``data`` is set, they are plain ``PixelData``.
    """

    def __getattr__(self, name: str) -> Any:
        """Called for ``data`` only as long as there is none."""
        if name != 'data' or 'low' not in self.__dict__:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        self.data = self._full_size()
        return self.data

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'low':  # its size is not that of ``data``, which PixelData would expect
            self.set_field(value, 'low')
            return
        super().__setattr__(name, value)
        if name == 'data':
            self.pop('low', None)

    def __getitem__(self, item: Any) -> PixelData:
        return PixelData(data=self.data)[item]

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of ``data``."""
        return (self.rows.out, self.columns.out) if 'low' in self.__dict__ else super().shape

    def _full_size(self) -> Tensor | np.ndarray:
        rows, columns = self.rows, self.columns

        def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
            return F.interpolate(
                logits[None], size, mode='bilinear', align_corners=self.align_corners)[0]

        logits = resize(torch.as_tensor(self.low), (rows.size, columns.size))
        logits = logits[:, rows.start:rows.stop, columns.start:columns.stop]
        logits = logits.flip([1] * rows.flip + [2] * columns.flip)
        logits = resize(logits, (rows.out, columns.out))
        # ``low`` is an array after PixelData.numpy().
        return logits.numpy() if isinstance(self.low, np.ndarray) else logits


def _contiguous(features: Any) -> Any:
    """Feature maps in contiguous memory, nested as the backbone has given them."""
    if isinstance(features, (list, tuple)):
        return type(features)(map(_contiguous, features))
    return features.contiguous()
