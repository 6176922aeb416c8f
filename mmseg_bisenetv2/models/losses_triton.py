"""The fused loss as a Triton kernel, for CUDA: what ``losses.score_tiles`` computes.

Low-resolution pixels are the corners of cells; all full-size pixels of a cell interpolate the
same four. A program holds the four corners' logits in registers, goes through its cell's pixels
in blocks, and writes the cell's share of the gradient at each corner. The shares are added up
afterwards, in a fixed order and without atomics: the result is deterministic.

Tested against ``score_tiles`` in Triton's interpreter, and compiled for sm_80 and sm_90. Its speed
on a GPU has not been measured yet.
"""
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmseg_bisenetv2.models.interpolation import source_positions


def score_cells(
        logits: Tensor, labels: Tensor, factor: Tensor, ignore_index: int, align_corners: bool,
        with_gradient: bool, with_pixels: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Drop-in for :func:`mmseg_bisenetv2.models.losses.score_tiles`; see there."""
    batch, classes, small_height, small_width = logits.shape
    height, width = labels.shape[1:]
    labels, factor = labels.contiguous(), factor.contiguous()
    cells = batch * small_height * small_width
    losses = factor.new_empty(cells)
    correct = torch.empty(cells, dtype=torch.int32, device=logits.device)
    padded = triton.next_power_of_2(classes)
    # Pixels of a cell that are computed together: 1024 values, 8 for each thread, whatever the
    # number of classes. The kernel takes about 100 registers on sm_90 and spills none.
    block = max(1, min(1024 // padded, triton.next_power_of_2(
        -(-height // small_height) * -(-width // small_width))))
    shares = logits.new_empty(4, cells, classes) if with_gradient else losses
    pixels = torch.empty_like(factor) if with_pixels else None
    with torch.cuda.device_of(logits):  # Triton launches on the current GPU, whatever it is given.
        _score_cell[(cells,)](
            logits, labels, factor,
            *_cells(small_height, height, align_corners, logits.dtype, logits.device),
            *_cells(small_width, width, align_corners, logits.dtype, logits.device),
            losses, correct, shares, pixels if with_pixels else losses,
            classes, small_height, small_width, height, width, ignore_index,
            with_gradient, with_pixels, padded, block)
    gradient = None
    if with_gradient:
        shares = shares.view(2, 2, batch, small_height, small_width, classes)
        shares = _add_upper(shares[0], shares[1], dim=2)  # Top and bottom are (2, N, h, w, C) each.
        # Left and right are (N, h, w, C) each.
        gradient = _add_upper(shares[0], shares[1], dim=2).permute(0, 3, 1, 2).contiguous()
    return losses.sum(), correct.sum(), gradient, pixels


@functools.lru_cache(maxsize=64)
def _cells(size_in: int, size_out: int, align_corners: bool, dtype: torch.dtype,
           device: torch.device) -> tuple[Tensor, Tensor]:
    """The cells along one axis.

    Returns:
        The first pixel of each cell, and the end of the last, (size_in + 1), int32; and each
        pixel's share of the upper corner, (size_out).
    """
    lower, share = source_positions(size_in, size_out, align_corners)
    first = torch.searchsorted(lower, torch.arange(size_in + 1)).int()
    return first.to(device), share.to(dtype=dtype, device=device)


def _add_upper(lower: Tensor, upper: Tensor, dim: int) -> Tensor:
    """Adds the upper corners' shares to the next low-resolution pixel, or to the last itself."""
    last = lower.size(dim) - 1
    lower.narrow(dim, 1, last).add_(upper.narrow(dim, 0, last))
    lower.narrow(dim, last, 1).add_(upper.narrow(dim, last, 1))
    return lower


@triton.jit
def _score_cell(  # type: ignore[no-untyped-def]  # Triton has types of its own.
                logits, labels, factor, first_y, share_y, first_x, share_x,
                losses, correct, shares, pixels,
                classes, small_height, small_width, height, width, ignore_index,
                WITH_GRADIENT: tl.constexpr, WITH_PIXELS: tl.constexpr,
                CLASSES: tl.constexpr, BLOCK: tl.constexpr):
    cell = tl.program_id(0)
    x = cell % small_width
    y = cell // small_width % small_height
    n = (cell // (small_width * small_height)).to(tl.int64)
    top = tl.load(first_y + y)
    left = tl.load(first_x + x)
    columns = tl.load(first_x + x + 1) - left
    count = (tl.load(first_y + y + 1) - top) * columns
    below = tl.minimum(y + 1, small_height - 1) * small_width
    right = tl.minimum(x + 1, small_width - 1)

    c = tl.arange(0, CLASSES)
    plane = logits + (n * classes + c) * (small_height * small_width)
    tl_corner = tl.load(plane + y * small_width + x, mask=c < classes, other=0.)
    tr_corner = tl.load(plane + y * small_width + right, mask=c < classes, other=0.)
    bl_corner = tl.load(plane + below + x, mask=c < classes, other=0.)
    br_corner = tl.load(plane + below + right, mask=c < classes, other=0.)
    tl_share = tl.zeros_like(tl_corner)
    tr_share = tl.zeros_like(tl_corner)
    bl_share = tl.zeros_like(tl_corner)
    br_share = tl.zeros_like(tl_corner)
    loss = tl.sum(tl_share, 0)
    hits = tl.sum(c * 0, 0)

    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < count
        py = top + index // columns
        px = left + index % columns
        down = tl.load(share_y + py, mask=inside, other=0.)
        across = tl.load(share_x + px, mask=inside, other=0.)
        place = (n * height + py) * width + px
        label = tl.load(labels + place, mask=inside, other=0).to(tl.int64)
        weight = tl.load(factor + place, mask=inside, other=0.)
        known = ((label >= 0) & (label < classes)) | (label == ignore_index)
        weight = tl.where(known, weight, float('nan'))  # Loss and gradient show a wrong label.
        tl_part = ((1 - down) * (1 - across))[:, None]
        tr_part = ((1 - down) * across)[:, None]
        bl_part = (down * (1 - across))[:, None]
        br_part = (down * across)[:, None]
        logit = (tl_part * tl_corner[None, :] + tr_part * tr_corner[None, :]
                 + bl_part * bl_corner[None, :] + br_part * br_corner[None, :])  # (BLOCK, CLASSES)
        logit = tl.where(c[None, :] < classes, logit, -float('inf'))
        highest = tl.max(logit, 1)
        power = tl.exp(logit - highest[:, None])
        normaliser = tl.sum(power, 1)
        is_true = c[None, :] == label[:, None]
        true = tl.sum(tl.where(is_true, logit, 0.), 1)
        value = (tl.log(normaliser) + highest - true) * weight
        loss += tl.sum(value, 0)
        hits += tl.sum((inside & (label != ignore_index) & (true == highest)).to(tl.int32), 0)
        if WITH_PIXELS:
            tl.store(pixels + place, value, mask=inside)
        if WITH_GRADIENT:
            slope = weight[:, None] * (power / normaliser[:, None] - tl.where(is_true, 1., 0.))
            tl_share += tl.sum(tl_part * slope, 0)
            tr_share += tl.sum(tr_part * slope, 0)
            bl_share += tl.sum(bl_part * slope, 0)
            br_share += tl.sum(br_part * slope, 0)

    tl.store(losses + cell, loss)
    tl.store(correct + cell, hits)
    if WITH_GRADIENT:
        corner = shares + cell.to(tl.int64) * classes + c
        step = tl.num_programs(0).to(tl.int64) * classes
        tl.store(corner, tl_share, mask=c < classes)
        tl.store(corner + step, tr_share, mask=c < classes)
        tl.store(corner + 2 * step, bl_share, mask=c < classes)
        tl.store(corner + 3 * step, br_share, mask=c < classes)
