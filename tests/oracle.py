"""The method written out by hand: one pixel at a time, in float64, with nothing of the library's but its settings."""

from functools import partial

import torch
import torch.nn.functional as F


def fit_pixel(offsets, differences, ridge, intercept):
    """Equation (7) as it stands: A = (X'X + eps E)^-1 X'Y, with offsets (n, 2) and differences (n, C)."""
    design = torch.cat((offsets, torch.ones_like(offsets[:, :1])), 1) if intercept else offsets
    normal = design.T @ design + ridge * torch.eye(design.shape[1], dtype=design.dtype)
    return torch.linalg.solve(normal, design.T @ differences)


def pixels_of(points, size, align_corners):
    """Normalised points (..., 2) as source pixels."""
    size = torch.tensor(size, dtype=torch.float64)
    return (points + 1) * (size - 1) / 2 if align_corners else ((points + 1) * size - 1) / 2


def points_of(pixels, size, align_corners):
    """Source pixels (..., 2) as normalised points."""
    size = torch.tensor(size, dtype=torch.float64)
    return pixels * 2 / (size - 1) - 1 if align_corners else (2 * pixels + 1) / size - 1


def linearized(image, grid, jacobian, noise, sampling, padding_mode="zeros", align_corners=False):
    """Values (B, C, h, w), slopes (B, C, h, w, 2) in source pixels, and samples kept (B, h, w)."""
    image, grid, jacobian, noise = (t.detach().double() for t in (image, grid, jacobian, noise))
    batch, channels, height, width = image.shape
    h, w = grid.shape[1:3]
    size = (width, height)
    jacobian = jacobian.expand(batch, h, w, 2, 2)
    noise = noise.expand(batch, -1, h, w, 2)
    values = torch.zeros(batch, channels, h, w, dtype=torch.float64)
    slopes = torch.zeros(batch, channels, h, w, 2, dtype=torch.float64)
    kept = torch.zeros(batch, h, w, dtype=torch.int64)
    for b in range(batch):
        for i in range(h):
            for j in range(w):
                covariance = sampling.sigma**2 * jacobian[b, i, j] @ jacobian[b, i, j].T
                covariance += sampling.jitter**2 * torch.eye(2, dtype=torch.float64)
                offsets = noise[b, :, i, j] @ torch.linalg.cholesky(covariance).T
                centre = pixels_of(grid[b, i, j], size, align_corners)
                where = torch.cat((centre[None], centre + offsets))
                read = F.grid_sample(
                    image[b : b + 1],
                    points_of(where, size, align_corners)[None, None],
                    padding_mode=padding_mode,
                    align_corners=align_corners,
                )[0, :, 0].T
                inside = torch.ones(len(offsets), dtype=torch.bool)
                if sampling.mask_out_of_bounds:
                    inside = ((where[1:] >= 0) & (where[1:] <= torch.tensor(size) - 1)).all(1)
                fitted = fit_pixel(offsets[inside], (read[1:] - read[0])[inside], sampling.ridge, sampling.intercept)
                values[b, :, i, j] = read[0] + (fitted[2] if sampling.intercept else 0)
                slopes[b, :, i, j] = fitted[:2].T
                kept[b, i, j] = inside.sum()
    return values, slopes, kept


def value_and_slopes(sample, grid, size, align_corners=False):
    """What ``sample(grid)`` returns and its derivative by the grid, a channel at a time, in source pixels."""
    grid = grid.detach().clone().requires_grad_()
    out = sample(grid)
    slopes = [torch.autograd.grad(channel.sum(), grid, retain_graph=True)[0] for channel in out.unbind(1)]
    scale = torch.tensor([2 / (n - 1) if align_corners else 2 / n for n in size], dtype=grid.dtype)
    return out.detach(), torch.stack(slopes, 1) * scale


def extent(stretch, rounding=0.0):
    """The extent of an axis of the area from a singular value, in source pixels."""
    share = min(max(stretch - 1 - 5e-4 - rounding, 0.0), 1.0)
    return stretch * share * (2 - share)


def area_axes(jacobian, side=1.0, rounding=0.0):
    """E = U phi(S) V', by a singular value decomposition."""
    u, s, vt = torch.linalg.svd(jacobian * side)
    return u @ torch.diag(torch.tensor([extent(x, rounding) for x in s.tolist()], dtype=torch.float64)) @ vt


def axis_rule(length, count):
    """Positions and weights of the nodes along an axis so long."""
    share = min(max((length - 1.25) / 0.75, 0.0), 1.0)
    gauss, midpoint = 12**-0.5, (count - 1) / (2 * count)
    outer = (1 - share) * gauss + share * midpoint
    weight = 0.5 * (1 - share * (count - 2) / count)
    inner = [((i + 0.5) / count - 0.5, share / count) for i in range(1, count - 1)]
    return [(-outer, weight), *inner, (outer, weight)]


def area(image, grid, jacobian, count=3, side=1.0, padding_mode="zeros", align_corners=False, rounding=0.0):
    """Values (B, C, h, w), slopes (B, C, h, w, 2) in source pixels, and slopes by the Jacobian (B, C, h, w, 2, 2)."""
    image, grid, jacobian = (t.detach().double() for t in (image, grid, jacobian))
    (batch, channels, height, width), (h, w) = image.shape, grid.shape[1:3]
    units = torch.tensor([(n - 1) / 2 if align_corners else n / 2 for n in (width, height)], dtype=torch.float64)
    jacobian = jacobian.expand(batch, h, w, 2, 2)
    values = torch.zeros(batch, channels, h, w, dtype=torch.float64)
    slopes, by_jacobian = (torch.zeros(batch, channels, h, w, *shape, dtype=torch.float64) for shape in ((2,), (2, 2)))

    def read(b, at):
        """What is read at a source pixel, (C), and its derivative by that pixel, (C, 2)."""
        at = points_of(at, (width, height), align_corners).view(1, 1, 1, 2).requires_grad_()
        out = F.grid_sample(image[b : b + 1], at, padding_mode=padding_mode, align_corners=align_corners).view(-1)
        by_at = [torch.autograd.grad(channel, at, retain_graph=True)[0].view(2) for channel in out]
        return out.detach(), torch.stack(by_at) / units

    for b in range(batch):
        for i in range(h):
            for j in range(w):
                centre = pixels_of(grid[b, i, j], (width, height), align_corners)
                pixel = area_pixel(partial(read, b), centre, jacobian[b, i, j], count, side, rounding)
                values[b, :, i, j], slopes[b, :, i, j], by_jacobian[b, :, i, j] = pixel
    return values, slopes, by_jacobian


def area_pixel(read, centre, jacobian, count, side, rounding):
    """The value of one pixel, its slope and its slope by the Jacobian, from ``read``, which reads a source pixel."""
    axes = area_axes(jacobian, side, rounding)
    rules = [axis_rule(axes[:, axis].norm().item(), count) for axis in (0, 1)]

    def at(x, y):
        return centre + axes @ torch.tensor([x, y], dtype=torch.float64)

    value = sum(wx * wy * read(at(x, y))[0] for x, wx in rules[0] for y, wy in rules[1])
    means, moments, texels = {}, {}, 0
    for axis in (0, 1):
        along = rules[1 - axis]
        scale = 1 / (12 * sum(weight * p**2 for p, weight in along))
        for end in (-0.5, 0.5):
            reads = [read(at(end, p) if axis == 0 else at(p, end)) for p, _ in along]
            means[axis, end] = sum(k * r for (_, k), (r, _) in zip(along, reads, strict=True))
            moments[axis, end] = scale * sum(k * p * r for (p, k), (r, _) in zip(along, reads, strict=True))
            texels = texels + sum(k * t for (_, k), (_, t) in zip(along, reads, strict=True)) / 4
    difference, turned = (torch.stack([m[axis, 0.5] - m[axis, -0.5] for axis in (0, 1)]) for m in (means, moments))
    grown = torch.stack([(means[axis, 0.5] + means[axis, -0.5]) / 2 - value for axis in (0, 1)])
    edges = torch.stack((torch.stack((grown[0], turned[0])), torch.stack((turned[1], grown[1]))))

    u, s, vt = torch.linalg.svd(jacobian * side)
    extents = torch.tensor([extent(x, rounding) for x in s.tolist()], dtype=torch.float64)
    narrow = extents**2 / 0.25
    inverse = u @ torch.diag(torch.where(narrow < 1, extents * (2 - narrow) / 0.25, 1 / extents)) @ vt
    bilinear = u @ torch.diag((1 - narrow).clamp_min(0) ** 2) @ u.T
    by_axes = torch.einsum("ij,jkc->cik", inverse, edges)
    by_jacobian = torch.zeros(*by_axes.shape, dtype=torch.float64)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):  # E follows J: its derivative by finite differences.
        change = torch.zeros(2, 2, dtype=torch.float64)
        change[row, column] = 1e-6
        rate = (area_axes(jacobian + change, side, rounding) - area_axes(jacobian - change, side, rounding)) / 2e-6
        by_jacobian[:, row, column] = (by_axes * rate).sum((1, 2))
    return value, (inverse @ difference).T + texels @ bilinear.T, by_jacobian
