"""Transforms in files: what a registration found, for other programs and for later."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kornia.geometry.linalg import transform_points
from torch import Tensor

from lms_geometry.checks import check_same_batch, check_same_device, check_tensor
from lms_geometry.registration.itk import read_tfm, write_tfm

CONVENTION = "source to target, pixels, centres at integers"
# How far, in pixels, perspective may move a point of an image that a file for affine matrices is to hold.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """A matrix for each pair of a batch, as it is written to a file and read from one.

    A file is JSON, or, with a name that ends in ``.tfm``, an affine transform of ITK, which SimpleITK, ANTs and 3D
    Slicer read too. ITK's transforms lead from the target (fixed) to the source (moving image): such a file holds the
    inverse matrix. It is in pixels: a program that reads it must take the images with spacing 1 and origin 0.

    OpenCV's ``warpPerspective(source, M, (width, height))`` takes a ``matrix`` as it is; scikit-image's
    ``warp(source, ProjectiveTransform(M).inverse)`` its inverse.

    Args:
        matrix: source to target in pixels with centres at integers, shape :math:`(B, 3, 3)`.
        source_size: (height, width) of the images that are warped, if known.
        target_size: (height, width) of the images onto which they are warped, if known.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> moved = Transform(torch.tensor([[[1.0, 0.0, 2.5], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0]]]))
        >>> with TemporaryDirectory() as folder:
        ...     moved.save(Path(folder, "moved.tfm"))
        ...     again = Transform.load(Path(folder, "moved.tfm"))
        >>> again.points(torch.tensor([[[10.0, 10.0]]]))
        tensor([[[12.5000,  9.0000]]], dtype=torch.float64)
    """

    matrix: Tensor
    source_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Transform":
        """Read a transform file.

        It is JSON with a member ``matrix``, as :meth:`save`, :meth:`Registration.save` and the command write it, or one
        of ITK's text files ``.tfm`` and ``.txt`` with one linear transform of two dimensions: ``AffineTransform``,
        ``MatrixOffsetTransformBase``, ``Euler2DTransform``, ``Rigid2DTransform``, ``Similarity2DTransform``,
        ``ScaleTransform``, ``TranslationTransform``, ``IdentityTransform``, or a composite of such.

        Args:
            path: the file.

        Returns:
            The transform, with a matrix in float64. A file of ITK's holds one matrix and no sizes.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it holds no transform of these, or a matrix that is not finite and invertible.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            if text.lstrip().startswith("#"):
                return cls(read_tfm(text.lstrip())[None])
            return cls._from_json(json.loads(text))
        except json.JSONDecodeError:
            message = "it is neither JSON nor a text file of ITK's"
        except UnicodeDecodeError:
            message = "it is not text: of ITK's files, those in text form, .tfm, can be read"
        except ValueError as error:
            message = str(error)
        raise ValueError(f"{path} holds no transform: {message}")

    @classmethod
    def _from_json(cls, saved: object) -> "Transform":
        if not isinstance(saved, dict) or "matrix" not in saved:
            raise ValueError("its JSON must be an object with a member matrix")
        if saved.get("matrix_convention", CONVENTION) != CONVENTION:
            raise ValueError(f"matrix_convention must be {CONVENTION!r}, got {saved['matrix_convention']!r}")
        try:
            matrix = torch.tensor(saved["matrix"], dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError("matrix must be 3 x 3 numbers, or a list of such") from None
        matrix = matrix[None] if matrix.ndim == 2 else matrix
        if matrix.ndim != 3 or matrix.shape[1:] != (3, 3) or len(matrix) == 0:
            raise ValueError(f"matrix must have shape (3, 3) or (B, 3, 3), got {tuple(matrix.shape)}")
        _check_invertible(matrix)
        return cls(matrix, _size(saved, "source_size"), _size(saved, "target_size"))

    def save(self, path: str | Path) -> None:
        """Write the transform: as ITK's text if the name ends in ``.tfm``, else as JSON. Replaces an existing file.

        JSON has the members ``matrix``, a list of 3 x 3 matrices; ``matrix_convention``, in words; and ``source_size``
        and ``target_size``, each (height, width) in pixels, where they are known.

        Args:
            path: the file to write. Its folder must exist.

        Raises:
            ValueError: if the matrix is not finite and invertible; if a ``.tfm`` is asked for and the batch is not 1,
                or the matrix is not affine, for which ITK has no transform of two dimensions.
        """
        _check_invertible(self.matrix)
        if is_tfm(path):
            Path(path).write_text(self.to_tfm())
            return
        sizes = {"source_size": self.source_size, "target_size": self.target_size}
        saved = {"matrix": self.matrix.tolist(), "matrix_convention": CONVENTION}
        Path(path).write_text(json.dumps(saved | {name: size for name, size in sizes.items() if size}, indent=2) + "\n")

    def to_tfm(self) -> str:
        """The text of a ``.tfm``; raises as :meth:`save` does."""
        _check_invertible(self.matrix)
        if len(self.matrix) != 1:
            raise ValueError(f"a .tfm holds one transform, got {len(self.matrix)}: save them as .json")
        if not self.is_affine():
            raise ValueError("a .tfm holds affine transforms of two dimensions, got a homography: save it as .json")
        matrix = self.matrix[0].detach().cpu().double()
        matrix = matrix / matrix[2, 2]
        matrix[2] = matrix.new_tensor([0, 0, 1])
        return write_tfm(matrix)

    def is_affine(self) -> bool:
        """Whether the matrices are affine, but for what rounding adds."""
        longest = max(self.source_size or (1000,))
        perspective = (self.matrix[:, 2, :2] / self.matrix[:, 2, 2:]).abs().amax().item()
        return perspective * longest**2 < _NEGLIGIBLE

    def inverse(self) -> "Transform":
        """The transform from the target to the source."""
        return Transform(torch.linalg.inv(self.matrix), self.target_size, self.source_size)

    def points(self, points: Tensor) -> Tensor:
        """Points of the source as points of the target.

        Args:
            points: (x, y) in pixels with centres at integers, shape :math:`(B, N, 2)`. Either batch may be 1.

        Returns:
            The points in the target, shape :math:`(B, N, 2)`.

        Raises:
            TypeError: if ``points`` is not a floating tensor.
            ValueError: if it has another shape, batch size or device.
        """
        check_tensor("points", points, ("B", "N", 2))
        check_same_batch("points", points, "matrix", self.matrix)
        check_same_device("points", points, "matrix", self.matrix)
        working = torch.promote_types(points.dtype, self.matrix.dtype)
        batch = len(self.matrix) if len(points) == 1 else len(points)
        return transform_points(self.matrix.to(working).expand(batch, 3, 3), points.to(working).expand(batch, -1, -1))


def is_tfm(path: str | Path) -> bool:
    """Whether a file of this name is written as ITK's text."""
    return Path(path).suffix.lower() == ".tfm"


def _check_invertible(matrix: Tensor) -> None:
    inverse, singular = torch.linalg.inv_ex(matrix)
    if singular.any() or not (matrix.isfinite() & inverse.isfinite()).all():
        raise ValueError("matrix must be finite and invertible")


def _size(saved: dict[str, Any], name: str) -> tuple[int, int] | None:
    size = saved.get(name)
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"{name} must be [height, width], got {size!r}")
    return size[0], size[1]
