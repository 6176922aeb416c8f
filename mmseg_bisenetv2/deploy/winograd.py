"""The decode head with a quarter of its multiplications, by Winograd's minimal filtering.

The head's 3x3 convolution from 128 to 1024 channels is 39 % of the network's multiplications. 4x4
outputs of a 3x3 convolution need 36 multiplications instead of 144 when input, kernel and output
are transformed, F(4x4, 3x3) in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(https://arxiv.org/abs/1509.09308). The transforms are additions. They cost relatively less the more
channels there are, which is why only this convolution is done so: the others have 64 or 128.
In FP32 alone: in BF16, OpenVINO's own convolution is faster than this.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_bisenetv2.models.fcn_head import FCNHead

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead

# B^T, G and A^T of the paper, the transforms of input, kernel and output
INPUT = torch.tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                      [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
                     dtype=torch.float64)
KERNEL = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
                      dtype=torch.float64) / 24
OUTPUT = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0],
                       [0, 1, -1, 8, -8, 1]], dtype=torch.float64)


class WinogradHead(nn.Module):
    """An FCNHead for inference, whose 3x3 convolution is computed in tiles of 4x4 outputs.

    For PyTorch on a CPU: a few rows of tiles at a time, whose products stay in the cache.

    Args:
        head: An FCNHead with BatchNorm folded, see :func:`with_winograd`.
    """

    kernel: Tensor
    input: Tensor
    output: Tensor
    bias: Tensor
    TILES = 128  # How many are computed at a time; at least one row of them.

    def __init__(self, head: MMSegFCNHead) -> None:
        super().__init__()
        conv = head.convs[0].conv
        kernel = torch.einsum('ui,vj,ocij->uvco', KERNEL, KERNEL, conv.weight.double())
        for name, matrix in (('kernel', kernel.flatten(0, 1)), ('input', torch.kron(INPUT, INPUT)),
                             ('output', torch.kron(OUTPUT, OUTPUT))):
            self.register_buffer(name, matrix.to(conv.weight.dtype).contiguous())
        self.register_buffer('bias', conv.bias)
        self.activate = head.convs[0].activate
        self.conv_seg = head.conv_seg
        self.out_channels = head.out_channels

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, the first of them (N, C, h, w), -> logits (N, classes, h, w)."""
        height, width = features[0].shape[2:]
        rows, columns = (height + 3) // 4, (width + 3) // 4
        x = F.pad(features[0], (1, 4 * columns + 3 - width, 1, 4 * rows + 3 - height))
        x = x.permute(0, 2, 3, 1)
        band = max(1, self.TILES // columns)
        logits = torch.cat([
            self._band(x[:, 4 * row:4 * row + 4 * band + 4], columns)
            for row in range(0, rows, band)], 1)
        return logits[:, :height, :width].permute(0, 3, 1, 2)

    def _band(self, x: Tensor, columns: int) -> Tensor:
        rows = x.size(1) // 4 - 1
        tiles = x.unfold(1, 6, 4).unfold(2, 6, 4)  # (N, rows, columns, C, 6, 6)
        tiles = tiles.permute(4, 5, 0, 1, 2, 3).flatten(2, 4)  # (6, 6, tiles, C)
        tiles = (self.input @ tiles.reshape(36, -1)).view(36, -1, x.size(3))
        logits = self._classify(tiles @ self.kernel).unflatten(2, (-1, rows, columns))
        return logits.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)

    def _classify(self, products: Tensor) -> Tensor:
        """(36, ..., channels) -> (4, 4, ..., classes)."""
        pixels = (self.output @ products.flatten(1)).view(4, 4, *products.shape[1:])
        pixels = self.activate(pixels.add_(self.bias))
        return F.linear(pixels, self.conv_seg.weight.flatten(1), self.conv_seg.bias)


class OpenVINOWinogradHead(WinogradHead):
    """The same for OpenVINO on a CPU in FP32, computed on whole maps: OpenVINO fuses the additions.

    The products of 1024 channels take 300 MB at 1024x2048.
    """

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """See :class:`WinogradHead`."""
        x = features[0]
        height, width = x.shape[2:]
        rows, columns = (height + 3) // 4, (width + 7) // 4
        x = F.pad(x, (1, 4 * columns - 1 - width, 1, 4 * rows + 7 - height)).permute(0, 2, 3, 1)
        x = x.unflatten(2, (columns, 4)).unflatten(1, (rows + 2, 4))
        x = x.permute(2, 4, 0, 1, 3, 5).flatten(3, 4)  # (4, 4, N, cells of 4x4 pixels, C)
        # A tile is 6x6 pixels: the 4x4 of its cell, and two more rows and columns from the cells
        # below and to the right. Read so, the tiles follow one another in memory, with one
        # surplus tile at the end of each row, which is cut off below.
        starts = [[u // 4 * columns + v // 4 for u in range(6)] for v in range(6)]
        tiles = [[x[u % 4, v % 4, :, start:start + rows * columns]
                  for u, start in enumerate(column)] for v, column in enumerate(starts)]
        rows_of_tiles = zip(*(_transform_input(*column) for column in tiles), strict=True)
        inputs = [tile for row in rows_of_tiles for tile in _transform_input(*row)]
        # 36 products of (N, tiles, C) and (C, channels)
        products = [tile @ kernel for tile, kernel in zip(inputs, self.kernel, strict=True)]
        logits = self._classify(torch.stack(products)).unflatten(3, (rows, columns))
        logits = logits.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
        return logits[:, :height, :width].permute(0, 3, 1, 2)


def _transform_input(d0: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, d4: Tensor,
                     d5: Tensor) -> tuple[Tensor, ...]:
    """The six rows of ``INPUT``."""
    even, odd = d4 - 4 * d2, d3 - 4 * d1
    even2, odd2 = d4 - d2, 2 * (d3 - d1)
    return (4 * d0 - 5 * d2 + d4, even + odd, even - odd, even2 + odd2, even2 - odd2,
            4 * d1 - 5 * d3 + d5)


def with_winograd(head: MMSegFCNHead,
                  kind: type[WinogradHead] = WinogradHead) -> MMSegFCNHead | WinogradHead:
    """The head as a :class:`WinogradHead` where it is one 3x3 convolution, else itself.

    Args:
        head: In evaluation mode, with BatchNorm folded; it is not changed.
        kind: :class:`WinogradHead` or one that inherits from it.
    """
    if type(head) not in (FCNHead, MMSegFCNHead) or head.num_convs != 1 or head.concat_input:
        return head
    module = head.convs[0]
    fits = (type(module.conv) is nn.Conv2d and module.conv.kernel_size == (3, 3)
            and module.conv.dilation == (1, 1) and module.conv.bias is not None
            and type(module.norm) in (nn.Identity, type(None)) and module.with_activation)
    return kind(head) if fits else head
