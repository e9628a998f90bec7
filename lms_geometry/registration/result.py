"""The result of a registration: the matrix, the score, the way there, and what can be done with them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from kornia.geometry.transform import warp_perspective
from torch import Tensor

from lms_geometry.checks import check_same_batch, check_tensor
from lms_geometry.projection import pixel_normalisation
from lms_geometry.registration import plotting
from lms_geometry.registration.metrics import corner_error
from lms_geometry.registration.problem import Problem
from lms_geometry.registration.search import Found
from lms_geometry.registration.transforms import CONVENTION, Transform, is_tfm
from lms_geometry.registration.verdict import judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Registration:
    """The result of :func:`register` for a batch of B image pairs.

    Args:
        matrix: source to target in pixels with centres at integers, shape :math:`(B, 3, 3)`, such that
            ``warp_perspective(source, matrix, target.shape[-2:])`` looks like the target.
        score: how well the images agree at the end, from 0 to 1, shape :math:`(B)`: the correlation of their gradient
            vectors in small windows of the overlap, at a longer side of at most 256 pixels, averaged over windows that
            show structure. Brightness, contrast and layout do not raise it.
        good: whether to believe the result, shape :math:`(B)`, bool: the score is above what chance gives, and neither
            another shift nor another turn explains the images nearly as well. On pairs with known truth 2 in
            100 of the results called good were wrong; look at the others.
        overlap: the share of the target that the source covers, shape :math:`(B)`.
        start: the kind of start that won, for each pair: ``"init"``, ``"resize"``, ``"turns"``, ``"phase"`` or
            ``"features"``.
        not_tried: which kinds of starts could not be tried, and why, such as ``"features: OpenCV is not installed"``.
        converged: whether the steps became too small to matter before they ran out, shape :math:`(B)`. A wrong answer
            may have converged too. :class:`Adam` has no such test: all ``False``.
        loss: the loss before each step, shape :math:`(steps, B)`. In the finish of :class:`GaussNewton`, where a step
            that makes the loss rise is taken back, it is the smallest loss so far.
        displacement: the distance by which each step moves the target's corners over the source, the mean of the four,
            in source pixels, shape :math:`(steps, B)`.
        path: the matrix before each step and after the last, shape :math:`(steps + 1, B, 3, 3)`. The last one has been
            finished at full size.
        source: the images that were warped, as they were given, not copied.
        target: the images onto which they were warped, as they were given, not copied.

    Example:
        >>> from lms_geometry import register
        >>> image = torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0))
        >>> found = register(image, image, "translation")
        >>> found
        Registration(1 pair, 24 x 32 onto 24 x 32, 60 steps, 1 converged, score 1.000)
        >>> found.warp(image).shape
        torch.Size([1, 1, 24, 32])
    """

    matrix: Tensor
    score: Tensor
    good: Tensor
    overlap: Tensor
    start: tuple[str, ...]
    not_tried: tuple[str, ...]
    converged: Tensor
    loss: Tensor
    displacement: Tensor
    path: Tensor
    source: Tensor
    target: Tensor

    def __repr__(self) -> str:
        sizes = " onto ".join(f"{image.shape[-2]} x {image.shape[-1]}" for image in (self.source, self.target))
        scores = sorted({f"{score:.3f}" for score in (self.score.min().item(), self.score.max().item())})
        pairs = f"{len(self.matrix)} pair{'s' if len(self.matrix) > 1 else ''}"
        return (
            f"{type(self).__name__}({pairs}, {sizes}, {len(self.loss)} steps, "
            f"{int(self.converged.sum())} converged, score {' to '.join(scores)})"
        )

    def warp(self, image: Tensor | None = None) -> Tensor:
        """Warp an image as the source was warped, by :func:`kornia.geometry.warp_perspective`.

        Args:
            image: an image in the source's frame, such as a mask or another channel of it, shape :math:`(B, C, H, W)`
                with the source's size. Its batch or that of the registration may be 1. The source if ``None``.

        Returns:
            The warped image, shape :math:`(B, C, h, w)` with the target's size: bilinear, and zero outside ``image``.

        Raises:
            TypeError: if ``image`` is not a floating tensor.
            ValueError: if ``image`` has another size or batch.
        """
        image = self.source if image is None else image
        check_tensor("image", image, ("B", "C", *self.source.shape[-2:]))
        check_same_batch("image", image, "matrix", self.matrix)
        batch = max(image.shape[0], self.matrix.shape[0])
        working = torch.promote_types(image.dtype, self.matrix.dtype)
        warped = warp_perspective(
            image.to(working).expand(batch, -1, -1, -1),
            self.matrix.to(working).expand(batch, -1, -1),
            (self.target.shape[-2], self.target.shape[-1]),
        )
        return warped.to(image.dtype)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, or its matrix as a transform of ITK's. A file that is already there is replaced.

        A name that ends in ``.tfm`` asks for the latter, see :class:`Transform`, which reads both again. It is for one
        pair and an affine matrix.

        Otherwise, the JSON's object has these members, where a list has one entry for each pair of the batch:
        ``matrix``, a list of 3 x 3 matrices as nested lists; ``matrix_convention``, in words; ``source_size`` and
        ``target_size``, each (height, width) in pixels; ``score``, ``good``, ``overlap``, ``start`` and ``converged``,
        lists; ``not_tried``, a list of reasons; ``steps``, the number of steps; ``first_loss`` and ``last_loss``,
        lists. A number that is not finite is ``null``.

        Args:
            path: the file to write. Its folder must exist.

        Raises:
            ValueError: if a ``.tfm`` is asked for and there are several pairs, or the matrix is not affine.
        """
        if is_tfm(path):
            Transform(self.matrix, source_size=(self.source.shape[-2], self.source.shape[-1])).save(path)
            return
        result = {
            "matrix": self.matrix.tolist(),
            "matrix_convention": CONVENTION,
            "source_size": list(self.source.shape[-2:]),
            "target_size": list(self.target.shape[-2:]),
            "score": self.score.tolist(),
            "good": self.good.tolist(),
            "overlap": self.overlap.tolist(),
            "start": list(self.start),
            "not_tried": list(self.not_tried),
            "converged": self.converged.tolist(),
            "steps": len(self.loss),
            "first_loss": self.loss[0].tolist(),
            "last_loss": self.loss[-1].tolist(),
        }
        finite = json.loads(json.dumps(result), parse_constant=lambda _: None)
        Path(path).write_text(json.dumps(finite, indent=2) + "\n")

    def plot(self, index: int = 0) -> "Figure":
        """Draw one pair of the batch, as in Fig. 1 of the paper.

        The panels show the source with the outline of the target on it, from the first step (dark) to the last (yellow,
        dashed); the target; the warped source; and both on top of each other, the warped source in red and the target
        in cyan, grey where they agree. Images of 3 channels are drawn in colour, others by the mean of their channels.

        Args:
            index: which pair of the batch.

        Returns:
            A matplotlib figure, which a notebook shows, and whose ``savefig`` writes it.

        Raises:
            IndexError: if the batch has no such pair.
            ModuleNotFoundError: if matplotlib is missing, which comes with ``lms_geometry[plot]``.
        """
        batch = len(self.matrix)
        if not -batch <= index < batch:
            raise IndexError(f"index must be from {-batch} to {batch - 1}, got {index}")
        images = self.source, self.target, self.warp()
        source, target, warped = (image.expand(batch, -1, -1, -1)[index] for image in images)
        return plotting.draw_registration(source, target, warped, self.path[:, index])


def make_registration(source: Tensor, target: Tensor, problem: Problem, found: Found) -> Registration:
    """The result for images as they were given: matrices in pixels, the score, and the verdict."""
    dsize = target.shape[-2], target.shape[-1]
    size = source.shape[-2], source.shape[-1]
    normalise_source, normalise_target = (pixel_normalisation(n, False, like=found.path) for n in (size, dsize))
    from_target = normalise_source.inverse() @ found.path @ normalise_target
    to_target = torch.linalg.inv_ex(from_target).inverse  # an error would end the batch for one image that diverged
    to_target = to_target / to_target[..., 2:, 2:]
    displacement = corner_error(from_target[1:], from_target[:-1], dsize)
    judged = judge(problem, found.path[-1])
    return Registration(
        to_target[-1],
        judged.score,
        judged.good,
        judged.overlap,
        found.start,
        found.not_tried,
        found.converged,
        found.loss,
        displacement,
        to_target,
        source,
        target,
    )
