"""The method written out by hand: one pixel at a time, in float64, with nothing of the library's but its settings."""

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
