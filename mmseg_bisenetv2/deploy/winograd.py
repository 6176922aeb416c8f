"""The decode head with a quarter of its multiplications, by Winograd's minimal filtering.

The head's 3x3 convolution from 128 to 1024 channels is 39 % of the network's multiplications. 4x4
outputs of a 3x3 convolution need 36 multiplications instead of 144 when input, kernel and output
are transformed, F(4x4, 3x3) in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(https://arxiv.org/abs/1509.09308). The transforms are additions, in proportion to the channels;
with 1024 of them they are worth it, with the 64 and 128 of the other convolutions they are not.
"""
import torch
import torch.nn.functional as F
from torch import nn

from mmseg.models.decode_heads import FCNHead

KERNEL = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
                      dtype=torch.float64) / 24


def transform_input(d0, d1, d2, d3, d4, d5):
    """Six samples, one by one, to six transformed ones; B^T of the paper."""
    even, odd = d4 - 4 * d2, d3 - 4 * d1
    even2, odd2 = d4 - d2, 2 * (d3 - d1)
    return (4 * d0 - 5 * d2 + d4, even + odd, even - odd, even2 + odd2, even2 - odd2,
            4 * d1 - 5 * d3 + d5)


def transform_output(m0, m1, m2, m3, m4, m5):
    """Six products to four samples; A^T of the paper."""
    even, odd, even2, odd2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + even + even2, odd + 2 * odd2, even + 4 * even2, odd + 8 * odd2 + m5


class WinogradHead(nn.Module):
    """An FCNHead for inference, whose 3x3 convolution is computed in tiles of 4x4.

    Args:
        head (FCNHead): With BatchNorm folded, see :func:`with_winograd`.
    """

    def __init__(self, head):
        super().__init__()
        conv = head.convs[0].conv
        kernel = torch.einsum('ui,vj,ocij->uvoc', KERNEL, KERNEL, conv.weight.double())
        self.register_buffer('kernel', kernel.to(conv.weight.dtype).flatten(0, 1).contiguous())
        self.register_buffer('bias', conv.bias)
        self.activate = head.convs[0].activate
        self.conv_seg = head.conv_seg
        self.out_channels = head.out_channels

    def forward(self, features):
        """Feature maps, the first of them (N, C, h, w), -> logits (N, classes, h, w)."""
        height, width = features[0].shape[2:]
        rows, columns = (height + 3) // 4, (width + 3) // 4  # of tiles
        x = F.pad(features[0].permute(0, 2, 3, 1), (0, 0, 1, 4, 1, 4))  # (N, h + 5, w + 5, C)
        # A tile reads 6x6 pixels
        samples = [[x[:, u:u + 4 * rows:4, v:v + 4 * columns:4] for u in range(6)]
                   for v in range(6)]  # of all tiles: 36 of (N, rows, columns, C)
        samples = zip(*(transform_input(*column) for column in samples), strict=True)
        samples = [sample for row in samples for sample in transform_input(*row)]
        products = [F.linear(sample, kernel)
                    for sample, kernel in zip(samples, self.kernel, strict=True)]
        halfway = [transform_output(*products[v::6]) for v in range(6)]
        pixels = [[self._classify(pixel) for pixel in transform_output(*row)]
                  for row in zip(*halfway, strict=True)]  # 4x4 of (N, rows, columns, classes)
        x = torch.stack([torch.stack(row, 3) for row in pixels], 2)
        x = x.flatten(3, 4).flatten(1, 2)  # (N, 4 rows, 4 columns, classes)
        return x[:, :height, :width].permute(0, 3, 1, 2)

    def _classify(self, pixel):
        pixel = self.activate(pixel + self.bias)
        return F.linear(pixel, self.conv_seg.weight.flatten(1), self.conv_seg.bias)


def with_winograd(head):
    """The head as a :class:`WinogradHead` where it is one 3x3 convolution, else itself.

    Args:
        head (FCNHead): In evaluation mode, with BatchNorm folded; it is not changed.
    """
    if not isinstance(head, FCNHead) or head.num_convs != 1 or head.concat_input:
        return head
    module = head.convs[0]
    fits = (type(module.conv) is nn.Conv2d and module.conv.kernel_size == (3, 3)
            and module.conv.dilation == (1, 1) and module.conv.bias is not None
            and type(module.norm) in (nn.Identity, type(None)) and module.with_activation)
    return WinogradHead(head) if fits else head
