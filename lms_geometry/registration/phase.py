"""Starts from phase: the turn and scale from log-polar spectra, then the shift from the correlation of gradients.

The size of a spectrum does not depend on shifts; in log-polar coordinates a turn and a scale shift it (Reddy and
Chatterji 1996). Of the peaks of that phase correlation the strongest are tried, each also turned by half a turn, which
a spectrum cannot tell. All shifts of each are compared at once, by Fourier transforms, over the overlap they leave.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.registration.agreement import shrink_mask, vector_field
from lms_geometry.registration.motion import rotation_scale_matrix

# The number of turns and scales that are tried, each twice.
_PEAKS = 3
# The log-polar spectrum: angles over half a turn, radii, and the smallest of these as a share of the largest.
_ANGLES, _RADII, _INNERMOST = 180, 128, 0.06
# The smallest overlap of a shift, as a share of the target.
_LEAST_OVERLAP = 0.1
# A shift's correlation less this over the root of its overlap is compared: small overlaps correlate by chance.
_CHANCE = 0.05


def similarities(source: Tensor, target: Tensor, scaled: bool) -> Tensor:
    """The turns and scales, about the centre, that the spectra suggest.

    Args:
        source, target: grey images of one size, ``(B, 1, h, w)``.
        scaled: whether scales are sought.

    Returns:
        Matrices from target to source in pixels about the centre, ``(B, 1 + 2 * peaks, 2, 2)``; the first is no motion.
    """
    first, second = (_log_polar(image) for image in (source, target))
    cross = torch.fft.rfft2(first) * torch.fft.rfft2(second).conj()
    surface = torch.fft.irfft2(cross / (cross.abs() + 1e-9 * cross.abs().amax((-2, -1), keepdim=True) + 1e-30))
    if not scaled:
        surface[..., 2:-1] = -torch.inf
    found = []
    step = -math.log(_INNERMOST) / (_RADII - 1)
    for _ in range(_PEAKS):
        place = surface.flatten(1).argmax(1)
        row, column = place // _RADII, place % _RADII
        angle = row * (math.pi / _ANGLES)
        shift = torch.where(column > _RADII // 2, column - _RADII, column)
        # A spectrum that is stretched belongs to an image that is shrunk.
        scale = (shift * -step).exp().clamp(0.25, 4) if scaled else torch.ones_like(angle)
        none = torch.zeros_like(angle)
        for half in (0.0, math.pi):
            found.append(rotation_scale_matrix(angle + half, scale, scale, none, none)[..., :2])
        for index in range(len(surface)):  # the next peak is another one
            rows = (torch.arange(-4, 5, device=place.device) + row[index]) % _ANGLES
            columns = (torch.arange(-4, 5, device=place.device) + column[index]) % _RADII
            surface[index, rows[:, None], columns] = -torch.inf
    identity = torch.eye(2, dtype=source.dtype, device=source.device).expand(len(source), 2, 2)
    return torch.stack((identity, *(matrix.to(source) for matrix in found)), 1)


def best_shift(warped: Tensor, valid: Tensor, target: Tensor, target_valid: Tensor) -> tuple[Tensor, Tensor]:
    """The shift at which the gradients of two images correlate best, over the overlap that it leaves.

    Args:
        warped: warped sources, ``(B, 1, h, w)``.
        valid: where they are valid, ``(B, 1, h, w)``.
        target, target_valid: the targets, alike.

    Returns:
        The shift (x, y) in pixels such that ``warped[p + shift]`` looks like ``target[p]``, ``(B, 2)``, and how well it
        does, ``(B)``.
    """
    (surface,) = shift_correlation(warped, valid, target, target_valid)
    height, width = surface.shape[-2:]
    best = surface.flatten(1).max(1)
    y, x = best.indices // width, best.indices % width
    y, x = torch.where(y > height // 2, y - height, y), torch.where(x > width // 2, x - width, x)
    return torch.stack((x, y), 1).to(warped), best.values


def shift_correlation(
    warped: Tensor,
    valid: Tensor,
    target: Tensor,
    target_valid: Tensor,
    doubled: bool = False,
    signs: Sequence[int] = (1,),
) -> Tensor:
    """The correlation of gradient vectors at every shift, less what small overlaps have by chance.

    The shift is the index, or the index less the size. Shifts that leave too little overlap have -1. With ``doubled``
    the gradients' angles are doubled, for images whose contrasts may be reversed. The result is ``(S, B, H, W)``, for
    warped images that are multiplied by each of the signs.
    """
    height, width = target.shape[-2:]
    size = 2 * height, 2 * width
    masks = [shrink_mask(mask)[:, 0] for mask in (valid, target_valid)]
    fields = [vector_field(image, doubled) * mask[:, None] for image, mask in zip((warped, target), masks, strict=True)]
    vectors = [torch.fft.fft2(torch.complex(field[:, 0], field[:, 1]), size) for field in fields]
    energies = [torch.fft.rfft2(field.square().sum(1), size) for field in fields]
    spectra = [torch.fft.rfft2(mask, size) for mask in masks]

    def at_shifts(first: Tensor, second: Tensor) -> Tensor:
        return torch.fft.irfft2(first * second.conj(), size)

    product = torch.fft.ifft2(vectors[0] * vectors[1].conj()).real
    energy = at_shifts(energies[0], spectra[1]).clamp_min(0) * at_shifts(spectra[0], energies[1]).clamp_min(0)
    share = at_shifts(*spectra) / masks[1].sum((1, 2)).clamp_min(1)[:, None, None]
    least = 1e-6 * energy.amax((1, 2), keepdim=True) + torch.finfo(energy.dtype).tiny
    similarity, chance = product / (energy + least).sqrt(), _CHANCE / share.clamp_min(1e-3).sqrt()
    correlation = torch.stack([sign * similarity - chance for sign in signs])
    return torch.where(share > _LEAST_OVERLAP, correlation, -1.0)


def _log_polar(image: Tensor) -> Tensor:
    """The size of the spectrum, ``(B, angles, radii)``, without its lowest frequencies, on log-polar coordinates."""
    height, width = image.shape[-2:]
    side = 2 * max(height, width)
    window = [torch.hann_window(n, periodic=False, dtype=image.dtype, device=image.device) for n in (height, width)]
    centred = image - image.mean((2, 3), keepdim=True)
    spectrum = torch.fft.fft2(centred * window[0][:, None] * window[1], (side, side)).abs()
    spectrum = torch.fft.fftshift(spectrum, dim=(-2, -1))
    spectrum = (spectrum / spectrum.mean((2, 3), keepdim=True).clamp_min(1e-30)).log1p()
    angles = torch.arange(_ANGLES, dtype=image.dtype, device=image.device) * (math.pi / _ANGLES)
    radii = _INNERMOST ** torch.linspace(1, 0, _RADII, dtype=image.dtype, device=image.device)
    # The frequency 0 is the pixel side // 2. The largest radius is half the highest frequency.
    grid = 0.5 * radii[:, None] * torch.stack((angles.cos(), angles.sin()), 1)[:, None] + 1 / side
    polar = F.grid_sample(spectrum, grid.expand(len(image), -1, -1, -1), align_corners=False)[:, 0]
    polar = polar - polar.mean(1, keepdim=True)  # the fall towards high frequencies is no sign of scale
    return polar * torch.hann_window(_RADII, dtype=image.dtype, device=image.device)
