r"""Precise RoI pooling without a compiler or a GPU (B. Jiang et al., *Acquisition of Localization Confidence for
Accurate Object Detection*, ECCV 2018).

The value of a bin is the exact integral of the bilinear surface over the bin, divided by the bin's area:

.. math:: \frac{1}{(x_2 - x_1)(y_2 - y_1)} \int_{y_1}^{y_2} \int_{x_1}^{x_2} f(x, y) \, dx \, dy

Outside of the image the surface falls to 0 within one pixel. The integral of a bilinear surface is a product of two
integrals of a tent, one along each axis, so that it needs no points at all. It can be differentiated by the features
and by the boxes, and both gradients are exact as well.

The names and arguments are those of the package ``PreciseRoIPooling``, whose operator is compiled for CUDA on first
use, and which the trackers ATOM and DiMP contain. This module can stand in its place. Before such code is imported::

    sys.modules["ltr.external.PreciseRoIPooling.pytorch.prroi_pool"] = lms_geometry.integrations.prroi_pool
"""

import torch
from torch import Tensor, nn

from lms_geometry.autocast import no_autocast
from lms_geometry.checks import check_integer, check_same_device, check_tensor
from lms_geometry.symbolic import one_node

# The most numbers in a tensor of features of one chunk of boxes, 64 MiB in float32.
_CHUNK = 2**24


@one_node
def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    r"""Pool boxes of a feature map by the exact integral over each bin, with gradients for features and boxes.

    Convention:
        - boxes are :math:`(x_1, y_1, x_2, y_2)`, and ``rois * spatial_scale`` are pixels with centres at integers
        - a bin without an area, as of a box that is turned inside out, is 0 and has no gradient

    Args:
        features: the feature map, shape :math:`(N, C, H, W)`. Half precision is computed in float32.
        rois: the boxes, shape :math:`(R, 5)`, the first column the image's number.
        pooled_height: bins of a box along the height.
        pooled_width: bins of a box along the width.
        spatial_scale: pixels of ``features`` per unit of ``rois``.

    Returns:
        The pooled boxes, shape :math:`(R, C, h, w)`, in the dtype of ``features``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or range.

    Example:
        >>> features = torch.rand(2, 3, 20, 30, requires_grad=True)
        >>> rois = torch.tensor([[0, 16.0, 8.0, 72.0, 64.0]], requires_grad=True)
        >>> pooled = prroi_pool2d(features, rois, 5, 7, 0.25)
        >>> pooled.shape, torch.autograd.grad(pooled.sum(), rois)[0].shape
        (torch.Size([1, 3, 5, 7]), torch.Size([1, 5]))
    """
    check_tensor("features", features, ("N", "C", "H", "W"))
    check_tensor("rois", rois, ("R", 5))
    check_same_device("rois", rois, "features", features)
    bins = check_integer("pooled_height", pooled_height), check_integer("pooled_width", pooled_width)
    if min(bins) < 1:
        raise ValueError(f"pooled_height and pooled_width must be at least 1, got {bins}")
    numbers = rois[:, 0].detach().long()
    if len(rois) > 0 and not ((numbers >= 0) & (numbers < len(features))).all():
        raise ValueError(f"rois[:, 0] must be the number of an image, 0 to {len(features) - 1}, got {numbers.tolist()}")
    dtype = torch.promote_types(torch.promote_types(features.dtype, rois.dtype), torch.float32)
    _, channels, height, width = features.shape
    chunk = max(_CHUNK // max(channels * bins[0] * max(bins[1], width), 1), 1)
    order, parts = [numbers[:0]], [features.new_zeros(0, channels, *bins)]
    with no_autocast(features.device):
        x1, y1, x2, y2 = (rois[:, 1:].to(dtype) * spatial_scale).unbind(1)
        columns, rows = _bin_weights(x1, x2, bins[1], width), _bin_weights(y1, y2, bins[0], height)
        for number, image in enumerate(features.to(dtype)):
            for some in (numbers == number).nonzero()[:, 0].split(chunk):
                lines = torch.einsum("rhy,cyx->rhcx", rows[some], image)
                parts.append(torch.einsum("rhcx,rwx->rchw", lines, columns[some]).to(features.dtype))
                order.append(some)
    return torch.cat(parts).index_select(0, torch.cat(order).argsort())


class PrRoIPool2D(nn.Module):
    """Module form of :func:`prroi_pool2d`, with the arguments of the package's module of that name.

    Args:
        pooled_height: bins of a box along the height.
        pooled_width: bins of a box along the width.
        spatial_scale: pixels of the features per unit of the boxes.

    Example:
        >>> PrRoIPool2D(5, 7, 0.25)(torch.rand(1, 3, 20, 30), torch.tensor([[0, 16.0, 8.0, 72.0, 64.0]])).shape
        torch.Size([1, 3, 5, 7])
    """

    def __init__(self, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
        super().__init__()
        self.pooled_height = int(pooled_height)
        self.pooled_width = int(pooled_width)
        self.spatial_scale = float(spatial_scale)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool ``rois`` :math:`(R, 5)` of ``features`` :math:`(N, C, H, W)`."""
        return prroi_pool2d(features, rois, self.pooled_height, self.pooled_width, self.spatial_scale)

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"pooled_height={self.pooled_height}, pooled_width={self.pooled_width}, spatial_scale={self.spatial_scale}"
        )


def _bin_weights(start: Tensor, end: Tensor, bins: int, length: int) -> Tensor:
    """Along one axis, the mean over each bin of each box of the tent around each texel, ``(R, bins, length)``."""
    size = (end - start).clamp_min(0) / bins
    size = torch.where(size.isfinite() & start.isfinite() & (size > 0), size, 0.0)
    start = torch.where(size > 0, start, 0.0)
    edges = start[:, None] + size[:, None] * torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    offset = edges[..., None] - torch.arange(length, device=start.device, dtype=start.dtype)
    # The tent is 1 + x from -1 to 0 and 1 - x from 0 to 1. A product with the width loses no digits in a small bin.
    # An edge on a texel is on one of the two sides, so that its gradient counts once. That of a clamp at its limits
    # differs between versions of torch.
    rising = torch.where((offset > -1) & (offset <= 0), offset, -(offset <= -1).to(offset))
    falling = torch.where((offset > 0) & (offset < 1), offset, (offset >= 1).to(offset))
    integral = rising.diff(dim=1) * (1 + (rising[:, 1:] + rising[:, :-1]) / 2)
    integral = integral + falling.diff(dim=1) * (1 - (falling[:, 1:] + falling[:, :-1]) / 2)
    size = size[:, None, None]
    return torch.where(size > 0, integral / torch.where(size > 0, size, 1.0), 0.0)
