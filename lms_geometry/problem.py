"""What is to be aligned, and how the images are made ready: masks, offsets, contrast, and where the search starts."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lms_geometry.agreement import Loss, contrast, weighted_mean
from lms_geometry.motions import Motion
from lms_geometry.projection import pixel_normalisation

# What a pixel reads is counted where so much of it is in the source's mask.
WHOLLY_SEEN = 0.99
# Beyond, squares and their sums leave float32.
_LARGEST = 1e15


@dataclass(frozen=True)
class Problem:
    """What is to be aligned: ``source``, ``(B, C, H, W)``, with ``target``, ``(B, C, h, w)``, and how to compare them.

    ``start`` ``(B, 3, 3)`` is normalised, target to source; ``dsize`` is the target's size when it was not yet shrunk.
    The masks, ``(B, 1, H, W)`` and ``(B, 1, h, w)``, are 1 where an image counts. Without a ``source_mask`` all of the
    target counts, and what lies outside the source is zero.
    """

    source: Tensor
    target: Tensor
    start: Tensor
    dsize: tuple[int, int]
    motion: Motion
    source_mask: Tensor | None
    target_mask: Tensor
    photometric: bool
    loss: Loss

    def take(self, rows: Tensor) -> "Problem":
        """The problem of some of the images."""
        return replace(
            self,
            source=self.source[rows],
            target=self.target[rows],
            start=self.start[rows],
            source_mask=None if self.source_mask is None else self.source_mask[rows],
            target_mask=self.target_mask[rows],
        )

    def normalised(self) -> "Problem":
        """The same problem with images whose offset and, if it is fitted, contrast do not matter.

        Where only the overlap counts, wide samples read zeros outside the source: let its mean be 0, so that they are
        no edge. Where a gain is fitted, it lies within bounds: let it be about 1.
        """
        seen = torch.ones_like(self.source[:, :1]) if self.source_mask is None else self.source_mask
        gain, mean = torch.ones_like(self.source[:, :1, :1, :1]), torch.zeros_like(self.source[:, :, :1, :1])
        if self.photometric:
            wanted = contrast(self.target[:, None], self.target_mask[:, None])
            gain = (wanted.sqrt() / contrast(self.source[:, None], seen[:, None]).sqrt())[:, 0]
        if self.source_mask is not None:
            mean = weighted_mean(self.source, seen)
        return replace(self, source=gain * (self.source - mean), target=self.target - mean)


def make_problem(
    source: Tensor,
    target: Tensor,
    init: Tensor | None,
    motion: Motion,
    source_mask: Tensor | None,
    target_mask: Tensor | None,
    overlap: bool,
    photometric: bool,
    loss: Loss,
) -> Problem:
    """The images in one dtype and batch, the start in normalised coordinates."""
    working = torch.promote_types(source.dtype, torch.float32)
    batch = source.shape[0] if target.shape[0] == 1 else target.shape[0]
    source, target = (image.detach().to(working).expand(batch, -1, -1, -1) for image in (source, target))
    if source_mask is None and overlap:
        source_mask = torch.ones_like(source[:, :1])
    if source_mask is not None:
        source_mask = source_mask.detach().to(working).expand(batch, -1, -1, -1)
        source = _filled(source, source_mask)
    if target_mask is not None:
        target_mask = target_mask.detach().to(working).expand(batch, -1, -1, -1)
        target = _filled(target, target_mask)
    else:
        target_mask = torch.ones_like(target[:, :1])
    if source.shape[1] != target.shape[1]:
        source, target = (image.mean(1, keepdim=True) for image in (source, target))
    if init is None:
        start = _start(motion, source, target)
    else:
        start = normalisation(source) @ init.detach().to(working).inverse() @ normalisation(target).inverse()
    for name, image in (("source", source), ("target", target)):
        if not image.isfinite().all():
            raise ValueError(f"{name} must be finite where its mask does not hide it, got NaN or infinity")
        if image.abs().amax() > _LARGEST:
            raise ValueError(f"{name} must be at most {_LARGEST:g} in size, got {image.abs().amax():g}")
    dsize = target.shape[-2], target.shape[-1]
    start = start.expand(batch, 3, 3)
    return Problem(source, target, start, dsize, motion, source_mask, target_mask, photometric, loss)


def normalisation(image: Tensor) -> Tensor:
    """From an image's pixels to its normalised coordinates, ``(1, 3, 3)``."""
    return pixel_normalisation((image.shape[-2], image.shape[-1]), align_corners=False, like=image)


def _start(motion: Motion, source: Tensor, target: Tensor) -> Tensor:
    """The plain resize, or, for a motion that cannot undo that, a resize that keeps the source's proportions."""
    (height, width), (h, w) = source.shape[-2:], target.shape[-2:]
    start = torch.eye(3, dtype=source.dtype, device=source.device)
    if motion in ("translation", "similarity") and abs(w * height - h * width) > max(height, width):
        scale = math.sqrt(height * width / (h * w))
        start[0, 0], start[1, 1] = w * scale / width, h * scale / height
    return start


def _filled(image: Tensor, mask: Tensor) -> Tensor:
    """An image with its mean where it is hidden: samples that reach there find nothing that stands out."""
    shown = mask > 0
    return torch.where(shown, image, weighted_mean(torch.where(shown, image, 0.0), mask))
