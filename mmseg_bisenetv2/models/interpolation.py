"""Where bilinear interpolation reads, and with which weights; for the loss and the argmax."""
import torch
from torch import Tensor


def source_positions(size_in: int, size_out: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Where linear interpolation reads, as :func:`torch.nn.functional.interpolate` has it.

    Returns:
        For each output position the lower of the two inputs it lies between, int64; and the
        share of the upper one, float64. The upper one is the next, or the last input itself.
    """
    position = torch.arange(size_out, dtype=torch.float64)
    if align_corners:
        position *= (size_in - 1) / max(size_out - 1, 1)
    else:
        position = ((position + 0.5) * (size_in / size_out) - 0.5).clamp(min=0)
    lower = position.long().clamp(max=size_in - 1)
    return lower, position - lower


def bilinear_matrix(size_in: int, size_out: int, align_corners: bool) -> Tensor:
    """Linear interpolation along one axis as a matrix, (size_out, size_in) float64."""
    lower, share = source_positions(size_in, size_out, align_corners)
    upper = (lower + 1).clamp(max=size_in - 1)
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    for index, value in ((lower, 1 - share), (upper, share)):
        matrix.scatter_add_(1, index[:, None], value[:, None])
    return matrix
