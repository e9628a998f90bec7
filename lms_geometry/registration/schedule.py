"""Schedules of a search, as data: how far a pixel's samples reach, and in which stages the starts compete."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lms_geometry.config import WIDEST, LinearizedSampling
from lms_geometry.registration.checks import check_count, check_positive

# The share of the steps over which sigma falls. It keeps its last value for the rest of them.
ANNEALED_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Annealed:
    """A schedule for a search: samples reach over many output pixels at first, and less far step by step.

    A wide reach sees the rough layout of an image, and leads back from far away; a narrow one sees detail, and leads
    to the exact place. ``sigma`` falls geometrically over the first three quarters of the steps and then stays. It is
    a setting of the solvers of :func:`register`, and :meth:`over` gives it to a loop of your own.

    The solvers drop the intercept late in the descent: :class:`GaussNewton` after half of the steps, :class:`Adam`
    after three quarters. The value is then exactly the bilinear one, so that the loss is 0 at the truth if the target
    was read bilinearly.

    Args:
        first: ``sigma`` at the first step, in output pixels, above 0 and at most 100.
        last: ``sigma`` after three quarters of the steps, in output pixels, above 0 and at most 100.
        sampling: the settings that do not change.

    Raises:
        TypeError: if ``sampling`` is not a :class:`LinearizedSampling`.
        ValueError: if ``first`` or ``last`` is outside its range.

    Example:
        >>> Annealed(first=8.0, last=0.5).at(0.375).sigma
        2.0
        >>> [round(sampling.sigma, 2) for sampling in Annealed(first=8.0, last=0.5).over(steps=4)]
        [8.0, 3.17, 1.26, 0.5]
    """

    first: float
    last: float
    sampling: LinearizedSampling = LinearizedSampling()

    def __post_init__(self) -> None:
        check_positive("first", self.first, WIDEST)
        check_positive("last", self.last, WIDEST)
        if not isinstance(self.sampling, LinearizedSampling):
            raise TypeError(f"sampling must be a LinearizedSampling, got {self.sampling!r}")

    def over(self, steps: int) -> Iterator[LinearizedSampling]:
        """The settings of every step, in order, for a loop of your own.

        The intercept is kept to the end, so that a value is always a mean: that of an antialiased target, such as a
        smaller photo of the same scene.

        Args:
            steps: the number of steps, at least 1.

        Example:
            A photo is shrunk 8 times and turned, and a loop finds by how much:

            >>> import torch
            >>> from kornia.geometry import get_rotation_matrix2d
            >>> from lms_geometry import LinearizedSampling, warp_affine_linearized
            >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
            >>> image = torch.nn.functional.interpolate(image, (128, 128), mode="bicubic")
            >>> def view(degrees, **settings):
            ...     M = get_rotation_matrix2d(torch.tensor([[63.5, 63.5]]), degrees, torch.full((1, 2), 0.125))
            ...     M = M - torch.nn.functional.pad(torch.full((1, 2, 1), 56.0), (2, 0))  # middle onto middle
            ...     return warp_affine_linearized(image, M, (16, 16), **settings)
            >>> target = view(torch.tensor([50.0]))
            >>> degrees = torch.zeros(1, requires_grad=True)
            >>> adam = torch.optim.Adam([degrees], lr=2.0)
            >>> for sampling in Annealed(first=4.0, last=0.29).over(steps=60):
            ...     loss = (view(degrees, sampling=sampling) - target).square().mean()
            ...     adam.zero_grad()
            ...     loss.backward()
            ...     _ = adam.step()
            >>> bool((degrees - 50).abs() < 1)
            True
        """
        check_count("steps", steps)
        return (self.at(step / steps, exact_from=math.inf) for step in range(steps))

    def at(self, share: float, exact_from: float = ANNEALED_SHARE) -> LinearizedSampling:
        """The settings after a share of the steps.

        Args:
            share: the share of the steps that are done, from 0 to 1.
            exact_from: the share from which on the intercept is dropped.
        """
        sigma = self.first * (self.last / self.first) ** min(share / ANNEALED_SHARE, 1.0)
        return replace(self.sampling, sigma=sigma, intercept=self.sampling.intercept and share < exact_from)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of Gauss-Newton's search, in which all starts of an image take their steps together.

    Args:
        until: the share of all steps at which the stage ends, above 0 and at most 1.
        longest: the longer side, in pixels, to which a larger target is shrunk. ``None`` keeps the target's size.
        kept: the number of starts that go on after the stage, those with the smallest loss.
        free: the number of the motion's parameters that move in this stage, counted in the order x, y, rotation,
            scales, shear, perspective. The others wait: shear and perspective can explain a wrong rotation away.
        source_ratio: the source is shrunk to a longer side of at most ``source_ratio * longest`` pixels. Samples that
            lie far apart see finer detail as noise.

    Raises:
        ValueError: if a setting is outside its range.

    Example:
        >>> Stage(until=0.25, longest=32, kept=3, free=5).source_ratio
        4
    """

    until: float
    longest: int | None
    kept: int
    free: int
    source_ratio: float = 4

    def __post_init__(self) -> None:
        check_positive("until", self.until, 1)
        check_positive("source_ratio", self.source_ratio)
        check_count("kept", self.kept)
        check_count("free", self.free)
        if self.longest is not None:
            check_count("longest", self.longest)


# The stages of the search by default. After the last one, the best start is refined until it has converged.
SEARCH = (Stage(0.25, 32, kept=3, free=5), Stage(0.5, 64, kept=1, free=6), Stage(0.75, None, kept=1, free=8))
