"""The samplers that the experiments compare, all in one form.

A sampler gets the source images once, to prepare them, and returns a function that reads them through warps. The warps
are ``(B, 2, 3)``, target to source, normalised with ``align_corners=False``. The function also gets the size of the
output, the share of a descent that is done, from 0 to 1, by which some samplers are annealed, and a generator.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor

from benchmarks import antialiasing, peers
from lms_geometry import Annealed, LinearizedSampling, grid_sample_linearized, homography_warp_linearized
from lms_geometry.registration.schedule import ANNEALED_SHARE

Read = Callable[[Tensor, tuple[int, int], float, torch.Generator], Tensor]
Sampler = Callable[[Tensor], Read]
Draw = Callable[[LinearizedSampling, tuple[int, int], torch.Generator], Tensor]
Anneal = tuple[float, float]

DEFAULT = LinearizedSampling()
PLANE = LinearizedSampling(slope="plane")
PAPER = LinearizedSampling.paper()
RELEASED = replace(PAPER, sigma=0.25, mask_out_of_bounds=False)
WHITENED = replace(PAPER, pattern="whitened", mask_out_of_bounds=False)
# Whitened samples over the area of an output pixel, masked: the best of drawn samples for training.
MASKED = LinearizedSampling(num_samples=8, sigma=0.3, mask_out_of_bounds=True, pattern="whitened", slope="plane")

# The number of blurred images that stand for a scale space while its blur is annealed.
_LEVELS = 10


def bilinear(images: Tensor) -> Read:
    """Plain ``grid_sample``."""
    return lambda warps, dsize, *_: peers.bilinear(images, _grid(warps, dsize))


def supersampled(count: int, padding_mode: str = "zeros") -> Sampler:
    """The mean of ``count * count`` bilinear reads within each output pixel."""

    def prepare(images: Tensor) -> Read:
        def read(warps: Tensor, dsize: tuple[int, int], *_: object) -> Tensor:
            grid = _grid(warps, (count * dsize[0], count * dsize[1]))
            return antialiasing.pooled(images.expand(len(warps), -1, -1, -1), grid, count, padding_mode)

        return read

    return prepare


def mipmapped(bias: float = 0.0, padding_mode: str = "zeros") -> Sampler:
    """Trilinear reads from a mipmap; ``bias`` is added to the level that a warp needs."""

    def prepare(images: Tensor) -> Read:
        def read(warps: Tensor, dsize: tuple[int, int], *_: object) -> Tensor:
            expanded = images.expand(len(warps), -1, -1, -1)
            return antialiasing.mipmapped(expanded, _grid(warps, dsize), padding_mode, bias)

        return read

    return prepare


def multi_scale(images: Tensor) -> Read:
    """The paper's baseline; the images are blurred once."""
    canvas, enlarged = peers.multi_scale(images)
    return lambda warps, dsize, *_: peers.bilinear(canvas, _grid(warps / enlarged[:, None], dsize))


def scale_space(first: float) -> Sampler:
    """Bilinear sampling of a Gaussian scale space on a canvas of zeros.

    The blur falls from ``first`` to 0. Its unit is an output pixel of an image that is only resized.
    """

    def prepare(images: Tensor) -> Read:
        level = _levels(images)

        def read(warps: Tensor, dsize: tuple[int, int], progress: float, *_: torch.Generator) -> Tensor:
            blur = first * (1 - min(_stage(progress) / ANNEALED_SHARE, 1.0))
            canvas, enlarged = level(blur * images.shape[-1] / dsize[1])
            return peers.bilinear(canvas, _grid(warps / enlarged[:, None], dsize))

        return read

    return prepare


def linearized(
    sampling: LinearizedSampling,
    anneal: Anneal | None = None,
    padding_mode: str = "zeros",
    draw: Draw | None = None,
) -> Sampler:
    """Linearized sampling.

    Args:
        sampling: the settings.
        anneal: the first and the last ``sigma`` of a descent, between which it falls geometrically; ``None`` keeps it.
        padding_mode: what is read outside the images.
        draw: the pattern of the samples; ``None`` stands for that of the settings.
    """

    def prepare(images: Tensor) -> Read:
        def read(warps: Tensor, dsize: tuple[int, int], progress: float, generator: torch.Generator) -> Tensor:
            settings = sampling if anneal is None else Annealed(*anneal, sampling).at(progress)
            return homography_warp_linearized(
                images,
                convert_affinematrix_to_homography(warps),
                dsize,
                padding_mode=padding_mode,
                sampling=settings,
                noise=None if draw is None else draw(settings, dsize, generator),
                generator=generator if settings.is_drawn else None,
            )

        return read

    return prepare


def on_pyramid(sampling: LinearizedSampling, anneal: Anneal | None = None, share: float = 0.5) -> Sampler:
    """Drawn linearized samples read from a Gaussian scale space, whose blur is ``share`` times their ``sigma``."""

    def prepare(images: Tensor) -> Read:
        level = _levels(images)

        def read(warps: Tensor, dsize: tuple[int, int], progress: float, generator: torch.Generator) -> Tensor:
            settings = sampling if anneal is None else Annealed(*anneal, sampling).at(_stage(progress))
            blur = share * settings.sigma if progress < ANNEALED_SHARE else 0.0
            canvas, enlarged = level(blur * images.shape[-1] / dsize[1])
            matrix = convert_affinematrix_to_homography(warps / enlarged[:, None])
            return homography_warp_linearized(canvas, matrix, dsize, sampling=settings, generator=generator)

        return read

    return prepare


def released(images: Tensor) -> Read:
    """The settings of the authors' released code: the spread of the samples is that of a plain resize.

    Two properties of that code are no settings: it has no ridge but replaces NaN slopes by 0, and its mask never
    applies.
    """

    def read(warps: Tensor, dsize: tuple[int, int], _: float, generator: torch.Generator) -> Tensor:
        resize = torch.diag(torch.tensor([images.shape[-1] / dsize[1], images.shape[-2] / dsize[0]]))
        return grid_sample_linearized(
            images,
            _grid(warps, dsize),
            align_corners=False,
            sampling=RELEASED,
            jacobian=resize.expand(1, 1, 1, 2, 2),
            generator=generator,
        )

    return read


def authors(folder: Path) -> Sampler:
    """The authors' own ``warp/linearized.py``, read from a folder with their release.

    Raises:
        SystemExit: if the file is missing.
    """
    sample = peers.authors_with_generator(folder)
    return lambda images: lambda warps, dsize, _, generator: sample(images, _grid(warps, dsize), generator)


def _stage(progress: float) -> float:
    """The progress at which the present level of a scale space began."""
    return int(progress * _LEVELS / ANNEALED_SHARE) / _LEVELS * ANNEALED_SHARE


def _grid(warps: Tensor, dsize: tuple[int, int]) -> Tensor:
    return F.affine_grid(warps, [len(warps), 1, *dsize], align_corners=False)


def _levels(images: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
    """A function that blurs the images by so many pixels; it keeps the last result, for a descent's next steps."""
    kept: dict[float, tuple[Tensor, Tensor]] = {}

    def level(blur: float) -> tuple[Tensor, Tensor]:
        if blur not in kept:
            kept.clear()
            kept[blur] = peers.blurred(images, blur) if blur > 0 else (images, images.new_ones(2))
        return kept[blur]

    return level
