"""The settings of the samplers and their units; and how an image is read."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, NamedTuple, get_args

Pattern = Literal["fixed", "gaussian", "whitened"]
Slope = Literal["edges", "plane"]
_CHOICES = {"pattern": get_args(Pattern), "slope": get_args(Slope)}  # torch before 2.8 cannot compile ``get_args``

# The standard deviation of a uniform distribution over a square of side 1: the area of an output pixel.
PIXEL = 12**-0.5

# The smallest ridge, and the largest ``sigma`` and ``jitter`` in pixels. Within them the cube of a footprint divided by
# the square of the ridge is finite in float32.
_SMALLEST_RIDGE, WIDEST = 1e-9, 100

# The smallest ridge where a fit may be left with two draws, which lie on a line: what they do not say is then divided
# by the ridge, and so is the rounding of float32. An intensity from 0 to 1 is off by up to about 1e-7 over the ridge.
_SMALLEST_RIDGE_OF_FEW = 1e-4


class Averaging(NamedTuple):
    """How the mean over an output pixel's area is taken: settings of fixed points, as the backends take them."""

    nodes: int
    """Number of points along an axis of the area."""
    side: float
    """Side of the averaged square, in output pixels."""
    estimate: str
    """``"edges"`` or ``"plane"``: how the slope is estimated."""

    @property
    def edge_nodes(self) -> int:
        """The number of points along an edge. It is one more, since a difference has more noise than a mean."""
        return self.nodes + 1


class Reading(NamedTuple):
    """How an image is read at a point: the last three arguments of ``F.grid_sample``."""

    mode: str
    padding_mode: str
    align_corners: bool


@dataclass(frozen=True, slots=True)
class LinearizedSampling:
    r"""Settings of a sampler.

    The defaults are safe anywhere. Where a warp shrinks the image, the value is the mean over the area of the output
    pixel, taken at fixed points, and the slope is the derivative of this mean, taken from the pixel's edges. Where it
    shrinks nothing, value and gradient are those of :func:`torch.nn.functional.grid_sample`. :meth:`paper` has the
    settings of W. Jiang et al., *Linearized Multi-Sampling for Differentiable Image Transformation*, ICCV 2019. Numbers
    in brackets are its equations.

    Args:
        num_samples: K, the number of reads for the value of an output pixel. For fixed points a square: 4, 9, 16, 25
            and so on. More points cost more reads, and help where one output pixel covers much fine detail. For drawn
            samples the centre is one of them, and K is at least 3, or at least 4 when whitened.
        sigma: standard deviation of the samples around an output pixel (3), in output pixels. That of the pixel's own
            area is :math:`1/\sqrt{12} = 0.289`. With fixed points a larger one averages over a larger square, and so
            looks further; then the value is blurred also where nothing shrinks. At most 100.
        jitter: standard deviation of the samples added in the source (8, 9), in source pixels. It keeps drawn samples
            from collapsing onto one texel when the warp zooms in; 0 turns this collapse prevention off. At most 100.
            0 for fixed points.
        ridge: :math:`\epsilon` of the ridge least squares (7) through drawn samples, with offsets in source pixels. At
            least 1e-9: without it a fit to too few samples has no solution. At least 1e-4 with ``mask_out_of_bounds``
            or K = 3, which may leave two draws to a fit, or one: float32 has too few digits for less.
        intercept: whether the value is the mean over the samples: the row of ones of (6). Without it the value, and
            with it the gradient for the image, is exactly what an ordinary sampler reads, and only the gradient for the
            grid is that of the mean.
        mask_out_of_bounds: whether drawn samples outside the source image are left out of the fit (section 6.1). If
            not, the padding is sampled as if it were image. ``False`` for fixed points.
        pattern: where the samples fall. ``"fixed"``: at the same points of every pixel's area, and nothing is random.
            ``"gaussian"``: drawn independently, as in the paper. ``"whitened"``: drawn, then shifted and scaled to have
            mean 0 and covariance 1 at each pixel, which gives a better slope for the same K.
        slope: how the derivative by the source point is estimated. ``"edges"``: the differences between opposite edges
            of the pixel, with the derivative by the pixel's area; for fixed points. ``"plane"``: the slope of a plane
            fitted to the samples (4-7), which holds the area still. Drawn samples have this one.

    Raises:
        TypeError: if a setting has the wrong type.
        ValueError: if a setting is outside its range, or does not go with the pattern.

    Example:
        >>> LinearizedSampling(num_samples=16).pattern
        'fixed'
        >>> LinearizedSampling.paper().pattern
        'gaussian'
    """

    num_samples: int = 9
    sigma: float = PIXEL
    jitter: float = 0.0
    ridge: float = 1e-3
    intercept: bool = True
    mask_out_of_bounds: bool = False
    pattern: Pattern = "fixed"
    slope: Slope = "edges"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("intercept", "mask_out_of_bounds"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.num_samples, Integral) or isinstance(self.num_samples, bool):
            raise TypeError(f"num_samples must be an int, got {self.num_samples!r}")
        self._set("num_samples", int(self.num_samples))
        for name in ("sigma", "jitter", "ridge"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, got {value!r}")
            self._set(name, value if isinstance(value, int) else float(value))
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.ridge < _SMALLEST_RIDGE:
            raise ValueError(f"ridge must be at least {_SMALLEST_RIDGE}, got {self.ridge}")
        for name in ("sigma", "jitter"):
            if getattr(self, name) > WIDEST:
                raise ValueError(f"{name} must be at most {WIDEST}, got {getattr(self, name)}")
        if self.sigma == 0 and self.jitter == 0:
            raise ValueError("sigma and jitter must not both be 0: every sample would fall on the centre")
        if self.pattern == "fixed":
            self._check_fixed()
        else:
            self._check_drawn()

    def _set(self, name: str, value: float) -> None:
        """Hold a number of NumPy's as one of Python's, which is what operators and the C library take."""
        if type(value) is not type(getattr(self, name)):
            object.__setattr__(self, name, value)

    @property
    def is_drawn(self) -> bool:
        """Whether samples are drawn at random."""
        return self.pattern != "fixed"

    @property
    def averaging(self) -> Averaging:
        """The settings of fixed points, as the backends take them."""
        return Averaging(math.isqrt(self.num_samples), self.sigma / PIXEL, self.slope)

    def _check_fixed(self) -> None:
        count = math.isqrt(self.num_samples) if self.num_samples > 0 else 0
        if count < 2 or count**2 != self.num_samples:
            raise ValueError(
                f"num_samples must be a square, such as 4, 9 or 16, for fixed points, got {self.num_samples}"
            )
        for name, wanted in (("jitter", 0), ("mask_out_of_bounds", False)):
            if getattr(self, name) != wanted:
                raise ValueError(
                    f"{name} must be {wanted} for fixed points, got {getattr(self, name)}: it is a setting of drawn "
                    "samples, which pattern='whitened' and pattern='gaussian' have, with slope='plane'; "
                    "LinearizedSampling.paper() has the paper's settings"
                )

    def _check_drawn(self) -> None:
        fewest = 4 if self.pattern == "whitened" else 3
        if self.num_samples < fewest:
            raise ValueError(
                f"num_samples must be at least {fewest} for {self.pattern} samples, got {self.num_samples}"
            )
        if self.ridge < _SMALLEST_RIDGE_OF_FEW and (self.mask_out_of_bounds or self.num_samples == 3):
            raise ValueError(
                f"ridge must be at least {_SMALLEST_RIDGE_OF_FEW} with mask_out_of_bounds or 3 samples, got "
                f"{self.ridge}: a fit may be left with two draws, and float32 has too few digits for less"
            )
        if self.slope != "plane":
            raise ValueError(
                f"slope must be 'plane' for {self.pattern} samples, got {self.slope!r}: only fixed points lie on the "
                "pixel's edges"
            )

    @classmethod
    def paper(cls) -> "LinearizedSampling":
        """The settings of the paper's text: eight Gaussian samples, masked, with collapse prevention.

        Example:
            >>> LinearizedSampling.paper().num_samples
            8
        """
        return cls(num_samples=8, sigma=1.0, jitter=1.0, mask_out_of_bounds=True, pattern="gaussian", slope="plane")
