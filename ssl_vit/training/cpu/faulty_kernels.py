"""A convolution kernel of torch's CPU library that writes past its memory, and how networks are kept from it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16  # channels that the library's kernels take at once: 8 with AVX2, 16 with AVX-512


class StridedPointwise(nn.Conv2d):
    """A 1 x 1 convolution that first picks the places that its stride keeps and then has no stride.

    It does so where the kernel could be chosen: on a CPU, with maps that may lie pixel by pixel in memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / stride, W / stride], the values of `torch.nn.Conv2d`."""
        by_channel = x.is_contiguous() and x.shape[1] > 1  # a single channel lies both ways
        if x.device.type != "cpu" or by_channel:
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def avoid_faulty_kernels(network: nn.Module) -> None:
    """Change in place the convolutions whose gradient can end the process on a CPU; weights and names stay.

    oneDNN computes the weights' gradient of a strided 1 x 1 convolution from a packed copy of its input. Where the
    input lies pixel by pixel in memory (channels last) and has fewer channels than a block, it writes past the end of
    that copy, and the process aborts, hangs or gets a wrong gradient (oneDNN 3.12 of torch 2.14, on CPUs with AVX2;
    github.com/uxlfoundation/oneDNN/issues/6035). Stems that look at RGB through such a branch have one: FastViT,
    MobileOne, RepVGG. Without the stride there is no copy.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_faulty(module):
            module.__class__ = StridedPointwise


def _is_faulty(conv: nn.Conv2d) -> bool:
    pointwise = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    return pointwise and max(conv.stride) > 1 and conv.in_channels < BLOCK
