"""Layers that hold several networks side by side, so that networks of several seeds are trained in one go.

Small networks spend most of a step on the fixed cost of operations, which is then paid once for all. A tensor has axes
for the image of the batch and for the network, ``(B, N, ...)``; the n-th network has its own images and its own weights
``weight[n]``, which are those of the layer of ``torch.nn`` of the same name, initialised as there.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """``nn.Linear`` of every network: ``(B, N, inputs)`` to ``(B, N, outputs)``."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(count)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all networks."""
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight.mT).transpose(0, 1)


class Conv2d(nn.Module):
    """``nn.Conv2d`` of every network: ``(B, N, inputs, H, W)`` to ``(B, N, outputs, h, w)``."""

    def __init__(self, count: int, inputs: int, outputs: int, side: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        layers = [nn.Conv2d(inputs, outputs, side) for _ in range(count)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers if layer.bias is not None]))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all networks."""
        # This order of the memory halves the time of convolutions on a CPU.
        images = x.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        weight, bias, count = self.weight.flatten(0, 1), self.bias.flatten(), len(self.weight)
        return F.conv2d(images, weight, bias, self.stride, self.padding, groups=count).unflatten(1, (count, -1))

    def patches(self, images: Tensor) -> Tensor:
        """The squares of ``(U, H, W)`` that the kernel meets: ``(U, side * side, h * w)``."""
        return F.unfold(images[:, None], self.weight.shape[-1], padding=self.padding, stride=self.stride)

    def behind(self, patches: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer behind a linear map of images, such as a resize, both together as one matrix.

        Args:
            patches: the ``patches`` of the map's results for all square images with a single pixel of 1, in order. The
                results are square, too.

        Returns:
            A function of ``(B, N, inputs, h, w)``.
        """
        outputs, positions = self.weight.shape[1], patches.shape[2]
        matrix = torch.einsum("ukp, noik -> niuop", patches, self.weight.flatten(3)).flatten(3).flatten(1, 2)
        bias = self.bias.repeat_interleave(positions, 1)[:, None]

        def convolve(x: Tensor) -> Tensor:
            y = torch.baddbmm(bias, x.flatten(2).transpose(0, 1), matrix)
            return y.transpose(0, 1).unflatten(2, (outputs, math.isqrt(positions), -1))

        return convolve
