"""The samplers that are compared between the image and the classifier, and how each reads a view."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.antialiasing import mipmapped, pooled
from benchmarks.peers import MULTI_SCALE, blurred
from benchmarks.samplers import MASKED
from lms_geometry import LinearizedSampling, draw_noise, grid_sample_linearized


@dataclass(frozen=True)
class Sampler:
    """A way to sample.

    Args:
        sampling: settings of linearized sampling; ``None`` stands for bilinear sampling.
        blurs: standard deviations, in source pixels, of Gaussians. The image is blurred by each, and the mean of the
            blurred images is sampled.
        blur: the standard deviation of one Gaussian, in output pixels of an image that is only shrunk.
        padding_mode: what a read outside the image sees.
        supersampling: how many bilinear reads along each axis of an output pixel are averaged.
        mipmap: whether bilinear sampling reads from a mipmap, and what is then added to the level that the warp needs:
            0 takes that level, -1 the next finer one. ``None`` reads from the image itself.
        follows_warp: whether the samples spread with the warp. In the released code they do not.
        noise_for_each_image: whether each image of a batch has samples of its own.
        noise_drawn_once: whether the samples are the same at every step.
        anneal: the ``sigma`` that training starts with, and the step by which it has fallen to that of ``sampling``.
        slope_of_bilinear: whether the gradient is that of bilinear sampling, and only the value that of ``sampling``.
        authors: the authors' own code, which replaces all other settings.
    """

    sampling: LinearizedSampling | None = None
    blurs: tuple[float, ...] = ()
    blur: float = 0.0
    padding_mode: str = "zeros"
    supersampling: int = 1
    mipmap: float | None = None
    follows_warp: bool = True
    noise_for_each_image: bool = False
    noise_drawn_once: bool = False
    anneal: tuple[float, int] | None = None
    slope_of_bilinear: bool = False
    authors: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None

    @property
    def is_random(self) -> bool:
        """Whether a view depends on the generator that is given."""
        return self.authors is not None or (
            self.sampling is not None and self.sampling.pattern in ("gaussian", "whitened")
        )

    def at(self, step: int) -> "Sampler":
        """The sampler of a step of training, which differs from step to step where ``sigma`` is annealed."""
        if self.sampling is None or self.anneal is None:
            return self
        (first, steps), last = self.anneal, self.sampling.sigma
        sigma = last * (first / last) ** max(1 - step / steps, 0.0)
        return replace(self, sampling=replace(self.sampling, sigma=sigma))

    def prepare(self, pixels: Tensor, view: int) -> Tensor:
        """The images that are sampled: those given, uint8, or blurred ones on a larger canvas, float16."""
        sigmas = (*self.blurs, *((self.blur * pixels.shape[-1] / view,) if self.blur else ()))
        if not sigmas:
            return pixels
        return torch.cat(
            [blurred(some.float(), *sigmas, padding_mode=self.padding_mode)[0].half() for some in pixels.split(500)]
        )

    def read(self, canvas: Tensor, theta: Tensor, side: int, view: int, generator: torch.Generator) -> Tensor:
        """The views ``(B, C, view, view)``.

        Args:
            canvas: the images that ``prepare`` returned, from 0 to 1, ``(B, C, H, W)``.
            theta: the warps from view to image, normalised, ``(B, 2, 3)``.
            side: the side of the images before ``prepare``.
            view: the side of the views.
            generator: the generator of the samples; it is used if ``is_random``.
        """
        grid = affine_grid(theta, self.supersampling * view)
        if self.authors is not None:
            return self.authors(canvas, grid, generator)
        if self.sampling is None:
            grid = grid * (side / canvas.shape[-1])
            if self.mipmap is not None:
                return mipmapped(canvas, grid, self.padding_mode, self.mipmap)
            if self.supersampling > 1:
                return pooled(canvas, grid, self.supersampling, self.padding_mode)
            return F.grid_sample(canvas, grid, padding_mode=self.padding_mode, align_corners=False)
        linear = theta[:, :, :2] if self.follows_warp else torch.eye(2, device=theta.device)[None]
        noise = None
        if self.noise_drawn_once:
            generator = torch.Generator().manual_seed(0)
        if self.noise_for_each_image:
            noise = draw_noise(self.sampling, (len(theta) * view, view), generator=generator, device=theta.device)
            noise = noise.unflatten(1, (len(theta), view)).transpose(0, 1)
        value = grid_sample_linearized(
            canvas,
            grid.detach() if self.slope_of_bilinear else grid,
            padding_mode=self.padding_mode,
            align_corners=False,
            sampling=self.sampling,
            jacobian=linear[:, None, None] * (side / view),
            noise=noise,
            generator=generator if self.is_random else None,
        )
        if not self.slope_of_bilinear:
            return value
        bilinear = F.grid_sample(canvas, grid, padding_mode=self.padding_mode, align_corners=False)
        return bilinear + (value - bilinear).detach()


def affine_grid(theta: Tensor, side: int) -> Tensor:
    """``F.affine_grid`` for square views, as one product of matrices, which a CPU computes several times faster."""
    centres = (2 * torch.arange(side, device=theta.device, dtype=theta.dtype) + 1) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x))).flatten(1)
    return (theta.flatten(0, 1) @ points).unflatten(0, (-1, 2)).unflatten(2, (side, side)).permute(0, 2, 3, 1)


BILINEAR = "bilinear"
TRAINING = "whitened, sigma 0.3, jitter 0"
UNMASKED = f"{TRAINING}, mask off"
DEFAULT = "default"
_DEFAULT = LinearizedSampling()
_PAPER = LinearizedSampling.paper()
_UNMASKED = replace(MASKED, mask_out_of_bounds=False)
COMPARED = {
    BILINEAR: Sampler(),
    "multi-scale (1, 5, 10)": Sampler(blurs=MULTI_SCALE),
    "bilinear, blurred by 0.25 output pixel": Sampler(blur=0.25),
    "bilinear, blurred by 0.125 output pixel": Sampler(blur=0.125),
    "supersampled 3 x 3": Sampler(supersampling=3),
    "supersampled 3 x 3, border padding": Sampler(supersampling=3, padding_mode="border"),
    "mipmap": Sampler(mipmap=0.0),
    "mipmap, border padding": Sampler(mipmap=0.0, padding_mode="border"),
    "paper": Sampler(_PAPER),
    "released code": Sampler(replace(_PAPER, sigma=0.25, mask_out_of_bounds=False), follows_warp=False),
    TRAINING: Sampler(MASKED),
    UNMASKED: Sampler(_UNMASKED),
    DEFAULT: Sampler(_DEFAULT),
    f"{DEFAULT}, border padding": Sampler(_DEFAULT, padding_mode="border"),
}
# Variations of the padding, the blur, the spread, the noise, and of whether value and slope agree.
VARIED = {
    "bilinear, border padding": Sampler(padding_mode="border"),
    "bilinear, blurred by 0.125 output pixel, border padding": Sampler(blur=0.125, padding_mode="border"),
    "bilinear, blurred by 0.25 output pixel, border padding": Sampler(blur=0.25, padding_mode="border"),
    "bilinear, blurred by 0.5 output pixel": Sampler(blur=0.5),
    "bilinear, blurred by 1 output pixel": Sampler(blur=1.0),
    "supersampled 2 x 2": Sampler(supersampling=2),
    "supersampled 2 x 2, border padding": Sampler(supersampling=2, padding_mode="border"),
    "supersampled 4 x 4": Sampler(supersampling=4),
    "supersampled 4 x 4, border padding": Sampler(supersampling=4, padding_mode="border"),
    "mipmap, one level finer": Sampler(mipmap=-1.0),
    "mipmap, one level finer, border padding": Sampler(mipmap=-1.0, padding_mode="border"),
    "paper, border padding": Sampler(_PAPER, padding_mode="border"),
    f"{DEFAULT}, K = 16": Sampler(replace(_DEFAULT, num_samples=16)),
    f"{DEFAULT}, slope of a plane": Sampler(replace(_DEFAULT, slope="plane")),
    f"{TRAINING}, border padding": Sampler(MASKED, padding_mode="border"),
    "whitened, sigma 0.2, jitter 0": Sampler(replace(MASKED, sigma=0.2)),
    "whitened, sigma 0.5, jitter 0": Sampler(replace(MASKED, sigma=0.5)),
    "whitened, sigma 0.25, jitter 1": Sampler(replace(MASKED, sigma=0.25, jitter=1.0)),
    "whitened, sigma 1 to 0.3, jitter 0": Sampler(MASKED, anneal=(1.0, 20_000)),
    "independent, sigma 0.3, jitter 0": Sampler(replace(MASKED, pattern="gaussian")),
    f"{TRAINING}, K = 32": Sampler(replace(MASKED, num_samples=32)),
    f"{TRAINING}, noise for each image": Sampler(MASKED, noise_for_each_image=True),
    f"{TRAINING}, noise drawn once": Sampler(MASKED, noise_drawn_once=True),
    f"{TRAINING}, no intercept": Sampler(replace(MASKED, intercept=False)),
    f"{TRAINING}, slope of bilinear": Sampler(MASKED, slope_of_bilinear=True),
}
SAMPLERS = COMPARED | VARIED
