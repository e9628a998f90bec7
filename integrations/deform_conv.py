"""Deformable convolution with a gradient for the offsets that sees further than the two texels beside a read.

The arguments are those of :func:`torchvision.ops.deform_conv2d`, and so are the values.
"""

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from lms_geometry.checks import check_image, check_integer, check_same_device, check_same_dtype, check_tensor
from lms_geometry.config import LinearizedSampling
from lms_geometry.coordinates import to_grid
from lms_geometry.sampling import grid_sample_linearized
from lms_geometry.symbolic import one_node

_SAMPLING = LinearizedSampling(num_samples=8, sigma=1.0, intercept=False, pattern="whitened", slope="plane")

_Pair = int | tuple[int, int]


@one_node
def deform_conv2d_linearized(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    mask: Tensor | None = None,
    *,
    sampling: LinearizedSampling = _SAMPLING,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Convolve at points that are moved by offsets, with the linearized gradient for the offsets.

    Stands for :func:`torchvision.ops.deform_conv2d`. A tap of the kernel reads the image at a point that its offset
    moves. The derivative of a bilinear read is the difference of two texels. Here it is the slope of a plane fitted to
    samples around the point, so that offsets that are some pixels away from where they should be find the way. Without
    the intercept, as the sampling comes, values and all other gradients are torchvision's.

    The reads of all taps are held at once: :math:`B \times C \times k_h k_w \times h \times w` numbers.

    Convention:
        - ``sampling.sigma`` is in pixels of ``input``
        - offsets are (y, x) for every tap, in pixels of ``input``; outside of the image everything is 0

    Args:
        input: the image or feature map, shape :math:`(B, C, H, W)`.
        offset: :math:`(B, 2 G k_h k_w, h, w)`, for G groups of channels that share their offsets.
        weight: :math:`(O, C / \text{groups}, k_h, k_w)`.
        bias: :math:`(O)`, or ``None``.
        stride: distance of neighbouring outputs, in pixels.
        padding: zeros around the image, in pixels.
        dilation: distance of neighbouring taps, in pixels.
        mask: factors of the reads, :math:`(B, G k_h k_w, h, w)`, or ``None``.
        sampling: settings of the method.
        generator: for drawn samples, the source of randomness; torch's global one if ``None``.

    Returns:
        The convolution, shape :math:`(B, O, h, w)`.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or range.

    Example:
        >>> offset = torch.zeros(1, 2 * 3 * 3, 10, 12, requires_grad=True)
        >>> deform_conv2d_linearized(torch.rand(1, 4, 10, 12), offset, torch.rand(5, 4, 3, 3), padding=1).shape
        torch.Size([1, 5, 10, 12])
    """
    check_image("input", input)
    check_tensor("weight", weight, ("O", "C / groups", "kh", "kw"))
    if 0 in weight.shape:
        raise ValueError(f"weight must have no axis of length 0, got {tuple(weight.shape)}")
    (batch, channels, height, width), (outputs, depth, *kernel) = input.shape, weight.shape
    steps, pads, gaps = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    padded = height + 2 * pads[0], width + 2 * pads[1]
    spans = [gap * (k - 1) + 1 for k, gap in zip(kernel, gaps, strict=True)]
    if padded[0] < spans[0] or padded[1] < spans[1]:
        raise ValueError(
            f"input must be, with its padding, at least the {spans[0]} x {spans[1]} that the taps of weight span, got "
            f"{padded[0]} x {padded[1]}: raise padding, or take a smaller dilation"
        )
    size = tuple((n - span) // step + 1 for n, span, step in zip(padded, spans, steps, strict=True))
    taps = kernel[0] * kernel[1]
    check_tensor("offset", offset, (batch, "2 G kh kw", *size))
    groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] != 2 * taps * groups or groups == 0 or channels % groups:
        raise ValueError(f"offset must have 2 G {taps} channels, where G divides {channels}, got {offset.shape[1]}")
    if channels < depth or channels % depth:
        raise ValueError(f"weight must have channels that divide input's {channels}, got {tuple(weight.shape)}")
    if outputs % (channels // depth):
        raise ValueError(
            f"weight must have as many outputs for each of its {channels // depth} groups, got {outputs} outputs"
        )
    if mask is not None:
        check_tensor("mask", mask, (batch, groups * taps, *size))
    if bias is not None:
        check_tensor("bias", bias, (outputs,))
    for name, value in {"offset": offset, "weight": weight, "mask": mask, "bias": bias}.items():
        if value is not None:
            check_same_device(name, value, "input", input)
            check_same_dtype(name, value, "input", input)

    moved = rearrange(offset, "b (g t yx) h w -> yx (b g) t h w", t=taps, yx=2)
    places = []
    for axis in (0, 1):
        tap = torch.arange(kernel[axis], device=offset.device, dtype=offset.dtype) * gaps[axis]
        out = torch.arange(size[axis], device=offset.device, dtype=offset.dtype) * steps[axis] - pads[axis]
        tap = repeat(tap, "y -> (y x) 1 1", x=kernel[1]) if axis == 0 else repeat(tap, "x -> (y x) 1 1", y=kernel[0])
        out = out[:, None] if axis == 0 else out[None]
        places.append(to_grid(moved[axis] + tap + out, (height, width)[axis], align_corners=False))
    grid = rearrange([places[1], places[0]], "xy b t h w -> b (t h) w xy")
    jacobian = torch.eye(2, device=grid.device, dtype=grid.dtype).view(1, 1, 1, 2, 2)
    folded = rearrange(input, "b (g c) h w -> (b g) c h w", g=groups)
    reads = grid_sample_linearized(
        folded, grid, align_corners=False, sampling=sampling, jacobian=jacobian, generator=generator
    )
    reads = rearrange(reads, "(b g) c (t h) w -> b g c t h w", b=batch, t=taps)
    if mask is not None:
        reads = reads * rearrange(mask, "b (g t) h w -> b g 1 t h w", g=groups)
    reads = rearrange(reads, "b g c t h w -> b (g c) t h w")
    reads = rearrange(reads, "b (n c) t h w -> b n c t h w", c=depth)
    kernels = rearrange(weight, "(n o) c y x -> n o c (y x)", n=channels // depth)
    result = rearrange(einsum(reads, kernels, "b n c t h w, n o c t -> b n o h w"), "b n o h w -> b (n o) h w")
    return result if bias is None else result + bias[:, None, None]


def _pair(name: str, value: _Pair, least: int) -> tuple[int, int]:
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be one number or two, got {value!r}")
    pair = check_integer(name, both[0]), check_integer(name, both[1])
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair
