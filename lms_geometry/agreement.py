"""How well a moved image agrees with its target: the residual that registration makes small, its loss, and a score.

The images are compared where both are seen, up to a gain and a bias if asked, by a squared or by Huber's loss.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Loss = Literal["squared", "huber"]

# Huber's loss grows linearly from here on, in medians of the residuals' size.
_TURN = 1.5
_SMALLEST_TURN = 0.01
_GAINS = (0.2, 5.0)
# Of the mean square. An image that varies less is blank.
_LEAST_CONTRAST = 1e-8
_REWEIGHTINGS = 5


class Residual(NamedTuple):
    """Of ``n`` moved images each: difference ``(B, n, C, h, w)``, gain, weight of a pixel ``(B, n, 1, h, w)``, loss."""

    difference: Tensor
    gain: Tensor
    weight: Tensor
    loss: Tensor
    turn: Tensor | None


def residual(
    moved: Tensor,
    target: Tensor,
    seen: Tensor,
    wanted: Tensor,
    photometric: bool,
    loss: Loss,
    turn: Tensor | None = None,
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
        turn: where Huber's loss turns linear, :math:`(B, n)`; from the residuals' median if ``None``.

    Returns:
        The residual; its loss is :math:`(B, n)`.
    """
    channels = moved.shape[2]
    count = (seen.sum((2, 3, 4), keepdim=True) * channels).clamp_min(1e-6)
    gain = torch.ones_like(count)
    difference = moved - target
    if photometric:
        gain, bias = (value.detach() for value in fit_gain(moved, target, seen))
        difference = gain * moved + bias - target
    size = difference.square().mean(2, keepdim=True)
    spread = weighted_variance(target, wanted)
    weight = seen
    if loss == "huber":
        if turn is None:
            turn = _TURN * _median(size.detach().sqrt(), seen).clamp_min(_SMALLEST_TURN)
        size, weight = _huber(size, turn[..., None, None, None], seen)
        spread = _huber(spread, turn[..., None, None, None], seen)[0]
    unseen = (wanted.sum((2, 3, 4)) - seen.sum((2, 3, 4))).clamp_min(0)
    total = (size * seen).sum((2, 3, 4)) + unseen * spread.squeeze((2, 3, 4))
    return Residual(difference, gain, weight, total / wanted.sum((2, 3, 4)).clamp_min(1e-6), turn)


def fit_gain(moved: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gain and the bias that make moved images most like their targets, each ``(B, n, 1, 1, 1)``."""
    mean_moved, mean_target = weighted_mean(moved, weight), weighted_mean(target, weight)
    covariance = weighted_mean((moved - mean_moved) * (target - mean_target), weight)
    gain = (covariance / _contrast(moved, weight)).clamp(*_GAINS)
    return gain, mean_target - gain * mean_moved


def agreement(moved: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """The score of a registration: the correlation where both images are seen, robust to what only one of them shows.

    Args:
        moved: moved sources, :math:`(B, C, h, w)`.
        target: their targets, :math:`(B, C, h, w)`.
        seen: weight of a pixel, :math:`(B, 1, h, w)`.

    Returns:
        Scores from 0 to 1, :math:`(B)`.
    """
    moved, target, seen = moved[:, None], target[:, None], seen[:, None]
    weight = seen
    for _ in range(_REWEIGHTINGS):
        gain, bias = fit_gain(moved, target, weight)
        size = (gain * moved + bias - target).square().mean(2, keepdim=True).sqrt()
        scale = 3 * _median(size, seen).clamp_min(_SMALLEST_TURN)[..., None, None, None]
        weight = seen / (1 + (size / scale).square()).square()
    mean_moved, mean_target = weighted_mean(moved, weight), weighted_mean(target, weight)
    covariance = weighted_mean((moved - mean_moved) * (target - mean_target), weight)
    contrasts = _contrast(moved, weight).sqrt() * _contrast(target, weight).sqrt()
    return (covariance / contrasts).clamp(0, 1).flatten()


def weighted_mean(image: Tensor, weight: Tensor) -> Tensor:
    """Mean over channels and pixels, ``(B, n, 1, 1, 1)``."""
    total = (weight.sum((2, 3, 4), keepdim=True) * image.shape[2]).clamp_min(1e-6)
    return (image * weight).sum((2, 3, 4), keepdim=True) / total


def weighted_variance(image: Tensor, weight: Tensor) -> Tensor:
    """Variance over channels and pixels, ``(B, n, 1, 1, 1)``."""
    return weighted_mean((image - weighted_mean(image, weight)).square(), weight)


def _contrast(image: Tensor, weight: Tensor) -> Tensor:
    """Variance to divide by: never 0, and never so small beside the mean square that it may be rounding."""
    least = _LEAST_CONTRAST * weighted_mean(image.square(), weight)
    return (weighted_variance(image, weight) + least).clamp_min(torch.finfo(image.dtype).tiny)


def _median(size: Tensor, seen: Tensor) -> Tensor:
    median = torch.where(seen > 0.5, size, torch.nan).flatten(2).nanmedian(-1).values
    return median.nan_to_num(1.0)


def _huber(squared: Tensor, turn: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Huber's loss of squared residuals, and the weights that reweighted least squares gives them."""
    ratio = squared.clamp_min(1e-12).sqrt() / turn
    return torch.where(ratio < 1, squared, turn.square() * (2 * ratio - 1)), seen / ratio.detach().clamp_min(1)
