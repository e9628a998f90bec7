"""The ridge least squares of equations (4) to (7), solved in closed form at every pixel.

With offsets ``o_k = L z_k`` from the centre and intensity differences ``d_k``, equation (7) is::

    A = (X' X + eps E)^-1 X' Y,    rows of X: [o_k, 1],    rows of Y: d_k.

Eliminating the row of ones centres the ``n`` draws at their mean ``m`` and leaves two unknowns. With
``s = eps / (n + eps)``, what the ridge takes from the row of ones::

    (L Q L' + eps I) A_uv = L q,
    Q = sum (z_k - m)(z_k - m)' + s n m m',
    q = sum (z_k - m) d_k + s m sum d_k,
    A_1 = (1 - s) (sum d_k / n - (L m)' A_uv).

Without the row of ones ``m`` is 0. The sums run over the draws, which are of order one whatever the transform does, and
which are centred before they are summed. Three unknowns at once, or moments centred afterwards, lose every digit in
float32 when few samples are left.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def count_and_mean(draws: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The number ``n`` of draws in the fit, at least 1, and their mean ``m``. A weight is 1 in the fit, else 0."""
    count = torch.stack(tuple(weights)).sum(0).clamp_min(1)
    return count, sum((z * w for z, w in zip(draws, weights, strict=True)), torch.zeros_like(draws[0])) / count


def solve_slope(second_moment: Tensor, cross_moment: Tensor, footprint: Tensor, ridge: float) -> Tensor:
    """The slopes ``A_uv = (L Q L' + eps I)^-1 L q``.

    Since ``adj(L Q L') L = det(L) adj(L)' adj(Q)``, the inverse needs no difference of large numbers but ``det(Q)``,
    which is never negative; the ridge keeps the determinant ``det(L)^2 det(Q) + eps tr(L Q L') + eps^2`` above 0.

    Args:
        second_moment: ``Q``, ``(2, 2, B, h, w)``.
        cross_moment: ``q``, ``(2, B, C, h, w)``.
        footprint: ``L``, ``(2, 2, B, h, w)``, in source pixels.
        ridge: ``eps``.

    Returns:
        The slopes along x and y, ``(2, B, C, h, w)``, in intensity per source pixel.
    """
    (l11, _), (l21, l22) = footprint
    (qxx, qxy), (_, qyy) = second_moment
    area = l11 * l22
    trace = (l11.square() + l21.square()) * qxx + 2 * l21 * l22 * qxy + l22.square() * qyy
    determinant = area.square() * (qxx * qyy - qxy.square()).clamp_min(0) + ridge * (trace.clamp_min(0) + ridge)
    area, damping = area / determinant, ridge / determinant
    column_x = torch.stack((area * (l22 * qyy + l21 * qxy) + damping * l11, damping * l21 - area * l11 * qxy))
    column_y = torch.stack((-area * (l22 * qxy + l21 * qxx), damping * l22 + area * l11 * qxx))
    cross_x, cross_y = cross_moment
    return (column_x.unsqueeze(2) * cross_x).addcmul(column_y.unsqueeze(2), cross_y)
