"""Upsampling and argmax in one: label maps from low-resolution logits, never at full size.

Bilinear interpolation is a weighted mean of neighbouring logits. A class that has the highest
logit at every corner of a cell has it everywhere inside, so that most of a street scene needs no
interpolation: its labels are those of the corners. Only the cells on the border between two
classes, about a tenth of them, are interpolated. The labels are the same as those of
``F.interpolate(...).argmax(1)`` (two logits that agree to the last bits may change places).

MMSegmentation resizes twice, to the network's input and to the original picture, with a crop and
a flip between them. Each step is linear and separable, so that all of them together are one
matrix for the rows and one for the columns, with two or three values for each output: one resize.
"""
import functools
from typing import NamedTuple

import torch

from mmseg_bisenetv2.models.interpolation import bilinear_matrix

CELL_BYTES = 1_000_000  # of interpolated logits at a time: they stay in the cache
STRIPE_BYTES = 64_000_000  # likewise on a GPU, where fewer launches count more


class AxisTransform(NamedTuple):
    """What happens to the rows, or to the columns, of the network's output.

    Attributes:
        size: Of the network's input, to which its output is resized.
        start: First of them that is kept; the rest is padding.
        stop: First of them that is not kept any more.
        flip: Whether these are reversed.
        out: Of the label map, to which the result is resized.
    """

    size: int
    start: int
    stop: int
    flip: bool
    out: int

    @classmethod
    def identity(cls, size):
        """That of an input of ``size`` that is neither padded, flipped nor resized."""
        return cls(size, 0, size, False, size)


class Taps(NamedTuple):
    """A banded matrix: output i is the sum over t of ``weight[i, t] * input[first[i] + t]``.

    Consecutive outputs with the same ``first`` form a cell, of ``index.size(1)`` outputs at most;
    where a cell has fewer, its last is repeated.
    """

    first: torch.Tensor  # (out,), int64
    weight: torch.Tensor  # (out, taps), float32
    index: torch.Tensor  # (cells, outputs), the outputs of each cell, int64


@functools.lru_cache(maxsize=64)  # the images of a data set, or of a video, share them
def taps(low, side, align_corners, device):
    """The matrix from ``low`` logits to the label map, for one :class:`AxisTransform`."""
    matrix = bilinear_matrix(low, side.size, align_corners)[side.start:side.stop]
    if side.flip:
        matrix = matrix.flip(0)
    if side.out != len(matrix):
        matrix = bilinear_matrix(len(matrix), side.out, align_corners) @ matrix
    used = (matrix != 0).to(torch.uint8)
    first = used.argmax(1)
    last = low - 1 - used.flip(1).argmax(1)
    width = int((last - first).max()) + 1
    first = first.clamp(max=low - width)
    weight = matrix.gather(1, first[:, None] + torch.arange(width))

    position = torch.arange(side.out)
    new = torch.ones(side.out, dtype=torch.bool)
    new[1:] = first[1:] != first[:-1]
    length = -(-side.out // low)
    since = position - torch.where(new, position, 0).cummax(0).values
    start = (since % length == 0).nonzero()[:, 0]
    stop = torch.cat([start[1:], torch.tensor([side.out])])
    index = (start[:, None] + torch.arange(length)).minimum(stop[:, None] - 1)
    return Taps(first.to(device), weight.float().to(device), index.to(device))


@torch.no_grad()
def upsample_argmax(logits, rows, columns, align_corners=False):
    """The class of each pixel.

    Args:
        logits: Of one image, (C, h, w), any floating type; computed in float32.
        rows: The :class:`AxisTransform` of the rows, or their number.
        columns: The :class:`AxisTransform` of the columns, or their number.
        align_corners: As in :func:`torch.nn.functional.interpolate`.

    Returns:
        (rows.out, columns.out), uint8 for up to 256 classes, else int64.
    """
    sides = [AxisTransform.identity(side) if isinstance(side, int) else side
             for side in (rows, columns)]
    y, x = (taps(low, side, align_corners, logits.device)
            for low, side in zip(logits.shape[1:], sides, strict=True))
    return (_by_cells if logits.is_cpu else _by_stripes)(logits.float(), y, x)


def _by_cells(logits, y, x):
    classes, _, width = logits.shape
    taps_y, taps_x = y.weight.size(1), x.weight.size(1)
    logits = logits.permute(1, 2, 0).contiguous()  # (h, w, C)
    top = logits.argmax(2)
    corners = top.unfold(0, taps_y, 1).unfold(1, taps_x, 1).flatten(2)
    same = (corners == corners[..., :1]).all(2)
    # Right where all corners agree; the other cells follow
    labels = top.to(torch.uint8 if classes <= 256 else torch.int64)
    labels = labels.index_select(1, x.first).index_select(0, y.first)
    rows, columns = (~same[y.first[y.index[:, 0]]][:, x.first[x.index[:, 0]]]).nonzero(
        as_tuple=True)
    outputs_y, outputs_x = y.index[rows], x.index[columns]  # (n, k), (n, l)
    corner = (torch.arange(taps_y)[:, None] * width + torch.arange(taps_x)).flatten()
    corner = (y.first[outputs_y[:, :1]] * width + x.first[outputs_x[:, :1]]) + corner  # (n, taps)
    values = logits.flatten(0, 1).index_select(0, corner.flatten()).unflatten(0, corner.shape)
    # A class below the same rival at every corner is below it everywhere inside. In most cells no
    # more than two are left
    winners = top.flatten()[corner]
    rivals = values.gather(2, torch.stack([winners.amin(1), winners.amax(1)], 1)[:, None].expand(
        -1, corner.size(1), -1))  # (n, taps, 2)
    left = ((values - rivals[..., :1]).amax(1) >= 0) & ((values - rivals[..., 1:]).amax(1) >= 0)
    few = left.sum(1) <= 2
    for cells, number in ((few.nonzero()[:, 0], 2), ((~few).nonzero()[:, 0], classes)):
        step = max(1, CELL_BYTES // (4 * number * outputs_y.size(1) * outputs_x.size(1)))
        for part in cells.split(step):
            chosen, out_y, out_x = values[part], outputs_y[part], outputs_x[part]
            if number < classes:
                names = left[part].to(torch.uint8).topk(number).indices.sort().values  # (n, 2)
                chosen = chosen.gather(2, names[:, None].expand(-1, corner.size(1), -1))
            chosen = chosen.unflatten(1, (taps_y, taps_x))  # (n, taps, taps, number)
            chosen = _weighted_sum(x.weight[out_x], chosen, 2)  # (n, taps, l, number)
            chosen = _weighted_sum(y.weight[out_y], chosen, 1).argmax(3)  # (n, k, l)
            if number < classes:
                chosen = names[:, :1, None].where(chosen == 0, names[:, 1:, None])
            where = out_y[:, :, None] * len(x.first) + out_x[:, None, :]
            labels.view(-1)[where] = chosen.to(labels.dtype)
    return labels


def _weighted_sum(weight, values, dim):
    """(n, outputs, taps) and values with the taps at ``dim`` -> outputs in their place."""
    shape = [len(weight), 1, 1, 1]
    shape[dim] = weight.size(1)
    total = 0
    for tap in range(weight.size(2)):
        total = total + weight[:, :, tap].view(shape) * values.narrow(dim, tap, 1)
    return total


def _by_stripes(logits, y, x):
    """Without a decision that depends on the values: the CPU need not wait for the GPU."""
    step = max(1, STRIPE_BYTES // (4 * len(logits) * len(x.first)))
    stripes = []
    for first, weight in zip(y.first.split(step), y.weight.split(step), strict=True):
        rows = sum(weight[:, t, None] * logits[:, first + t] for t in range(weight.size(1)))
        rows = sum(x.weight[:, t] * rows[..., x.first + t] for t in range(x.weight.size(1)))
        stripes.append(rows.argmax(0).to(torch.uint8 if len(logits) <= 256 else torch.int64))
    return torch.cat(stripes)
