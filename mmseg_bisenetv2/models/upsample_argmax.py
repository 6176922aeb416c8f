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
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mmseg_bisenetv2.models.interpolation import bilinear_matrix

CELL_BYTES = 1_000_000  # Interpolated logits at a time, so that they stay in the CPU's cache.
BLOCK_BYTES = 64_000_000  # Likewise on a GPU, where fewer launches count more than the cache.


class AxisTransform(NamedTuple):
    """What happens to the rows, or to the columns, of the network's output.

    Attributes:
        size: Length of the network's input, to which its output is resized.
        start: First position that is kept; what lies outside start and stop is padding.
        stop: First position that is not kept any more.
        flip: Whether what is kept is reversed.
        out: Length of the label map, to which the result is resized.
    """

    size: int
    start: int
    stop: int
    flip: bool
    out: int

    @classmethod
    def identity(cls, size: int) -> 'AxisTransform':
        """The transform of an input of ``size`` that is neither padded, flipped nor resized."""
        return cls(size, 0, size, False, size)


class AxisWeights(NamedTuple):
    """A banded matrix: output i is the sum over k of ``weight[i, k] * input[first[i] + k]``.

    Consecutive outputs that read the same inputs form a cell.

    Attributes:
        first: The first input that each output reads, (outputs), int64.
        weight: The weights of the inputs that each output reads, (outputs, inputs read), float32.
        cells: The outputs of each cell, (cells, longest cell), int64. Where a cell has fewer, its
            last output is repeated.
    """

    first: Tensor
    weight: Tensor
    cells: Tensor


@functools.lru_cache(maxsize=64)  # The images of a data set, or of a video, share them.
def axis_weights(
        size_in: int, transform: AxisTransform, align_corners: bool,
        device: torch.device) -> AxisWeights:
    """The matrix from ``size_in`` low-resolution logits to the label map, along one axis."""
    matrix = bilinear_matrix(size_in, transform.size, align_corners)
    matrix = matrix[transform.start:transform.stop]
    if transform.flip:
        matrix = matrix.flip(0)
    if transform.out != len(matrix):
        matrix = bilinear_matrix(len(matrix), transform.out, align_corners) @ matrix
    used = (matrix != 0).to(torch.uint8)
    first = used.argmax(1)
    last = size_in - 1 - used.flip(1).argmax(1)
    width = int((last - first).max()) + 1
    first = first.clamp(max=size_in - width)
    weight = matrix.gather(1, first[:, None] + torch.arange(width))

    position = torch.arange(transform.out)
    begins = torch.ones(transform.out, dtype=torch.bool)
    begins[1:] = first[1:] != first[:-1]
    length = -(-transform.out // size_in)  # Longer cells are divided.
    place_in_cell = position - torch.where(begins, position, 0).cummax(0).values
    start = (place_in_cell % length == 0).nonzero()[:, 0]
    stop = torch.cat([start[1:], torch.tensor([transform.out])])
    cells = (start[:, None] + torch.arange(length)).minimum(stop[:, None] - 1)
    return AxisWeights(first.to(device), weight.float().to(device), cells.to(device))


@torch.no_grad()
def upsample_argmax(
        logits: Tensor, rows: AxisTransform | int, columns: AxisTransform | int,
        align_corners: bool = False) -> Tensor:
    """The class of each pixel.

    Args:
        logits: Logits of one image, (C, h, w), any floating type; computed in float32.
        rows: What happens to the rows, or the number of rows of the label map.
        columns: What happens to the columns, or the number of columns of the label map.
        align_corners: As in :func:`torch.nn.functional.interpolate`.

    Returns:
        (rows.out, columns.out), uint8 for up to 256 classes, else int64.
    """
    y, x = (
        axis_weights(
            size, AxisTransform.identity(transform) if isinstance(transform, int) else transform,
            align_corners, logits.device)
        for size, transform in zip(logits.shape[1:], (rows, columns), strict=True))
    argmax = argmax_of_border_cells if logits.is_cpu else argmax_of_row_blocks
    return argmax(logits.float(), y, x)


def argmax_of_border_cells(logits: Tensor, y: AxisWeights, x: AxisWeights) -> Tensor:
    """Interpolates only the cells whose corners differ in their class; for the CPU.

    Args:
        logits: (C, h, w), float32.
        y: The weights of the rows.
        x: The weights of the columns.
    """
    classes, _, width = logits.shape
    support_y, support_x = y.weight.size(1), x.weight.size(1)
    logits = logits.permute(1, 2, 0).contiguous()  # (h, w, C)
    highest = logits.argmax(2)
    corners = highest.unfold(0, support_y, 1).unfold(1, support_x, 1).flatten(2)
    same = (corners == corners[..., :1]).all(2)
    # These labels are right where all corners agree. The other cells are overwritten below.
    labels = highest.to(torch.uint8 if classes <= 256 else torch.int64)
    labels = labels.index_select(1, x.first).index_select(0, y.first)
    rows, columns = (~same[y.first[y.cells[:, 0]]][:, x.first[x.cells[:, 0]]]).nonzero(
        as_tuple=True)
    outputs_y, outputs_x = y.cells[rows], x.cells[columns]  # (n, k), (n, l)
    corner = (torch.arange(support_y)[:, None] * width + torch.arange(support_x)).flatten()
    # (n, corners), places of the corners of each cell in the flattened logits
    corner = (y.first[outputs_y[:, :1]] * width + x.first[outputs_x[:, :1]]) + corner
    values = logits.flatten(0, 1).index_select(0, corner.flatten()).unflatten(0, corner.shape)
    # A class that is below the same rival at every corner is below it everywhere inside. In most
    # cells no more than two classes are left.
    winners = highest.flatten()[corner]
    rivals = values.gather(2, torch.stack([winners.amin(1), winners.amax(1)], 1)[:, None].expand(
        -1, corner.size(1), -1))  # (n, corners, 2)
    possible = ((values - rivals[..., :1]).amax(1) >= 0) & ((values - rivals[..., 1:]).amax(1) >= 0)
    few = possible.sum(1) <= 2
    for cells, number in ((few.nonzero()[:, 0], 2), ((~few).nonzero()[:, 0], classes)):
        step = max(1, CELL_BYTES // (4 * number * outputs_y.size(1) * outputs_x.size(1)))
        for part in cells.split(step):
            chosen, out_y, out_x = values[part], outputs_y[part], outputs_x[part]
            if number < classes:
                pair = possible[part].to(torch.uint8).topk(number).indices.sort().values  # (n, 2)
                chosen = chosen.gather(2, pair[:, None].expand(-1, corner.size(1), -1))
            chosen = chosen.unflatten(1, (support_y, support_x))  # (n, corners, corners, number)
            chosen = _weighted_sum(x.weight[out_x], chosen, 2)  # (n, corners, l, number)
            chosen = _weighted_sum(y.weight[out_y], chosen, 1).argmax(3)  # (n, k, l)
            if number < classes:
                chosen = pair[:, :1, None].where(chosen == 0, pair[:, 1:, None])
            where = out_y[:, :, None] * len(x.first) + out_x[:, None, :]
            labels.view(-1)[where] = chosen.to(labels.dtype)
    return labels


def _weighted_sum(weight: Tensor, values: Tensor, dim: int) -> Tensor:
    """Interpolates along one axis of many cells.

    Args:
        weight: (n, outputs, inputs read).
        values: (n, ., ., classes), with the inputs at ``dim``.
        dim: 1 or 2.

    Returns:
        The values, with the outputs at ``dim``.
    """
    shape = [len(weight), 1, 1, 1]
    shape[dim] = weight.size(1)
    return _sum(weight[:, :, k].view(shape) * values.narrow(dim, k, 1)
                for k in range(weight.size(2)))


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


def argmax_of_row_blocks(logits: Tensor, y: AxisWeights, x: AxisWeights) -> Tensor:
    """Interpolates all pixels, some rows at a time; for a GPU.

    No decision depends on the values, so that the CPU need not wait for the GPU.

    Args:
        logits: (C, h, w), float32.
        y: The weights of the rows.
        x: The weights of the columns.
    """
    step = max(1, BLOCK_BYTES // (4 * len(logits) * len(x.first)))
    blocks = []
    for first, weight in zip(y.first.split(step), y.weight.split(step), strict=True):
        rows = _sum(weight[:, k, None] * logits[:, first + k] for k in range(weight.size(1)))
        full = _sum(x.weight[:, k] * rows[..., x.first + k] for k in range(x.weight.size(1)))
        blocks.append(full.argmax(0).to(torch.uint8 if len(logits) <= 256 else torch.int64))
    return torch.cat(blocks)
