"""The problem of a registration: images made ready to be compared, their masks, and the matrix to start from."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.projection import pixel_normalisation
from lms_geometry.registration.motion import Motion
from lms_geometry.registration.similarity import Loss, contrast, weighted_mean

# The value of the warped source mask above which a pixel of the warped source is valid.
FULLY_VALID = 0.99
# The largest intensity. The squares of larger ones, and their sums, leave float32.
_LARGEST = 1e15


@dataclass(frozen=True)
class Problem:
    """A batch of image pairs to align, and how to compare them.

    Args:
        source: the images to warp, ``(B, C, H, W)``.
        target: the images to warp them onto, ``(B, C, h, w)``.
        start: the matrices to start from, target to source in normalised coordinates, ``(B, 3, 3)``.
        dsize: the target's size (height, width) before it was shrunk for a stage of the search or to ``max_size``.
        motion: the motion model.
        source_mask: 1 where the source is valid, ``(B, 1, H, W)``. ``None``: the source is zero outside its frame, and
            all of the target counts.
        target_mask: weight of the target's pixels, ``(B, 1, h, w)``.
        fit_gain_bias: whether a gain and a bias of the source are fitted.
        loss: the loss of the residuals.
    """

    source: Tensor
    target: Tensor
    start: Tensor
    dsize: tuple[int, int]
    motion: Motion
    source_mask: Tensor | None
    target_mask: Tensor
    fit_gain_bias: bool
    loss: Loss

    @property
    def size(self) -> tuple[int, int]:
        """The target's size (height, width) as it is now."""
        return self.target.shape[-2], self.target.shape[-1]

    def take(self, rows: Tensor) -> "Problem":
        """The problem of some of the pairs."""
        return replace(
            self,
            source=self.source[rows],
            target=self.target[rows],
            start=self.start[rows],
            source_mask=None if self.source_mask is None else self.source_mask[rows],
            target_mask=self.target_mask[rows],
        )

    def shrunk(self, longest: float, source_longest: float) -> "Problem":
        """The same problem on images whose longer sides are at most so many pixels.

        Matrices in normalised coordinates are those of the full sizes, however the sizes are rounded.
        """
        return replace(
            self,
            source=shrink(self.source, source_longest),
            target=shrink(self.target, longest),
            source_mask=None if self.source_mask is None else shrink(self.source_mask, source_longest),
            target_mask=shrink(self.target_mask, longest),
        )

    def normalised(self) -> "Problem":
        """The same problem on images whose unit, offset and, if a gain is fitted, contrast do not matter.

        The target's contrast becomes about 1. With a source mask, wide samples read zeros outside the source. Its mean
        becomes 0, so that these zeros make no edge. A fitted gain has bounds. The source takes the target's contrast,
        so that the gain is about 1.
        """
        valid = torch.ones_like(self.source[:, :1]) if self.source_mask is None else self.source_mask
        gain, mean = torch.ones_like(self.source[:, :1, :1, :1]), torch.zeros_like(self.source[:, :, :1, :1])
        if self.fit_gain_bias:
            wanted = contrast(self.target[:, None], self.target_mask[:, None])
            gain = (wanted.sqrt() / contrast(self.source[:, None], valid[:, None]).sqrt())[:, 0]
        if self.source_mask is not None:
            mean = weighted_mean(self.source, valid)
        unit = self.unit()[:, None, None, None]
        return replace(self, source=gain * (self.source - mean) / unit, target=(self.target - mean) / unit)

    def unit(self) -> Tensor:
        """The contrast of the targets, by which images are divided, a power of 2, ``(B)``.

        It is at least a millionth of the largest value. So the squares of what was divided stay finite, also where a
        target is blank and the source is not.
        """
        variance = contrast(self.target[:, None], self.target_mask[:, None]).flatten()
        images = (self.target,) if self.fit_gain_bias else (self.target, self.source)
        largest = torch.stack([image.abs().amax((1, 2, 3)) for image in images]).amax(0)
        size = variance.sqrt().maximum(1e-6 * largest)
        return torch.where(size > torch.finfo(size.dtype).tiny * 16, size, 1.0).log2().round().exp2()


def make_problem(
    source: Tensor,
    target: Tensor,
    init: Tensor | None,
    motion: Motion,
    source_mask: Tensor | None,
    target_mask: Tensor | None,
    overlap_only: bool,
    fit_gain_bias: bool,
    loss: Loss,
) -> Problem:
    """Bring the images to one dtype and batch size, and the start to normalised coordinates."""
    working = torch.promote_types(source.dtype, torch.float32)
    batch = source.shape[0] if target.shape[0] == 1 else target.shape[0]
    source, target = (image.detach().to(working).expand(batch, -1, -1, -1) for image in (source, target))
    if source_mask is not None:
        source_mask = source_mask.detach().to(working).expand(batch, -1, -1, -1)
        source = _filled(source, source_mask)
    elif overlap_only:
        source_mask = torch.ones_like(source[:1, :1]).expand(batch, -1, -1, -1)
    if target_mask is not None:
        target_mask = target_mask.detach().to(working).expand(batch, -1, -1, -1)
        target_mask = target_mask / target_mask.amax((1, 2, 3), keepdim=True)  # only ratios of weights mean anything
        target = _filled(target, target_mask)
    else:
        target_mask = torch.ones_like(target[:1, :1]).expand(batch, -1, -1, -1)
    if source.shape[1] != target.shape[1]:
        source, target = (image.mean(1, keepdim=True) for image in (source, target))
    if init is None:
        start = _start(motion, source, target)
    else:
        # The scale of a homography means nothing. One so small that its inverse overflows is as good as any.
        init = init.detach().double()
        init = (init / init.abs().amax((1, 2), keepdim=True)).inverse()
        start = normalisation(source) @ (init / init.abs().amax((1, 2), keepdim=True)).to(working)
        start = start @ normalisation(target).inverse()
    for name, image in (("source", source), ("target", target)):
        if not image.isfinite().all():
            raise ValueError(f"{name} must be finite where its mask does not hide it, got NaN or infinity")
        low, high = image.aminmax()
        if (largest := max(-low, high)) > _LARGEST:
            raise ValueError(f"{name} must be at most {_LARGEST:g} in size, got {largest:g}")
    dsize = target.shape[-2], target.shape[-1]
    start = start.expand(batch, 3, 3)
    return Problem(source, target, start, dsize, motion, source_mask, target_mask, fit_gain_bias, loss)


def normalisation(image: Tensor) -> Tensor:
    """The matrix ``(1, 3, 3)`` from an image's pixels to its normalised coordinates."""
    return pixel_normalisation((image.shape[-2], image.shape[-1]), align_corners=False, like=image)


def shrink(image: Tensor, longest: float) -> Tensor:
    """The image at a longer side of at most ``longest`` pixels."""
    scale = longest / max(image.shape[-2:])
    if scale >= 1:
        return image
    return F.interpolate(image, [max(1, round(n * scale)) for n in image.shape[-2:]], mode="area")


def _start(motion: Motion, source: Tensor, target: Tensor) -> Tensor:
    """The plain resize, or, for a motion that cannot undo a change of proportions, a resize that keeps them."""
    (height, width), (h, w) = source.shape[-2:], target.shape[-2:]
    start = torch.eye(3, dtype=source.dtype, device=source.device)
    other_proportions = abs(w * height - h * width) > max(height, width)
    if motion in ("rigid", "similarity") or (motion == "translation" and other_proportions):
        scale = 1.0 if motion == "rigid" else math.sqrt(height * width / (h * w))
        start[0, 0], start[1, 1] = w * scale / width, h * scale / height
    return start


def _filled(image: Tensor, mask: Tensor) -> Tensor:
    """The image with its mean where the mask hides it: samples that reach there read nothing that stands out."""
    shown = mask > 0
    return torch.where(shown, image, weighted_mean(torch.where(shown, image, 0.0), mask))
