"""RoIAlign with a gradient for the boxes.

A bin of a box is one output pixel. Its value is torchvision's, or for drawn samples with the intercept the height of
the fitted plane. Its gradient is the slope across the bin, from its edges (``area.py``) or from samples drawn around
its centre (equations 2 to 9), whose spread follows the size of the bin.
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from lms_geometry.autocast import no_autocast
from lms_geometry.checks import (
    check_flag,
    check_integer,
    check_noise,
    check_same_device,
    check_sampling,
    check_size,
    check_tensor,
)
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.coordinates import to_grid
from lms_geometry.differentiation import carries_gradient
from lms_geometry.noise import draw_noise
from lms_geometry.sampling import sample
from lms_geometry.symbolic import one_node

# The farthest that a box edge may lie outside the image, in source pixels; one farther away is moved to this distance.
# A bin has as many points as pixels, so an unbounded box would take unbounded memory.
_FARTHEST_EDGE = 1e4

# The most numbers in a tensor of features of one chunk of boxes, 64 MiB in float32. Smaller tensors would be kept on
# malloc's heap and fragment it: with a quarter of this number, 512 boxes held 4 GiB instead of 1.
_CHUNK = 2**24


@one_node
def roi_align_linearized(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    sampling: LinearizedSampling | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Pool boxes of an image to a fixed size, with the linearized gradient for the boxes.

    Stands for :func:`torchvision.ops.roi_align`, whose compiled operator gives the boxes no gradient. A box is cut into
    :math:`h \times w` bins, and a bin is one output pixel: the mean :math:`I_0` of bilinear reads at points spread
    evenly over it. That is the value, torchvision's to rounding, and the image's gradient is torchvision's. The
    gradient for the boxes is the one that :func:`grid_sample_linearized` has for the mean over the bin's area: from the
    bin's edges, for its centre and for its size.

    With drawn samples :func:`grid_sample_linearized` finds the slope :math:`A_{uv}` around the bin's centre :math:`c`,
    from K reads whose spread of ``sampling.sigma`` bins makes them see the bin and its neighbours:

    .. math::
        I_0 + A_{uv}^\top \left( c(\text{box}) - c \right)

    With ``intercept=False`` that is the value, torchvision's; with the intercept it is the height of the fitted plane
    at the bin's centre instead of :math:`I_0`. The gradient for the boxes is then this slope, all of a bin moving with
    its centre.

    Boxes are pooled in chunks whose features stay within 64 MiB or, where a box needs more, one by one; the points of
    many huge boxes may take more than the features of few channels.

    Convention:
        - ``input`` is :math:`(N, C, H, W)`; boxes are :math:`(x_1, y_1, x_2, y_2)`, x along the width
        - ``boxes * spatial_scale`` are pixels of ``input`` with centres at integers, or at halves with ``aligned=True``
        - ``aligned=False`` makes a box at least one pixel wide and high, as in torchvision; an empty bin of
          ``aligned=True`` and ``sampling_ratio <= 0`` has no points and :math:`I_0 = 0`
        - a point up to one pixel outside the outermost centres reads the border; beyond, 0. Samples that are masked
          are left out beyond
        - a box edge more than 10,000 pixels outside the image is moved to that distance, and so is a NaN; its gradient
          is 0
        - ``sampling.sigma`` is in bins, ``sampling.jitter`` in pixels of ``input``
        - the values are products of matrices, as precise as :func:`torch.set_float32_matmul_precision` lets them be; a
          NaN or infinite texel reaches every box of its image
        - which boxes are on which image depends on the data: ``torch.compile`` breaks its graph here, and
          ``torch.export`` and a ``vmap`` over boxes are not possible

    Args:
        input: the image or feature map, shape :math:`(N, C, H, W)`. Half precision is computed in float32.
        boxes: shape :math:`(R, 5)`, the first column the image's index; or for every image a tensor :math:`(R_i, 4)`.
        output_size: bins of a box, ``(height, width)`` or one number for both.
        spatial_scale: pixels of ``input`` per unit of ``boxes``.
        sampling_ratio: points of a bin along either axis; if not positive, as many as the bin has pixels, rounded up.
        aligned: see above.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        noise: for drawn samples, draws of :func:`draw_noise` for ``output_size``, shared by all boxes, or with an axis
            of R boxes in front, :math:`(R, K - 1, h, w, 2)`. Drawn here for every box if ``None``.
        generator: for drawn samples, the source of randomness when ``noise`` is ``None``.

    Returns:
        The pooled boxes, shape :math:`(R, C, h, w)`, in ``input``'s dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or range.

    Example:
        >>> features = torch.rand(2, 3, 20, 30)
        >>> boxes = torch.tensor([[0, 4.0, 2.0, 18.0, 16.0], [1, 9.0, 5.0, 27.0, 11.0]], requires_grad=True)
        >>> pooled = roi_align_linearized(features, boxes, (5, 7), sampling_ratio=2, aligned=True)
        >>> pooled.shape, torch.autograd.grad(pooled.sum(), boxes)[0].shape
        (torch.Size([2, 3, 5, 7]), torch.Size([2, 5]))
    """
    sampling = check_sampling(sampling)
    pair = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    bins, sampling_ratio = check_size("output_size", pair), check_integer("sampling_ratio", sampling_ratio)
    check_flag("aligned", aligned)
    rois = _rois(input, boxes)
    _check(input, rois, bins, spatial_scale, sampling, noise, generator)
    dtype = torch.promote_types(torch.promote_types(input.dtype, rois.dtype), torch.float32)
    index, (start, bin_size) = rois[:, 0].long(), _bins(rois[:, 1:].to(dtype), bins, spatial_scale, aligned, input)

    is_drawn_value = sampling.is_drawn and sampling.intercept
    linearizes = is_drawn_value or carries_gradient(rois)
    if linearizes and sampling.is_drawn and noise is None:
        stacked = len(rois) * bins[0], bins[1]  # each box has draws of its own, so that they average out over boxes
        noise = draw_noise(sampling, stacked, generator=generator, device=input.device, dtype=dtype)
        noise = noise.unflatten(1, (len(rois), bins[0])).movedim(1, 0)
    chunk = max(_CHUNK // (max(input.shape[1], 1) * bins[0] * max(bins[1], input.shape[3])), 1)
    order, parts = [index[:0]], [input.new_zeros(0, input.shape[1], *bins)]  # all there is, without images
    with no_autocast(input.device):
        for number, image in enumerate(input.to(dtype)):
            surrounded = F.pad(image.detach()[:, None], (1, 1, 1, 1), "replicate").transpose(0, 1)
            for rows in (index == number).nonzero()[:, 0].split(chunk):
                part = _pool(image, start[rows].detach(), bin_size[rows].detach(), bins, sampling_ratio)
                if linearizes:
                    draws = noise[rows] if noise is not None and noise.ndim == 5 else noise
                    linear = _linearize(surrounded, start[rows], bin_size[rows], bins, sampling, draws)
                    # One carries the gradient for the image, the other that for the boxes; the value is one of them.
                    value, other = (linear, part) if is_drawn_value else (part, linear)
                    part = value + (other - other.detach())
                parts.append(part.to(input.dtype))
                order.append(rows)
    return torch.cat(parts).index_select(0, torch.cat(order).argsort())


class LinearizedRoIAlign(nn.Module):
    """Module form of :func:`roi_align_linearized`, with the arguments of :class:`torchvision.ops.RoIAlign`.

    Convention:
        - as :func:`roi_align_linearized`

    Args:
        output_size: bins of a box, ``(height, width)`` or one number for both.
        spatial_scale: pixels of the image per unit of the boxes.
        sampling_ratio: points of a bin along either axis; if not positive, as many as the bin has pixels, rounded up.
        aligned: whether pixels have their centres at halves instead of integers.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.

    Example:
        >>> align = LinearizedRoIAlign((5, 7), spatial_scale=0.25, sampling_ratio=2, aligned=True)
        >>> align(torch.rand(1, 3, 20, 30), [torch.tensor([[16.0, 8.0, 72.0, 64.0]])]).shape
        torch.Size([1, 3, 5, 7])
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        sampling: LinearizedSampling | None = None,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.sampling = LinearizedSampling() if sampling is None else sampling

    def forward(
        self,
        input: Tensor,
        rois: Tensor | Sequence[Tensor],
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Pool ``rois`` of ``input`` :math:`(N, C, H, W)`, as :func:`roi_align_linearized`."""
        settings = self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        return roi_align_linearized(input, rois, *settings, sampling=self.sampling, noise=noise, generator=generator)

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, sampling={self.sampling}"
        )


def _bins(
    corners: Tensor, bins: tuple[int, int], spatial_scale: float, aligned: bool, input: Tensor
) -> tuple[Tensor, Tensor]:
    """Where boxes ``(R, 4)`` start and how large their bins are, (x, y) in pixels of the input: twice ``(R, 2)``."""
    size = corners.new_tensor((input.shape[-1], input.shape[-2])).repeat(2)
    corners = corners * spatial_scale - (0.5 if aligned else 0.0)
    corners = corners.nan_to_num(torch.inf).clamp(torch.full_like(size, -_FARTHEST_EDGE), size + _FARTHEST_EDGE)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    return start, (extent if aligned else extent.clamp_min(1)) / extent.new_tensor(bins[::-1])


def _pool(image: Tensor, start: Tensor, bin_size: Tensor, bins: tuple[int, int], sampling_ratio: int) -> Tensor:
    """The values of RoIAlign, ``(r, C, h, w)``. Separable: a bin's points are a grid, the border rule a product."""
    (h, w), (height, width) = bins, image.shape[-2:]
    weights_x = _bin_weights(start[:, 0], bin_size[:, 0], w, sampling_ratio, width)
    weights_y = _bin_weights(start[:, 1], bin_size[:, 1], h, sampling_ratio, height)
    rows = torch.einsum("rhy,cyx->rhcx", weights_y, image)
    return torch.einsum("rhcx,rwx->rchw", rows, weights_x)


def _bin_weights(start: Tensor, bin_size: Tensor, bins: int, sampling_ratio: int, length: int) -> Tensor:
    """Along one axis, by how much each texel enters each bin of each box, ``(r, bins, length)``."""
    start, bin_size = start[:, None, None], bin_size[:, None, None]
    count = torch.full_like(bin_size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp_min(0)
    most = int(max(count.flatten().tolist(), default=0))
    number = torch.arange(most, device=start.device, dtype=start.dtype)
    bin_start = start + torch.arange(bins, device=start.device, dtype=start.dtype)[:, None] * bin_size
    point = bin_start + (number + 0.5) * bin_size / count.clamp_min(1)
    share = ((number < count) & (point >= -1) & (point <= length)).to(start.dtype) / count.clamp_min(1)
    point = point.clamp(0, length - 1)
    lower = point.floor()
    fraction, lower = point - lower, lower.long()
    weights = start.new_zeros(len(start), bins, length)
    weights.scatter_add_(2, lower, share * (1 - fraction))
    return weights.scatter_add_(2, (lower + 1).clamp_max(length - 1), share * fraction)


def _linearize(
    surrounded: Tensor,
    start: Tensor,
    bin_size: Tensor,
    bins: tuple[int, int],
    sampling: LinearizedSampling,
    noise: Tensor | None,
) -> Tensor:
    """The linear model around the centre of each bin, ``(r, C, h, w)``.

    RoIAlign's image ends one pixel outside the outermost centres. So the image comes ``surrounded`` by one texel.
    """
    (h, w), (height, width) = bins, surrounded.shape[-2:]
    columns, rows = (torch.arange(n, device=start.device, dtype=start.dtype) + 0.5 for n in (w, h))
    x, y = start[:, :1] + columns * bin_size[:, :1], start[:, 1:] + rows * bin_size[:, 1:]
    x, y = to_grid(x + 1, width, align_corners=True), to_grid(y + 1, height, align_corners=True)
    grid = torch.stack((repeat(x, "r w -> r h w", h=h), repeat(y, "r h -> r h w", w=w)), -1)
    jacobian = torch.diag_embed(bin_size)[:, None, None]
    return sample(surrounded, grid, Reading("bilinear", "zeros", align_corners=True), sampling, jacobian, noise)


def _rois(input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Boxes in either of torchvision's forms as ``(R, 5)``."""
    check_tensor("input", input, ("N", "C", "H", "W"))
    if min(input.shape[2:]) == 0:
        raise ValueError(f"input must have at least one texel, got {tuple(input.shape)}")
    if isinstance(boxes, Tensor):
        check_tensor("boxes", boxes, ("R", 5))
        check_same_device("boxes", boxes, "input", input)
        return boxes
    if not isinstance(boxes, Sequence):
        raise TypeError(f"boxes must be a tensor (R, 5) or a list of tensors (R, 4), got {type(boxes).__name__}")
    if len(boxes) != len(input):
        raise ValueError(f"boxes must hold a tensor for each of the {len(input)} images, got {len(boxes)}")
    for number, some in enumerate(boxes):
        check_tensor(f"boxes[{number}]", some, ("R", 4))
        check_same_device(f"boxes[{number}]", some, "input", input)
    numbered = [F.pad(some, (1, 0), value=number) for number, some in enumerate(boxes)]
    return torch.cat(numbered) if numbered else input.new_zeros(0, 5)


def _check(
    input: Tensor,
    rois: Tensor,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling: LinearizedSampling,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> None:
    if min(bins) < 1:
        raise ValueError(f"output_size must be at least 1, got {bins}")
    if not isinstance(spatial_scale, Real) or isinstance(spatial_scale, bool) or not 0 < spatial_scale < math.inf:
        raise ValueError(f"spatial_scale must be a finite number above 0, got {spatial_scale!r}")
    if len(rois) > 0 and len(input) == 0:
        raise ValueError(f"boxes must be none where input has no images, got {len(rois)}")
    bad_indices = rois[~((rois[:, 0] >= 0) & (rois[:, 0] < len(input))), 0].tolist()
    if bad_indices:
        raise ValueError(f"boxes[:, 0] must be the number of an image, 0 to {len(input) - 1}, got {bad_indices[0]}")
    check_noise(noise, generator, sampling, len(rois), bins, "input", input)
