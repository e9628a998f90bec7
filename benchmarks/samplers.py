"""What the experiments compare, all in one form: a sampler gets the source images once, then reads them through warps.

The warps are ``(B, 2, 3)``, target to source, normalised with ``align_corners=False``. ``progress``, from 0 to 1, tells
a sampler that is annealed how much of a descent is done.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor

from benchmarks import peers
from lms_geometry import Annealed, LinearizedSampling, grid_sample_linearized, homography_warp_linearized
from lms_geometry.registration.schedule import ANNEALED_SHARE

Read = Callable[[Tensor, tuple[int, int], float, torch.Generator], Tensor]
Sampler = Callable[[Tensor], Read]
Draw = Callable[[LinearizedSampling, tuple[int, int], torch.Generator], Tensor]
Anneal = tuple[float, float]

RELEASED = LinearizedSampling(sigma=0.25, mask_out_of_bounds=False)
WHITENED = LinearizedSampling.alignment()

# A scale space is blurred anew so many times while it is annealed.
_LEVELS = 10


def bilinear(images: Tensor) -> Read:
    """Plain ``grid_sample``."""
    return lambda warps, dsize, *_: peers.bilinear(images, _grid(warps, dsize))


def multi_scale(images: Tensor) -> Read:
    """The paper's baseline, its images blurred once."""
    canvas, enlarged = peers.multi_scale(images)
    return lambda warps, dsize, *_: peers.bilinear(canvas, _grid(warps / enlarged[:, None], dsize))


def scale_space(first: float) -> Sampler:
    """Bilinear on a Gaussian scale space with zeros around; the blur falls to 0, in output pixels of a plain resize."""

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
    """Linearized sampling; ``sigma`` falls geometrically over ``anneal`` if given, ``draw`` places the samples."""

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
                generator=generator,
            )

        return read

    return prepare


def on_pyramid(sampling: LinearizedSampling, anneal: Anneal | None = None, share: float = 0.5) -> Sampler:
    """Linearized samples read from a scale space whose blur is a share of their spread."""

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
    """The settings of the authors' released code: samples around the warped point, spread for a plain resize.

    What settings cannot say: it has no ridge (NaN slopes become 0), and its mask never fires.
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
    """The authors' own ``warp/linearized.py``, from a folder with their release.

    Raises:
        SystemExit: if the file is not there.
    """
    sample = peers.authors_with_generator(folder)
    return lambda images: lambda warps, dsize, _, generator: sample(images, _grid(warps, dsize), generator)


def _stage(progress: float) -> float:
    """The progress at which the present one of ten levels began."""
    return int(progress * _LEVELS / ANNEALED_SHARE) / _LEVELS * ANNEALED_SHARE


def _grid(warps: Tensor, dsize: tuple[int, int]) -> Tensor:
    return F.affine_grid(warps, [len(warps), 1, *dsize], align_corners=False)


def _levels(images: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
    """Blurs images when asked, and keeps the last answer: a descent stays on a level for many steps."""
    kept: dict[float, tuple[Tensor, Tensor]] = {}

    def level(blur: float) -> tuple[Tensor, Tensor]:
        if blur not in kept:
            kept.clear()
            kept[blur] = peers.blurred(images, blur) if blur > 0 else (images, images.new_ones(2))
        return kept[blur]

    return level
