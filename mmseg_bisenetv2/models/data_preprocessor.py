"""MMSegmentation's data preprocessor, a batch at a time and in channels-last memory."""
from typing import Any

import torch
from torch import Tensor

from mmseg_bisenetv2.compat import copy_without_blocking, swaps_channels
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.data_preprocessor import SegDataPreProcessor as MMSegDataPreProcessor
from mmseg.utils import stack_batch


@MODELS.register_module()
class SegDataPreProcessor(MMSegDataPreProcessor):
    """Drop-in for MMSegmentation's SegDataPreProcessor: same arguments, same values.

    MMSegmentation takes every image through six float copies: channels swapped, converted, mean
    subtracted, divided, padded, stacked. Here 8-bit images are padded and stacked as they are, and
    normalised in one go. Anything else (float images, no ``mean``, ``batch_augments``,
    ``test_cfg``) goes MMSegmentation's way.

    Images in pinned memory are copied to the GPU while it works on.

    Args:
        *args: Those of ``mmseg.models.SegDataPreProcessor``.
        channels_last: Whether the batch is in channels-last memory. Convolutions, norms and
            resizing follow their input, so that the whole network then runs in it, whatever the
            layout of its weights. Values and shapes stay the same.
        **kwargs: Those of ``mmseg.models.SegDataPreProcessor``.
    """

    def __init__(self, *args: Any, channels_last: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        copy_without_blocking(self)
        # A bool, since a torch.memory_format cannot be pickled by protocols below 4.
        self.channels_last = channels_last

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of the batch."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Turns what the data loader yields into what the network takes.

        Args:
            data: ``inputs``, images of (C, H, W); ``data_samples``, their labels.
            training: Whether to pad images and labels, to ``size`` or ``size_divisor``.

        Returns:
            ``inputs``, (N, C, H, W) float, normalised; and ``data_samples``.
        """
        if not self._is_usual(data['inputs'], training):
            data = super().forward(data, training)
            inputs = data['inputs'].contiguous(memory_format=self.memory_format)
            return dict(data, inputs=inputs)
        data = self.cast_data(data)
        images, samples = data['inputs'], data.get('data_samples')
        if not training:
            return dict(inputs=self._normalise(torch.stack(images)), data_samples=samples)
        batch, samples = stack_batch(
            images, samples, self.size, self.size_divisor, seg_pad_val=self.seg_pad_val)
        batch = self._normalise(batch)
        for padded, image in zip(batch, images, strict=True):  # pad_val is a normalised value
            padded[:, image.size(1):] = self.pad_val
            padded[:, :, image.size(2):] = self.pad_val
        return dict(inputs=batch, data_samples=samples)

    def _is_usual(self, images: Any, training: bool) -> bool:
        if not hasattr(self, 'mean') or self.batch_augments is not None:
            return False
        if not isinstance(images, list) or any(image.dtype != torch.uint8 for image in images):
            return False
        return training or (not self.test_cfg and len({image.shape for image in images}) == 1)

    def _normalise(self, batch: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.float32, self.mean.dtype)
        if swaps_channels(self) and batch.size(1) == 3:
            batch = batch.flip(1)
        # Computed as (x - mean) / std, since x * (1 / std) - mean / std is inexact near the mean.
        normalised = torch.empty(
            batch.shape, dtype=dtype, device=batch.device, memory_format=self.memory_format)
        return torch.sub(batch, self.mean.to(dtype), out=normalised).div_(self.std.to(dtype))
