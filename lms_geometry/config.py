"""The settings of linearized multi-sampling, their units and presets; and how an image is read."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Pattern = Literal["gaussian", "whitened"]

# The smallest ridge, and the largest ``sigma`` and ``jitter`` in pixels. Within them the cube of a footprint divided by
# the square of the ridge is finite in float32.
_SMALLEST_RIDGE, WIDEST = 1e-9, 100


class Reading(NamedTuple):
    """How an image is read at a point: the last three arguments of ``F.grid_sample``."""

    mode: str
    padding_mode: str
    align_corners: bool


@dataclass(frozen=True, slots=True)
class LinearizedSampling:
    r"""Settings of one linearized sample.

    The defaults are those of W. Jiang et al., *Linearized Multi-Sampling for Differentiable Image Transformation*,
    ICCV 2019. Numbers in brackets are its equations.

    Args:
        num_samples: K, the number of reads per output pixel, the centre included. At least 3; at least 4 when whitened.
        sigma: standard deviation of the samples around an output pixel (3), in output pixels. At most 100.
        jitter: standard deviation of the samples added in the source (8, 9), in source pixels. It keeps the samples
            from collapsing onto one texel when the warp zooms in; 0 turns this collapse prevention off. At most 100.
        ridge: :math:`\epsilon` of the ridge least squares (7), with offsets measured in source pixels. At least 1e-9:
            without it a fit to too few samples has no solution.
        intercept: whether the fit has the row of ones of (6). With it the value is a small blur of the source; without
            it the value is exactly what an ordinary sampler reads.
        mask_out_of_bounds: whether samples outside the source image are left out of the fit (section 6.1). If not, the
            padding is sampled as if it were image.
        pattern: how samples are drawn. ``"gaussian"``: independently, as in the paper. ``"whitened"``: shifted and
            scaled to have mean 0 and covariance 1 at each pixel, which gives a better slope for the same K.

    Raises:
        TypeError: if a setting has the wrong type.
        ValueError: if a setting is outside its range.

    Example:
        >>> LinearizedSampling(num_samples=16, mask_out_of_bounds=False).num_samples
        16
    """

    num_samples: int = 8
    sigma: float = 1.0
    jitter: float = 1.0
    ridge: float = 1e-3
    intercept: bool = True
    mask_out_of_bounds: bool = True
    pattern: Pattern = "gaussian"

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"pattern must be one of {get_args(Pattern)}, got {self.pattern!r}")
        for name in ("intercept", "mask_out_of_bounds"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.num_samples, int) or isinstance(self.num_samples, bool):
            raise TypeError(f"num_samples must be an int, got {self.num_samples!r}")
        fewest = 4 if self.pattern == "whitened" else 3
        if self.num_samples < fewest:
            raise ValueError(
                f"num_samples must be at least {fewest} for {self.pattern} samples, got {self.num_samples}"
            )
        for name in ("sigma", "jitter", "ridge"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.ridge < _SMALLEST_RIDGE:
            raise ValueError(f"ridge must be at least {_SMALLEST_RIDGE}, got {self.ridge}")
        for name in ("sigma", "jitter"):
            if getattr(self, name) > WIDEST:
                raise ValueError(f"{name} must be at most {WIDEST}, got {getattr(self, name)}")
        if self.sigma == 0 and self.jitter == 0:
            raise ValueError("sigma and jitter must not both be 0: every sample would fall on the centre")

    @classmethod
    def paper(cls) -> "LinearizedSampling":
        """The settings of the paper's text, which are also the defaults.

        Example:
            >>> LinearizedSampling.paper() == LinearizedSampling()
            True
        """
        return cls()

    @classmethod
    def alignment(cls) -> "LinearizedSampling":
        """For aligning images by gradient descent: whitened samples without the mask.

        The padding is a cue to where the image ends, which the mask would remove. Make ``sigma`` smaller while the
        images come closer, as :func:`register` does, which takes these settings if it is given none.

        Example:
            >>> LinearizedSampling.alignment().mask_out_of_bounds
            False
        """
        return cls(pattern="whitened", mask_out_of_bounds=False)

    @classmethod
    def training(cls) -> "LinearizedSampling":
        """For a network that learns where to look: whitened samples over the area of an output pixel.

        The standard deviation of a pixel's own area is 0.29 output pixels. Samples with that spread estimate the mean
        over the pixel under any warp: a wider spread mixes in neighbours, a narrower one reads few of the texels. The
        mask keeps the edge of the image, often the strongest edge in view, out of value and slope. Test the network
        with the same sampling it was trained with, or with more samples. Without jitter, a single output pixel, or one
        row or column of them, has its full slope only if :func:`grid_sample_linearized` is given a ``jacobian``.

        Example:
            >>> training = LinearizedSampling.training()
            >>> training.sigma, training.jitter
            (0.3, 0.0)
        """
        return cls(sigma=0.3, jitter=0.0, pattern="whitened")
