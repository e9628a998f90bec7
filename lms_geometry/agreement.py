"""How well a moved image agrees with its target: the residual that registration makes small, its loss, and a score.

The images are compared where both are seen, up to a gain and a bias if asked, by a squared or by Huber's loss.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Loss = Literal["squared", "huber"]

# Huber's loss grows linearly from here on, in medians of the residuals' size.
_DELTA = 1.5
# Of the target's standard deviation. A smaller median says that the images agree, not that the rest is hidden.
_SMALLEST_MEDIAN = 0.04
_GAINS = (0.2, 5.0)
# Of the mean square. An image that varies less is blank.
_LEAST_CONTRAST = 1e-8
_REWEIGHTINGS = 5


class Residual(NamedTuple):
    """Of ``n`` moved images each: the difference ``(B, n, C, h, w)``, the gain ``(B, n, 1, 1, 1)``, the weight of each
    pixel ``(B, n, 1, h, w)``, the loss ``(B, n)``, and where Huber's loss turns linear, ``(B, n)``.
    """

    difference: Tensor
    gain: Tensor
    weight: Tensor
    loss: Tensor
    delta: Tensor | None


def residual(
    moved: Tensor,
    target: Tensor,
    seen: Tensor,
    wanted: Tensor,
    photometric: bool,
    loss: Loss,
    delta: Tensor | None = None,
) -> Residual:
    """Compare moved images with their targets.

    What is wanted but not seen counts with the target's variance, as if it were predicted by the target's mean: else an
    image that is moved away from all but its best part would have the smallest loss.

    Args:
        moved: ``n`` moved sources each, :math:`(B, n, C, h, w)`.
        target: :math:`(B, 1, C, h, w)`.
        seen: weight of the pixels that are compared, :math:`(B, n, 1, h, w)`, nowhere above ``wanted``.
        wanted: weight of the target's pixels, :math:`(B, 1, 1, h, w)`.
        photometric: whether a gain and a bias of the moved image are fitted.
        loss: which.
        delta: where Huber's loss turns linear, :math:`(B, n)`; from the residuals' median if ``None``.
    """
    channels = moved.shape[2]
    count = (seen.sum((2, 3, 4), keepdim=True) * channels).clamp_min(1e-6)
    gain = torch.ones_like(count)
    difference = moved - target
    if photometric:
        gain, bias = (value.detach() for value in fit_gain(moved, target, seen))
        difference = gain * moved + bias - target
    size = difference.square().mean(2, keepdim=True)
    spread = _covariance(target, target, wanted)
    weight = seen
    if loss == "huber":
        if delta is None:
            delta = _DELTA * _scale(size.detach().sqrt(), seen, spread)
        size, weight = _huber(size, delta[..., None, None, None], seen)
        spread = _huber(spread, delta[..., None, None, None], seen)[0]
    unseen = (wanted.sum((2, 3, 4)) - seen.sum((2, 3, 4))).clamp_min(0)
    total = (size * seen).sum((2, 3, 4)) + unseen * spread.squeeze((2, 3, 4))
    return Residual(difference, gain, weight, total / wanted.sum((2, 3, 4)).clamp_min(1e-6), delta)


def fit_gain(moved: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gain and the bias that make moved images most like their targets, each ``(B, n, 1, 1, 1)``.

    One bias for all channels: to fit a tint too would leave the search without the colours to go by.
    """
    mean_moved, mean_target = (weighted_mean(image, weight).mean(2, keepdim=True) for image in (moved, target))
    covariance = weighted_mean((moved - mean_moved) * (target - mean_target), weight).mean(2, keepdim=True)
    variance = weighted_mean((moved - mean_moved).square(), weight).mean(2, keepdim=True)
    gain = (covariance / (variance + _rounding(moved, weight))).clamp(*_GAINS)
    return gain, mean_target - gain * mean_moved


def agreement(moved: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """The score of a registration: the correlation where both images are seen, robust to what only one of them shows.

    It is that of the channels' differences from their means: a tint that two images share is no agreement.

    Args:
        moved: moved sources, :math:`(B, C, h, w)`.
        target: their targets, :math:`(B, C, h, w)`.
        seen: weight of a pixel, :math:`(B, 1, h, w)`.

    Returns:
        Scores from 0 to 1, :math:`(B)`.
    """
    moved, target, seen = moved[:, None], target[:, None], seen[:, None]
    moved = moved * (contrast(target, seen).sqrt() / contrast(moved, seen).sqrt())
    moved, target = (image - weighted_mean(image, seen) for image in (moved, target))
    spread = _covariance(target, target, seen)
    weight = seen
    for _ in range(_REWEIGHTINGS):
        gain, bias = fit_gain(moved, target, weight)
        size = (gain * moved + bias - target).square().mean(2, keepdim=True).sqrt()
        scale = 3 * _scale(size, seen, spread)[..., None, None, None]
        weight = seen / (1 + (size / scale).square()).square()
    contrasts = contrast(moved, weight).sqrt() * contrast(target, weight).sqrt()
    return (_covariance(moved, target, weight) / contrasts).clamp(0, 1).flatten()


def contrast(image: Tensor, weight: Tensor) -> Tensor:
    """Variance to divide by, of channels and pixels, ``(B, n, 1, 1, 1)``: never 0."""
    return _covariance(image, image, weight) + _rounding(image, weight)


def _rounding(image: Tensor, weight: Tensor) -> Tensor:
    """How much of a variance may be rounding."""
    least = _LEAST_CONTRAST * weighted_mean(image.square(), weight).mean(2, keepdim=True)
    return least.clamp_min(torch.finfo(image.dtype).tiny)


def _covariance(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Covariance over channels and pixels, each channel about its mean, ``(B, n, 1, 1, 1)``."""
    product = (first - weighted_mean(first, weight)) * (second - weighted_mean(second, weight))
    return weighted_mean(product, weight).mean(2, keepdim=True)


def weighted_mean(image: Tensor, weight: Tensor) -> Tensor:
    """Mean of each channel over the pixels, ``(..., C, 1, 1)``."""
    return (image * weight).sum((-2, -1), keepdim=True) / weight.sum((-2, -1), keepdim=True).clamp_min(1e-6)


def _scale(size: Tensor, seen: Tensor, spread: Tensor) -> Tensor:
    """A robust scale of residuals, ``(B, n)``: their median, beside the target's variance not too small."""
    most = seen.amax((2, 3, 4), keepdim=True)
    median = torch.where(seen > most / 2, size, torch.nan).flatten(2).nanmedian(-1).values
    least = _SMALLEST_MEDIAN * spread.sqrt().squeeze((2, 3, 4))
    return median.nan_to_num(1.0).maximum(least).clamp_min(1e-15)


def _huber(squared: Tensor, delta: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Huber's loss of squared residuals, and the weights that reweighted least squares gives them."""
    ratio = (squared / delta.square()).clamp_min(1e-12).sqrt()
    return torch.where(ratio < 1, squared, delta.square() * (2 * ratio - 1)), seen / ratio.detach().clamp_min(1)
