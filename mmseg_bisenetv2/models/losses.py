"""Upsampling and cross-entropy in one: the loss of a segmentation head without full-size logits.

MMSegmentation resizes every head's logits to the labels' size and keeps the result for backward:
five heads on two 1024x1024 crops with 19 classes keep 881 MB. Here a tile of 4 MB is upsampled,
scored, and its gradient brought back to low resolution while the caches hold it; kept for
backward is that gradient alone, as large as the logits: 16 MB, and about a sixth of the time.
"""
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_bisenetv2.models.interpolation import bilinear_matrix
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.losses.utils import get_class_weight

# Bytes of one tile, which is passed over eight times: large enough for several threads to share,
# small enough for the caches. On a GPU without Triton larger tiles save launches.
TILE_BYTES = dict(cpu=4_000_000, cuda=64_000_000)

NO_SECOND_DERIVATIVE = (
    'UpsampleCrossEntropy cannot be differentiated twice (create_graph=True), nor by torch.func: '
    'its backward returns a gradient that forward has computed. Expected for that: '
    "loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True), the same loss, "
    'of MMSegmentation')


@MODELS.register_module()
class UpsampleCrossEntropy(nn.Module):
    """Cross-entropy of low-resolution logits against full-size labels; see the module.

    The mean is PyTorch's: over the valid pixels, or over their class weights. It equals
    MMSegmentation's ``CrossEntropyLoss(avg_non_ignore=True)``, while its default divides by all
    pixels, ignored ones included. With pixel weights (OHEM) the divisor stays the same, again
    like MMSegmentation's. Where every pixel is ignored the loss and its gradient are zero.

    Args:
        reduction: 'mean', 'sum' or 'none' (a loss for each pixel).
        class_weight: A weight for each class, or the file that holds them. ``None``: all 1.
        loss_weight: A factor on the result.
        loss_name: Its name in the log; names with 'loss' in them are summed and trained on.
    """

    def __init__(self, reduction: str = 'mean', class_weight: Sequence[float] | str | None = None,
                 loss_weight: float = 1.0, loss_name: str = 'loss_ce') -> None:
        super().__init__()
        self.reduction = reduction
        self.class_weight = get_class_weight(class_weight)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
            self, logits: Tensor, labels: Tensor, weight: Tensor | None = None,
            reduction_override: str | None = None, ignore_index: int = 255,
            align_corners: bool = False, return_accuracy: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the loss, with ``return_accuracy`` the pixel accuracy in percent beside it.

        ``reduction_override`` takes the place of ``reduction``; for the other arguments see
        :func:`upsample_cross_entropy`.
        """
        loss, accuracy = upsample_cross_entropy(
            logits, labels, weight, self.class_weight, ignore_index, align_corners,
            reduction_override or self.reduction)
        loss = self.loss_weight * loss
        return (loss, accuracy) if return_accuracy else loss


@torch.compiler.disable  # traced, its loop over tiles would unroll into thousands of nodes
def upsample_cross_entropy(
        logits: Tensor, labels: Tensor, weight: Tensor | None = None,
        class_weight: Sequence[float] | Tensor | None = None, ignore_index: int = 255,
        align_corners: bool = False, reduction: str = 'mean') -> tuple[Tensor, Tensor]:
    """``F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode='bilinear'), labels)``.

    Computes in float32, for float64 logits in float64, autocast or not.

    Args:
        logits: Of any size, (N, C, h, w), any floating type.
        labels: Class of each pixel, (N, H, W), any integer type. One outside the classes is an
            error on the CPU. On a GPU it makes the loss NaN, since an error would have to wait for
            the device; without Triton, or with class weights, PyTorch's own assertion ends the
            process.
        weight: A factor on each pixel's loss, (N, H, W), or None.
        class_weight: A weight for each class, C numbers, or None.
        ignore_index: The label of pixels that do not count.
        align_corners: As in :func:`torch.nn.functional.interpolate`.
        reduction: 'mean' (see :class:`UpsampleCrossEntropy`), 'sum' or 'none'.

    Returns:
        The loss, a scalar or (N, H, W), in the type it was computed in; and the percentage of
        valid pixels whose true class has the highest logit, (1,), a by-product of the same pass.

    Raises:
        ValueError: If a shape, the reduction, a label or the number of class weights is not one
            of those above.
        RuntimeError: If the loss is differentiated twice, or by :mod:`torch.func`.
    """
    if reduction not in ('mean', 'sum', 'none'):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise ValueError(f'logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: '
                         'expected (N, C, h, w) and (N, H, W)')
    dtype = torch.promote_types(logits.dtype, torch.float32)
    valid = labels.long() != ignore_index  # compared as int64, since -100 would be 156 in uint8
    factor = valid.to(dtype)  # (N, H, W)
    try:
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight, dtype=dtype, device=logits.device)
            if len(class_weight) != logits.size(1):
                raise ValueError(f'class_weight has {len(class_weight)} numbers, expected one for '
                                 f'each of the {logits.size(1)} classes')
            factor *= class_weight[labels.long() * valid]
        divisor = factor.sum()
        if weight is not None:
            factor = factor * weight.to(dtype)
        loss, correct = _UpsampleCrossEntropy.apply(
            logits, labels, factor, ignore_index, align_corners, reduction == 'none',
            torch.is_grad_enabled() and logits.requires_grad)
    except (IndexError, RuntimeError) as error:
        if 'setup_context' in str(error):  # what PyTorch says of this function within torch.func
            raise RuntimeError(NO_SECOND_DERIVATIVE) from error
        if labels.is_cpu:
            found, classes = labels[valid].long(), logits.size(1)
            wrong = found[(found < 0) | (found >= classes)].unique().tolist()
            if wrong:
                raise ValueError(f'labels {wrong} are neither among the {classes} classes nor '
                                 f'ignore_index {ignore_index}') from error
        raise
    if reduction == 'mean':
        loss = torch.where(divisor > 0, loss / divisor.clamp(min=torch.finfo(dtype).tiny), 0)
    eps = torch.finfo(torch.float32).eps  # as MMSegmentation has it: 100 where all is ignored
    accuracy = 100 * (correct + eps) / (valid.sum() + eps)
    return loss, accuracy[None]


def ohem_weight(
        pixel_losses: Tensor, valid: Tensor, thresh: float | None, min_kept: int) -> Tensor:
    """1 for the hard pixels and 0 for the others, as MMSegmentation's OHEMPixelSampler chooses.

    Args:
        pixel_losses: (N, H, W). With ``thresh`` they must be unweighted, since exp(-loss) is the
            probability of the true class.
        valid: Which pixels count, (N, H, W), bool.
        thresh: Pixels whose true class is less probable than this are hard. ``None``: exactly
            the ``min_kept`` pixels of highest loss are.
        min_kept: How many to keep at least, in the whole batch.

    Returns:
        (N, H, W), of the type of ``pixel_losses``.
    """
    if thresh is None:
        losses = pixel_losses.masked_fill(~valid, -1)
        hardest = losses.flatten().topk(min(min_kept, losses.numel()), sorted=False).indices
        weight = torch.zeros_like(losses)
        weight.view(-1)[hardest] = 1
        return weight * valid
    # 2 sorts ignored pixels behind all probabilities, which are at most 1.
    probability = torch.exp(-pixel_losses).masked_fill_(~valid, 2)
    rank = min(min_kept, probability.numel() - 1)
    limit = probability.flatten().kthvalue(rank + 1).values
    # With fewer valid pixels than min_kept the limit is the most probable of them. Comparing on
    # the device avoids waiting for it to say how many there are.
    last = probability.masked_fill(~valid, 0).max()
    limit = torch.where(limit > 1.5, last, limit).clamp(min=thresh)
    return (probability < limit).to(pixel_losses.dtype)


Scores = tuple[Tensor, Tensor, Any, Any]  # See score_tiles. The last two may be None.


class _UpsampleCrossEntropy(torch.autograd.Function):
    """Weighted sum of the pixels' losses, or each of them, and the number of correct pixels."""

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any, logits: Tensor, labels: Tensor, factor: Tensor, ignore_index: int,
            align_corners: bool, per_pixel: bool, gradient_wanted: bool) -> tuple[Tensor, Tensor]:
        total, correct, gradient, pixels = _score(
            logits, labels, factor, ignore_index, align_corners,
            gradient_wanted and not per_pixel, per_pixel)
        ctx.mark_non_differentiable(correct)
        ctx.dtype = logits.dtype
        ctx.arguments = (ignore_index, align_corners) if per_pixel else None
        if gradient_wanted:
            ctx.save_for_backward(*((logits, labels, factor) if per_pixel else (gradient,)))
        return (pixels if per_pixel else total), correct

    @staticmethod
    def backward(  # type: ignore[override]
            ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # PyTorch's once_differentiable would let a gradient penalty pass in silence: it raises
        # only where the gradient of the loss itself depends on something.
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        if ctx.arguments:
            logits, labels, factor = ctx.saved_tensors
            gradient = _score(logits, labels, factor * grad_output, *ctx.arguments, True, False)[2]
        else:  # Kept in float32, since the share of one pixel in a million is zero in float16.
            gradient = ctx.saved_tensors[0] * grad_output
        return gradient.to(ctx.dtype), None, None, None, None, None, None


def _score(logits: Tensor, labels: Tensor, factor: Tensor, *options: Any) -> Scores:
    logits = logits.to(factor.dtype).contiguous()
    backend = _triton(logits.device) if logits.is_cuda else None
    with torch.autocast(logits.device.type, enabled=False):
        return (backend or score_tiles)(logits, labels, factor, *options)


@functools.cache
def _triton(device: torch.device) -> Callable[..., Scores] | None:
    """The Triton kernel, if one pixel shows that it runs there; warns if it does not."""
    try:
        from mmseg_bisenetv2.models.losses_triton import score_cells
    except ImportError:  # There is no Triton for this platform.
        return None
    pixel = torch.zeros(1, 1, 1, 1, device=device)
    try:
        score_cells(pixel, pixel[0].long(), pixel[0], 255, False, True, True)
    except Exception as error:  # Triton needs a C compiler and Python's headers.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print_log(f'The loss runs without its Triton kernel, and slower: {reason[0]}',
                  logger='current', level=logging.WARNING)
        return None
    return score_cells


def score_tiles(
        logits: Tensor, labels: Tensor, factor: Tensor, ignore_index: int, align_corners: bool,
        with_gradient: bool, with_pixels: bool) -> Scores:
    """Losses and their gradient, tile by tile, in plain PyTorch.

    Args:
        logits: (N, C, h, w), contiguous, float32 or float64.
        labels: (N, H, W).
        factor: Of each pixel's loss, (N, H, W), of the type of ``logits``; 0 where ignored.
        ignore_index: The label of pixels that are not counted as correct.
        align_corners: As in :func:`torch.nn.functional.interpolate`.
        with_gradient: Whether to compute the gradient.
        with_pixels: Whether to return the pixels' losses.

    Returns:
        Sum of the losses times their factors, a scalar; number of pixels whose true class has
        the highest logit, a scalar; gradient of the sum, (N, C, h, w) or None; the summands,
        (N, H, W) or None.
    """
    batch, classes, *small = logits.shape
    height, width = labels.shape[1:]
    # Rows outside classes make both interpolations plain matrix products. In units of log 2,
    # since exp2 takes 0.3 ns a value and exp, through MKL, 0.9.
    logits = (logits * math.log2(math.e)).transpose(1, 2).contiguous()  # (N, h, C, w)
    area = TILE_BYTES.get(logits.device.type, 64_000_000) / (classes * logits.element_size())
    # A tile is eight times as wide as high, since long rows make long vector loops.
    columns = max(1, min(width, math.isqrt(int(8 * area))))
    rows = max(1, int(area) // columns)
    vertical, horizontal = (
        _interpolation(*sizes, align_corners, step, logits.dtype, logits.device)
        for *sizes, step in ((small[0], height, rows), (small[1], width, columns)))
    gradient = torch.zeros_like(logits) if with_gradient else None
    pixels = torch.empty_like(factor) if with_pixels else None
    totals = [factor.new_zeros(())]
    correct = torch.zeros((), dtype=torch.int64, device=logits.device)
    for n in range(batch):
        for ys, source_ys, down in vertical:  # (R, k): from k source rows to a tile's R rows
            for xs, source_xs, across in horizontal:  # (X, q), likewise
                source = logits[n, source_ys, :, source_xs]  # (k, C, q)
                tile = source.flatten(0, 1) @ across.t()  # (k*C, X)
                tile = down @ tile.view(len(source), -1)  # (R, C*X)
                tile = tile.view(len(down), classes, -1)
                label = labels[n, ys, xs].long()
                valid = label != ignore_index
                label = label.masked_fill(~valid, 0)[:, None]  # (R, 1, X)
                highest = tile.amax(1, keepdim=True)
                true = tile.gather(1, label)
                correct += ((true == highest)[:, 0] & valid).sum()
                tile.sub_(highest).exp2_()
                normaliser = tile.sum(1, keepdim=True)
                weight = factor[n, ys, None, xs]
                losses = (normaliser.log2() + highest - true) * (math.log(2) * weight)
                totals.append(losses.sum())
                if pixels is not None:
                    pixels[n, ys, xs] = losses[:, 0]
                if gradient is not None:
                    # For each logit, weight * (its probability - whether its class is the true)
                    tile.mul_(weight / normaliser).scatter_add_(1, label, -weight)
                    tile = down.t() @ tile.view(len(down), -1)  # (k, C*X)
                    tile = tile.view(-1, len(across)) @ across  # (k*C, q)
                    gradient[n, source_ys, :, source_xs] += tile.view(-1, *source.shape[1:])
    if gradient is not None:
        gradient = gradient.transpose(1, 2).contiguous()
    return torch.stack(totals).sum(), correct, gradient, pixels


@functools.lru_cache(maxsize=64)  # the heads and iterations of a training share them
def _interpolation(
        size_in: int, size_out: int, align_corners: bool, step: int, dtype: torch.dtype,
        device: torch.device) -> list[tuple[slice, slice, Tensor]]:
    """Interpolation along one axis, in pieces of ``step`` outputs.

    Returns:
        For each piece its outputs, the inputs they read, and the matrix from these to those,
        (outputs, inputs).
    """
    matrix = bilinear_matrix(size_in, size_out, align_corners)
    pieces = []
    for start in range(0, size_out, step):
        rows = matrix[start:start + step]
        read = rows.any(0).nonzero()
        inputs = slice(int(read[0]), int(read[-1]) + 1)
        pieces.append((slice(start, start + len(rows)), inputs,
                       rows[:, inputs].to(dtype=dtype, device=device)))
    return pieces
