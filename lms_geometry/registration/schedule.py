"""Schedules of a search, as data: how far samples are spread, and in which stages the starts compete."""

from dataclasses import dataclass, replace

from lms_geometry.config import WIDEST, LinearizedSampling
from lms_geometry.registration.checks import check_count, check_positive

# The share of the steps over which sigma falls. It keeps its last value for the rest of them.
ANNEALED_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Annealed:
    """Linearized sampling whose samples start spread over many output pixels and are drawn in step by step.

    ``sigma`` falls geometrically over the first three quarters of the steps and then stays. Late in the descent the
    intercept is dropped, after half of the steps of :class:`GaussNewton` and three quarters of those of :class:`Adam`.
    The value is then exactly the bilinear one, so that the loss is 0 at the truth.

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
    """

    first: float
    last: float
    sampling: LinearizedSampling = LinearizedSampling.alignment()

    def __post_init__(self) -> None:
        check_positive("first", self.first, WIDEST)
        check_positive("last", self.last, WIDEST)
        if not isinstance(self.sampling, LinearizedSampling):
            raise TypeError(f"sampling must be a LinearizedSampling, got {self.sampling!r}")

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
