"""The similarity of a warped image and its target: the residual and the loss that registration minimises.

The images are compared where both have valid pixels, up to a gain and a bias if asked, by a squared or by Huber's loss.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Loss = Literal["squared", "huber", "structure"]

# The residual at which Huber's loss turns linear, in medians of the residuals' size.
_DELTA = 1.5
# The smallest median that is believed, in standard deviations of the target. A smaller one means that the images match
# well, not that all larger residuals are outliers.
_SMALLEST_MEDIAN = 0.04
# The smallest and the largest size of a gain that is fitted. A gain below 0 inverts the contrast.
_GAINS = (0.2, 5.0)
# The share of an image's mean square below which its variance may be rounding: such an image is blank.
_LEAST_CONTRAST = 1e-8


class Residual(NamedTuple):
    """The comparison of ``n`` warped sources with each target.

    Args:
        difference: the warped source, after its gain and bias, less the target, ``(B, n, C, h, w)``.
        gain: the gain that was fitted, or 1, ``(B, n, 1, 1, 1)``.
        weight: the weight of each pixel in least squares, ``(B, n, 1, h, w)``.
        loss: the loss, ``(B, n)``.
        delta: the residual at which Huber's loss turns linear, ``(B, n)``.
    """

    difference: Tensor
    gain: Tensor
    weight: Tensor
    loss: Tensor
    delta: Tensor | None


def residual(
    warped: Tensor,
    target: Tensor,
    valid_weight: Tensor,
    target_weight: Tensor,
    fit_gain_bias: bool,
    loss: Loss,
    delta: Tensor | None = None,
) -> Residual:
    """Compare warped sources with their targets.

    A pixel of the target without a valid pixel of the source counts with the target's variance, as if the target's mean
    were its prediction. Without that, a source that is warped away from all but its best part would have the smallest
    loss.

    Args:
        warped: ``n`` warped sources for each target, :math:`(B, n, C, h, w)`.
        target: the targets, :math:`(B, 1, C, h, w)`.
        valid_weight: weight of the pixels at which both images are valid, :math:`(B, n, 1, h, w)`, at most
            ``target_weight``.
        target_weight: weight of the target's pixels, :math:`(B, 1, 1, h, w)`.
        fit_gain_bias: whether a gain and a bias of the warped source are fitted.
        loss: ``"squared"`` or ``"huber"``.
        delta: the residual at which Huber's loss turns linear, :math:`(B, n)`. ``None`` takes it from the residuals'
            median.
    """
    channels = warped.shape[2]
    count = (valid_weight.sum((2, 3, 4), keepdim=True) * channels).clamp_min(1e-6)
    gain = torch.ones_like(count)
    difference = warped - target
    if fit_gain_bias:
        gain, bias = (value.detach() for value in gain_and_bias(warped, target, valid_weight))
        difference = gain * warped + bias - target
    size = difference.square().mean(2, keepdim=True)
    variance = _covariance(target, target, target_weight)
    weight = valid_weight
    if loss != "squared":
        if delta is None:
            delta = _DELTA * _robust_scale(size.detach().sqrt(), valid_weight, variance)
        size, weight = _huber(size, delta[..., None, None, None], valid_weight)
        variance = _huber(variance, delta[..., None, None, None], valid_weight)[0]
    invalid = (target_weight.sum((2, 3, 4)) - valid_weight.sum((2, 3, 4))).clamp_min(0)
    total = (size * valid_weight).sum((2, 3, 4)) + invalid * variance.squeeze((2, 3, 4))
    return Residual(difference, gain, weight, total / target_weight.sum((2, 3, 4)).clamp_min(1e-6), delta)


def gain_and_bias(warped: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gain and the bias that bring warped sources nearest to their targets, each ``(B, n, 1, 1, 1)``.

    One bias serves all channels. To fit one for each would take the images' tint out of the comparison, and with it the
    colours by which the search finds its way.
    """
    mean_warped, mean_target = (weighted_mean(image, weight).mean(2, keepdim=True) for image in (warped, target))
    covariance = weighted_mean((warped - mean_warped) * (target - mean_target), weight).mean(2, keepdim=True)
    variance = weighted_mean((warped - mean_warped).square(), weight).mean(2, keepdim=True)
    gain = covariance / (variance + _rounding(warped, weight))
    gain = torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp(*_GAINS)
    return gain, mean_target - gain * mean_warped


def contrast(image: Tensor, weight: Tensor) -> Tensor:
    """The variance over channels and pixels, ``(B, n, 1, 1, 1)``, above 0, so that one may divide by it."""
    return _covariance(image, image, weight) + _rounding(image, weight)


def weighted_mean(image: Tensor, weight: Tensor) -> Tensor:
    """The mean of each channel over the pixels, ``(..., C, 1, 1)``."""
    return (image * weight).sum((-2, -1), keepdim=True) / weight.sum((-2, -1), keepdim=True).clamp_min(1e-6)


def _rounding(image: Tensor, weight: Tensor) -> Tensor:
    """The part of an image's variance that may be rounding, ``(B, n, 1, 1, 1)``."""
    least = _LEAST_CONTRAST * weighted_mean(image.square(), weight).mean(2, keepdim=True)
    return least.clamp_min(torch.finfo(image.dtype).tiny)


def _covariance(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """The covariance over channels and pixels, each channel about its mean, ``(B, n, 1, 1, 1)``."""
    product = (first - weighted_mean(first, weight)) * (second - weighted_mean(second, weight))
    return weighted_mean(product, weight).mean(2, keepdim=True)


def _robust_scale(size: Tensor, valid_weight: Tensor, variance: Tensor) -> Tensor:
    """The scale of residuals, ``(B, n)``: their median, which must not be small beside the target's variance."""
    most = valid_weight.amax((2, 3, 4), keepdim=True)
    median = torch.where(valid_weight > most / 2, size, torch.nan).flatten(2).nanmedian(-1).values
    least = _SMALLEST_MEDIAN * variance.sqrt().squeeze((2, 3, 4))
    return median.nan_to_num(1.0).maximum(least).clamp_min(1e-15)


def _huber(squared: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Huber's loss of squared residuals, and the weights that reweighted least squares gives them."""
    ratio = (squared / delta.square()).clamp_min(1e-12).sqrt()
    return torch.where(ratio < 1, squared, delta.square() * (2 * ratio - 1)), weight / ratio.detach().clamp_min(1)
