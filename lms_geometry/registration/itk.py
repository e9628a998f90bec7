"""Transform files of ITK, ``.tfm``: the text format that ITK, SimpleITK, ANTs, elastix and 3D Slicer read and write.

ITK's transform takes a point of the fixed image, our target, to the moving one, our source: the inverse of our matrix.
It is in the images' physical units; for images of spacing 1 and origin 0 these are pixels with centres at integers.
"""

import re
from collections.abc import Callable, Sequence
from math import cos, sin

import torch
from torch import Tensor

_HEADER = "#Insight Transform File V1.0"

# Each kind's numbers as (2 x 2 matrix by rows, translation). A centre, if any, is among the fixed parameters.
_KINDS: dict[str, tuple[int, Callable[..., tuple[Sequence[float], Sequence[float]]]]] = {
    "AffineTransform": (6, lambda a, b, c, d, x, y: ((a, b, c, d), (x, y))),
    "MatrixOffsetTransformBase": (6, lambda a, b, c, d, x, y: ((a, b, c, d), (x, y))),
    "Euler2DTransform": (3, lambda angle, x, y: (_turn(1, angle), (x, y))),
    "Rigid2DTransform": (3, lambda angle, x, y: (_turn(1, angle), (x, y))),
    "Similarity2DTransform": (4, lambda scale, angle, x, y: (_turn(scale, angle), (x, y))),
    "ScaleTransform": (2, lambda x, y: ((x, 0, 0, y), (0, 0))),
    "TranslationTransform": (2, lambda x, y: ((1, 0, 0, 1), (x, y))),
    "IdentityTransform": (0, lambda: ((1, 0, 0, 1), (0, 0))),
}


def write_tfm(matrix: Tensor) -> str:
    """The text of an affine transform file for a matrix ``(3, 3)`` from source to target, in float64."""
    (a, b, x), (c, d, y), _ = torch.linalg.inv(matrix).tolist()
    numbers = " ".join(repr(number) for number in (a, b, c, d, x, y))
    return (
        f"{_HEADER}\n#Transform 0\nTransform: AffineTransform_double_2_2\n"
        f"Parameters: {numbers}\nFixedParameters: 0.0 0.0\n"
    )


def read_tfm(text: str) -> Tensor:
    """The matrix ``(3, 3)`` from source to target, in float64, of the text of a transform file.

    Raises:
        ValueError: if the text is no transform file, or its transform is not linear or not of two dimensions.
    """
    if not text.startswith("#Insight Transform File"):
        raise ValueError(f"the first line of an ITK transform file must be {_HEADER}")
    parts = re.split(r"^Transform:", text, flags=re.M)[1:]
    composite = bool(parts) and parts[0].split(maxsplit=1)[0].startswith("CompositeTransform")
    parts = parts[1:] if composite else parts
    if not parts or (len(parts) > 1 and not composite):
        raise ValueError(f"an ITK transform file must hold one transform, or one composite, got {len(parts)}")
    to_source = torch.eye(3, dtype=torch.float64)
    for part in parts:  # of a composite, ITK applies the last one first
        to_source = to_source @ _matrix(part)
    to_target, singular = torch.linalg.inv_ex(to_source)
    if singular or not to_target.isfinite().all():
        raise ValueError("the transform cannot be inverted")
    return to_target / to_target[2, 2]


def _matrix(part: str) -> Tensor:
    """The matrix from target to source of one transform's lines, the first of which is its name."""
    name, *lines = part.split("\n")
    kind, _, dimensions = name.strip().partition("_")
    if kind not in _KINDS or re.fullmatch(r"(float|double)_2_2", dimensions) is None:
        raise ValueError(f"a transform must be of 2 dimensions and one of {', '.join(_KINDS)}, got {name.strip()}")
    given = {key: _numbers(values) for key, _, values in (line.partition(":") for line in lines)}
    count, unpack = _KINDS[kind]
    numbers, centre = given.get("Parameters", []), given.get("FixedParameters", []) or [0.0, 0.0]
    if len(numbers) != count or len(centre) != 2:
        raise ValueError(f"{kind} must have {count} parameters and a centre, got {len(numbers)} and {len(centre)}")
    linear, translation = (torch.tensor(values, dtype=torch.float64) for values in unpack(*numbers))
    linear, about = linear.view(2, 2), torch.tensor(centre, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    matrix[:2, 2] = translation + about - linear @ about
    return matrix


def _numbers(values: str) -> list[float]:
    try:
        return [float(value) for value in values.split()]
    except ValueError:
        return []


def _turn(scale: float, angle: float) -> tuple[float, float, float, float]:
    return scale * cos(angle), -scale * sin(angle), scale * sin(angle), scale * cos(angle)
