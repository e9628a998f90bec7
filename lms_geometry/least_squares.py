"""The ridge least squares of equations (4) to (7), solved in closed form at every pixel.

With offsets ``o_k = L z_k`` from the centre and intensity differences ``d_k``, equation (7) is::

    A = (X' X + eps E)^-1 X' Y,    rows of X: [o_k, 1],    rows of Y: d_k.

Eliminating the row of ones centres the ``n`` draws at their mean ``m`` and leaves two unknowns. With
``s = eps / (n + eps)``, the part that the ridge takes from the row of ones::

    (L Q L' + eps I) A_uv = L q,
    Q = sum (z_k - m)(z_k - m)' + s n m m',
    q = sum (z_k - m) d_k + s m sum d_k,
    A_1 = (1 - s) (sum d_k / n - m' L' A_uv).

Without the row of ones ``m`` is 0. The sums run over the draws, which are of order one under any transform, and which
are centred before they are summed. Three unknowns at once, or moments centred afterwards, lose every digit in float32
when few samples are left.

``Q`` is nearly singular where the draws that are left lie nearly on a line. Its determinant is then a small difference
of large numbers. So the draws are sheared along y, ``z = S w`` with ``S = [[1, 0], [b, 1]]``, until the two axes of
``w`` are uncorrelated, by one step of Gram-Schmidt. Then ``Q`` is diagonal, ``L S`` is lower triangular as ``L`` is,
and all that is divided by is a sum of positive terms. One draw alone lies on a line, and rounding must not say other.
What is left of float32's digits depends on the ridge alone: where two draws are left, the value of an image with
intensities from 0 to 1 is off by about 1e-7 / eps.

The C and the Triton kernel call the sums by the same names: ``count`` is n, ``mean`` m, ``kept`` 1 - s, ``shear`` b,
``second`` the diagonal of Q, ``cross`` q and ``total`` the sum of all ``d_k``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lms_geometry.limits import LARGEST_SHEAR


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
        weighted = list(zip(draws, weights, strict=True))
        self.count = torch.stack(tuple(weights)).sum(0).clamp_min(1)
        self.mean = torch.zeros_like(draws[0])
        if intercept:
            self.mean = sum((z * weight for z, weight in weighted), self.mean) / self.count
        self.shrinkage = ridge / (self.count + ridge)
        # What the ridge leaves of the mean enters Q as one more draw would.
        x, y = rest = (self.shrinkage * self.count).sqrt() * self.mean
        squares, products = x.square(), x * y
        for draw, weight in weighted:
            x, y = (draw - self.mean) * weight
            squares, products = squares + x.square(), products + x * y
        self.shear = (products / torch.where(squares > 0, squares, 1.0)).clamp(-LARGEST_SHEAR, LARGEST_SHEAR)
        remaining = self._uncorrelated(rest)[1].square()
        for draw, weight in weighted:
            remaining = remaining + self._uncorrelated((draw - self.mean) * weight)[1].square()
        self.second = torch.stack((squares, remaining))
        self.cross = draws[0].new_zeros(2, 1, 1, 1, 1)
        self.total = draws[0].new_zeros(1, 1, 1, 1)

    def add(self, draw: Tensor, weight: Tensor, difference: Tensor) -> None:
        """Add a sample: its draw and weight, and the differences ``d_k`` from the centre, ``(B, C, h, w)``."""
        offset = self._uncorrelated((draw - self.mean) * weight)
        self.cross = torch.addcmul(self.cross, offset.unsqueeze(2), difference)
        self.total = torch.addcmul(self.total, weight.unsqueeze(1), difference)

    def solve(self, footprint: Tensor) -> tuple[Tensor, Tensor | None]:
        """The slopes ``(2, B, C, h, w)`` in intensity per source pixel, and ``A_1``, ``(B, C, h, w)``, or ``None``.

        The footprint ``L`` is ``(2, 2, B, h, w)``, in source pixels.
        """
        mean = self._uncorrelated(self.mean)
        cross = self.cross.addcmul((self.shrinkage * mean).unsqueeze(2), self.total)
        (l11, _), (l21, l22) = footprint
        slope, by_draw = solve_slope(self.second, cross, (l11, l21 + self.shear * l22, l22), self.ridge)
        if not self.intercept:
            return slope, None
        level = self.total.div(self.count.unsqueeze(1)) - (mean.unsqueeze(2) * by_draw).sum(0)
        return slope, level.mul(1 - self.shrinkage.unsqueeze(1))

    def _uncorrelated(self, draw: Tensor) -> Tensor:
        """The draw ``w`` that the shear takes to a draw ``z``."""
        x, y = draw
        return torch.stack(torch.broadcast_tensors(x, torch.where(self.count > 1, y - self.shear * x, 0.0)))


def solve_slope(
    second: Tensor, cross: Tensor, footprint: tuple[Tensor, Tensor, Tensor], ridge: float
) -> tuple[Tensor, Tensor]:
    """The slopes ``A_uv = (L Q L' + eps I)^-1 L q`` for a diagonal ``Q``, and ``L' A_uv``.

    Since ``adj(L Q L') L = det(L) adj(L)' adj(Q)``, nothing is subtracted but one product of draws and differences from
    another, and the determinant ``det(L)^2 det(Q) + eps tr(L Q L') + eps^2`` is a sum of positive terms. The second
    result is written out for the same reason: where ``L`` is long and thin, its rows nearly cancel.

    Args:
        second: the diagonal of ``Q``, ``(2, B, h, w)``.
        cross: ``q``, ``(2, B, C, h, w)``.
        footprint: the entries 11, 21 and 22 of ``L``, each ``(B, h, w)``, in source pixels.
        ridge: ``eps``.

    Returns:
        The slopes along x and y, ``(2, B, C, h, w)``, in intensity per source pixel, and those along the axes of the
        draws, ``(2, B, C, h, w)``, in intensity per unit of a draw.
    """
    (l11, l21, l22), (xx, yy) = footprint, second
    area, along_x, along_y = l11 * l22, l11.square() + l21.square(), l22.square()
    determinant = area.square() * (xx * yy) + ridge * (along_x * xx + along_y * yy + ridge)
    scaled, damping = area / determinant, ridge / determinant
    by_x = torch.stack((scaled * (l22 * yy) + damping * l11, damping * l21))
    by_y = torch.stack((-scaled * (l21 * xx), scaled * (l11 * xx) + damping * l22))
    both = damping * (l21 * l22)
    draw_by_x = torch.stack((scaled * (area * yy) + damping * along_x, both))
    draw_by_y = torch.stack((both, scaled * (area * xx) + damping * along_y))
    cross_x, cross_y = cross
    slope, by_draw = (
        (of_x.unsqueeze(2) * cross_x).addcmul(of_y.unsqueeze(2), cross_y)
        for of_x, of_y in ((by_x, by_y), (draw_by_x, draw_by_y))
    )
    return slope, by_draw
