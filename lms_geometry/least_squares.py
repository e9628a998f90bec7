"""The ridge least squares of equations (4) to (7), solved in closed form at every pixel.

With offsets ``o_k = L z_k`` from the centre and intensity differences ``d_k``, equation (7) is::

    A = (X' X + eps E)^-1 X' Y,    rows of X: [o_k, 1],    rows of Y: d_k.

Eliminating the row of ones centres the ``n`` draws at their mean ``m`` and leaves two unknowns. With
``s = eps / (n + eps)``, the part that the ridge takes from the row of ones::

    (L Q L' + eps I) A_uv = L q,
    Q = sum (z_k - m)(z_k - m)' + s n m m',
    q = sum (z_k - m) d_k + s m sum d_k,
    A_1 = (1 - s) (sum d_k / n - (L m)' A_uv).

Without the row of ones ``m`` is 0. The sums run over the draws, which are of order one under any transform, and which
are centred before they are summed. Three unknowns at once, or moments centred afterwards, lose every digit in float32
when few samples are left.

The C and the Triton kernel call the sums by the same names: ``count`` is n, ``mean`` m, ``kept`` 1 - s, ``second`` Q,
``cross`` q and ``total`` the sum of all ``d_k``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lms_geometry.footprint import place


class Moments:
    """The sums of the fit at every pixel, over draws that are known and differences that are added one by one.

    Args:
        draws: the draws ``z_k``, each ``(2, B, h, w)``, where B, h and w may be 1, as in all that follows.
        weights: for every draw 1 where it is in the fit and 0 where not, ``(B, h, w)``.
        ridge: ``eps``.
        intercept: whether the fit has the row of ones.
    """

    def __init__(self, draws: Sequence[Tensor], weights: Sequence[Tensor], ridge: float, intercept: bool) -> None:
        self.ridge, self.intercept = ridge, intercept
        self.count = torch.stack(tuple(weights)).sum(0).clamp_min(1)
        self.mean = torch.zeros_like(draws[0])
        if intercept:
            weighted = (z * weight for z, weight in zip(draws, weights, strict=True))
            self.mean = sum(weighted, torch.zeros_like(draws[0])) / self.count
        self.shrinkage = ridge / (self.count + ridge)
        self.second = self.shrinkage * self.count * self.mean * self.mean.unsqueeze(1)
        self.cross = draws[0].new_zeros(2, 1, 1, 1, 1)
        self.total = draws[0].new_zeros(1, 1, 1, 1)

    def add(self, draw: Tensor, weight: Tensor, difference: Tensor) -> None:
        """Add a sample: its draw and weight, and the differences ``d_k`` from the centre, ``(B, C, h, w)``."""
        offset = (draw - self.mean) * weight
        self.second = torch.addcmul(self.second, offset, offset.unsqueeze(1))
        self.cross = torch.addcmul(self.cross, offset.unsqueeze(2), difference)
        self.total = torch.addcmul(self.total, weight.unsqueeze(1), difference)

    def solve(self, footprint: Tensor) -> tuple[Tensor, Tensor | None]:
        """The slopes ``(2, B, C, h, w)`` in intensity per source pixel, and ``A_1``, ``(B, C, h, w)``, or ``None``.

        The footprint ``L`` is ``(2, 2, B, h, w)``, in source pixels.
        """
        cross = self.cross.addcmul((self.shrinkage * self.mean).unsqueeze(2), self.total)
        slope = solve_slope(self.second, cross, footprint, self.ridge)
        if not self.intercept:
            return slope, None
        drift_x, drift_y = place(torch.zeros_like(self.mean), footprint, self.mean).unsqueeze(2)
        level = self.total.div(self.count.unsqueeze(1))
        level = level.addcmul(drift_x, slope[0], value=-1).addcmul(drift_y, slope[1], value=-1)
        return slope, level.mul(1 - self.shrinkage.unsqueeze(1))


def solve_slope(second: Tensor, cross: Tensor, footprint: Tensor, ridge: float) -> Tensor:
    """The slopes ``A_uv = (L Q L' + eps I)^-1 L q``.

    Since ``adj(L Q L') L = det(L) adj(L)' adj(Q)``, the inverse needs no difference of large numbers but ``det(Q)``,
    which is never negative; the ridge keeps the determinant ``det(L)^2 det(Q) + eps tr(L Q L') + eps^2`` above 0.

    Args:
        second: ``Q``, ``(2, 2, B, h, w)``.
        cross: ``q``, ``(2, B, C, h, w)``.
        footprint: ``L``, ``(2, 2, B, h, w)``, in source pixels.
        ridge: ``eps``.

    Returns:
        The slopes along x and y, ``(2, B, C, h, w)``, in intensity per source pixel.
    """
    (l11, _), (l21, l22) = footprint
    (second_xx, second_xy), (_, second_yy) = second
    area = l11 * l22
    trace = (l11.square() + l21.square()) * second_xx + 2 * l21 * l22 * second_xy + l22.square() * second_yy
    determinant = area.square() * (second_xx * second_yy - second_xy.square()).clamp_min(0)
    determinant = determinant + ridge * (trace.clamp_min(0) + ridge)
    scaled, damping = area / determinant, ridge / determinant
    xx, yx = scaled * (l22 * second_yy + l21 * second_xy) + damping * l11, damping * l21 - scaled * l11 * second_xy
    xy, yy = -scaled * (l22 * second_xy + l21 * second_xx), damping * l22 + scaled * l11 * second_xx
    cross_x, cross_y = cross
    return (torch.stack((xx, yx)).unsqueeze(2) * cross_x).addcmul(torch.stack((xy, yy)).unsqueeze(2), cross_y)
