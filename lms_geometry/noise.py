"""Unit-variance sample patterns: where the auxiliary samples of equation (3) fall before a footprint scales them."""

import torch
from torch import Tensor

from lms_geometry.checks import check_size
from lms_geometry.config import LinearizedSampling
from lms_geometry.remedies import as_sampling


def draw_noise(
    sampling: LinearizedSampling,
    size: tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw the auxiliary samples of every output pixel, with unit variance along both axes (equation 3).

    Drawing is a step of its own because a generator cannot enter a compiled graph: draw outside, pass ``noise=`` in.

    The samplers share one draw over a batch, since drawing takes as long as sampling. What is random in the gradient is
    then the same for every image and does not average out over the batch: of a batch of 64 the mean gradient is two to
    four times as noisy as with noise for each image, ``torch.stack([draw_noise(sampling, size) for _ in batch])``.
    :func:`roi_align_linearized` draws for each box. Fixed points have no noise.

    Args:
        sampling: gives the number of samples and the pattern.
        size: size of the output image, ``(height, width)``.
        generator: source of randomness; torch's global one if ``None``. It may live on another device than the result,
            so that one seed gives the same samples everywhere.
        device: device of the result; torch's default if ``None``.
        dtype: floating type of the result; torch's default if ``None``.

    Returns:
        Samples of shape :math:`(K - 1, h, w, 2)`, x (along the width) first.

    Raises:
        TypeError: if ``sampling`` or ``generator`` has the wrong type or ``dtype`` is no floating type.
        ValueError: if ``size`` is not two sizes, or ``sampling`` has fixed points.

    Example:
        >>> draw_noise(LinearizedSampling.paper(), (5, 6)).shape
        torch.Size([7, 5, 6, 2])
    """
    if not isinstance(sampling, LinearizedSampling):
        raise TypeError(f"sampling must be a LinearizedSampling, got {as_sampling(sampling)}")
    if not sampling.is_drawn:
        raise ValueError(
            "sampling must draw its samples, got one with fixed points: take another, such as "
            "LinearizedSampling.paper(), or leave noise out"
        )
    height, width = check_size("size", size)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    device = torch.get_default_device() if device is None else device
    noise = draw_independent(sampling.num_samples, (height, width), generator, torch.device(device), dtype)
    return whitened(noise).to(dtype) if sampling.pattern == "whitened" else noise.to(dtype)


def draw_independent(
    num_samples: int,
    size: tuple[int, int],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Independent draws ``(K - 1, h, w, 2)``, in ``dtype`` or, for half precision, in float32."""
    shape, dtype = (num_samples - 1, *size, 2), torch.promote_types(dtype, torch.float32)
    if generator is None:  # randn with the argument, even None, takes no size that a compiler leaves open
        return torch.randn(shape, device=device, dtype=dtype)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype).to(device)


def whitened(noise: Tensor) -> Tensor:
    """Give the draws of each pixel mean 0 and covariance 1, by Gram-Schmidt over the two axes.

    Three draws may lie so nearly on a line that rounding is most of what Gram-Schmidt leaves of the second axis. A
    second round makes that orthogonal and of mean 0 as well.
    """
    for _ in range(2 if len(noise) == 3 else 1):
        x, y = (noise - noise.mean(0)).unbind(-1)
        x = x * _reciprocal(x.square().mean(0).sqrt())
        y = y - (x * y).mean(0) * x
        y = y * _reciprocal(y.square().mean(0).sqrt())
        noise = torch.stack((x, y), -1)
    return noise


def _reciprocal(number: Tensor) -> Tensor:
    """1 over a number, and 0 for 0."""
    return torch.where(number > 0, number, torch.inf).reciprocal()
