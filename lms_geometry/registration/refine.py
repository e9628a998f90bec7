"""The finish at full size: few steps on tiles of the target that show structure.

The slope is that of the target, taken once (inverse compositional: Baker and Matthews 2004), so that a step reads the
source at the tiles' pixels and solves a small linear system. Time and memory grow with the number of pixels only where
images are shrunk. Every tile is compared up to a mean and a contrast of its own, so that light that differs from place
to place costs nothing; tiles that are hidden in one of the images lose their weight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.registration.motion import PARAMETERS, motion_derivative, motion_matrix
from lms_geometry.registration.problem import FULLY_VALID, Problem

# The longer side of the first level in pixels. Each level is at most this many times larger than the one before.
_FIRST, _FACTOR = 256, 3.0
# The largest and the smallest side of a tile in pixels, how many lie along a small image, and the most there are.
_TILE, _SMALLEST_TILE, _TILES_ALONG, _MOST_TILES = 32, 12, 8, 100
# The pixels around a tile that its blur and its slopes see.
_MARGIN = 4
# The most steps at a level. It ends early when the corners move by less than this many of its pixels.
_STEPS, _STILL = 16, 0.002
# The residual, in medians of all residuals' size, at which a pixel has a quarter of its weight.
_OUTLIER = 4.0
_DAMPING = 1e-4
# A finish that loses more than this share of the overlap is not believed.
_LOST = 0.15


def refine(problem: Problem, matrix: Tensor, sizes: Sequence[int]) -> tuple[Tensor, bool]:
    """Refine one pair's motion at rising sizes.

    Args:
        problem: one pair, at full size.
        matrix: where to start, target to source in normalised coordinates, ``(3, 3)``.
        sizes: the longer sides of the target, in pixels, at which to refine.

    Returns:
        The refined matrix, ``(3, 3)``, which matches the tiles at least as well as where it started, and whether its
        steps at the last size became too small to matter.
    """
    grey = [image.mean(1, keepdim=True) for image in (problem.source, problem.target)]
    still = False
    for size in sizes:
        matrix, still = _refine_at(problem, grey[0], grey[1], matrix, size)
    return matrix, still


def level_sizes(full: int) -> list[int]:
    """The longer sides of the levels, from the first to ``full``."""
    steps = math.ceil(math.log(max(full / (1.2 * _FIRST), 1)) / math.log(_FACTOR))
    return [round(full * (min(_FIRST, full) / full) ** (1 - i / steps)) for i in range(steps)] + [full]


@dataclass(frozen=True)
class _Level:
    """One pair at one size, and the tiles of its target.

    Args:
        source: the source, as large as the target shows it, ``(1, 1, H, W)``.
        source_mask: where it is valid, ``(1, 1, H, W)``, or ``None``.
        points: the tiles' pixels in the target's normalised coordinates, ``(n, side, side, 2)``, with a margin.
        target: the fields of the target's tiles, ``(n, K, tile, tile)``.
        slope: their slopes by normalised coordinates, ``(n, K, tile, tile, 2)``.
        weight: the weight of the target's pixels, ``(n, 1, tile, tile)``.
        pixel: the size of a target pixel in normalised coordinates.
    """

    source: Tensor
    source_mask: Tensor | None
    points: Tensor
    target: Tensor
    slope: Tensor
    weight: Tensor
    pixel: Tensor


def _refine_at(problem: Problem, source: Tensor, target: Tensor, matrix: Tensor, size: int) -> tuple[Tensor, bool]:
    level = _make_level(problem, source, target, matrix, size)
    if level is None:
        return matrix, False
    still = False
    start, motion, dsize = matrix, problem.motion, problem.dsize
    parameters = matrix.new_zeros(1, len(PARAMETERS[motion]))
    best, best_quality, first_overlap = parameters, -torch.inf, 0.0
    corners = matrix.new_tensor([[-1, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]]).T
    for _ in range(_STEPS):
        motion_now = motion_matrix(motion, parameters, dsize)
        warped, valid = _read(level, problem, start @ motion_now[0])
        overlap = float(valid.mean())
        first_overlap = first_overlap or overlap
        if overlap < (1 - _LOST) * first_overlap or overlap == 0:
            break
        warped, tile_weight, quality = _normalised(level, warped, valid)
        if quality > best_quality:
            best, best_quality = parameters, quality
        difference = level.target * tile_weight.sign() - warped
        size_of = difference.square().sum(1, keepdim=True).sqrt()
        seen = valid > 0
        if not (seen.any() and tile_weight.any()):
            break
        scale = _OUTLIER * size_of[seen].median().clamp_min(1e-6)
        weight = valid * tile_weight.abs() / (1 + (size_of / scale).square()).square()
        generators = torch.linalg.solve(motion_now[0], motion_derivative(motion, parameters, dsize)[0])
        move = _step(level, generators, difference, weight)
        parameters = parameters + move
        moved = motion_matrix(motion, parameters, dsize)[0]
        there = [m @ corners for m in (moved, motion_now[0])]
        if not all(bool(((p[2] > 0.05) | (p[2] < -0.05)).all()) for p in there) or not moved.isfinite().all():
            break
        shift = (there[0][:2] / there[0][2] - there[1][:2] / there[1][2]) / level.pixel[:, None]
        if shift.norm(dim=0).mean() < _STILL:
            warped, valid = _read(level, problem, start @ moved)
            quality = _normalised(level, warped, valid)[2]
            if quality >= best_quality - 1e-5 and float(valid.mean()) >= (1 - _LOST) * first_overlap:
                best = parameters
            still = True
            break
    return start @ motion_matrix(motion, best, dsize)[0], still


def _make_level(problem: Problem, source: Tensor, target: Tensor, matrix: Tensor, size: int) -> _Level | None:
    """The pair at a longer side of the target of ``size`` pixels, or fewer if the source is coarser than that."""
    height, width = target.shape[-2:]
    # How many source pixels a target pixel at the level covers, at the centre of the target's corners in the source.
    per_target = (
        _source_pixels(matrix, (source.shape[-2], source.shape[-1]), (height, width)) * max(height, width) / size
    )
    if per_target < 0.8:
        size = max(64, round(size * max(per_target, 0.1) / 0.8))
        per_target = 0.8
    target = _resized(target, size / max(height, width))
    mask = _resized(problem.target_mask, size / max(height, width))
    if per_target > 1.25:
        source = _resized(source, 1 / per_target)
    h, w = target.shape[-2:]
    if min(h, w) < _TILE // 2 or min(source.shape[-2:]) < 8:
        return None
    tile = min(max(round(max(h, w) / _TILES_ALONG), _SMALLEST_TILE), _TILE, h, w)
    corner = _choose_tiles(target, mask, tile, matrix)
    if len(corner) == 0:
        return None
    steps = torch.arange(-_MARGIN, tile + _MARGIN, device=target.device)
    rows, columns = corner[:, 0, None] + steps, corner[:, 1, None] + steps
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]
    patch = target[0, 0][rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None]]
    weight = inside * mask[0, 0][rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None]]
    pixel = target.new_tensor([2 / w, 2 / h])
    y, x = ((index.to(target) + 0.5) * step - 1 for index, step in ((rows, pixel[1]), (columns, pixel[0])))
    points = torch.stack((x[:, None].expand(-1, len(steps), -1), y[:, :, None].expand(-1, -1, len(steps))), -1)
    fields = _fields(patch[:, None], problem.loss == "structure")
    slope = torch.stack(
        (
            (fields[..., 1:-1, 2:] - fields[..., 1:-1, :-2]) / (2 * pixel[0]),
            (fields[..., 2:, 1:-1] - fields[..., :-2, 1:-1]) / (2 * pixel[1]),
        ),
        -1,
    )
    weight = _core(weight[:, None], tile)
    fields = fields[..., 1:-1, 1:-1]
    start = _MARGIN - 3
    fields = fields[..., start : start + tile, start : start + tile]
    slope = slope[..., start : start + tile, start : start + tile, :]
    mean = _tile_mean(fields, weight)
    deviation = _tile_mean((fields - mean).square().sum(1, keepdim=True), weight).sqrt()
    useful = deviation.flatten() > 0.05 * deviation.amax().clamp_min(torch.finfo(deviation.dtype).tiny)
    if not useful.any():
        return None
    deviation = deviation[useful]
    return _Level(
        source,
        problem.source_mask,
        points[useful],
        (fields[useful] - mean[useful]) / deviation,
        slope[useful] / deviation[..., None],
        weight[useful],
        pixel,
    )


def _read(level: _Level, problem: Problem, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The fields ``(n, K, tile, tile)`` of the source at the tiles, and the weight of their pixels."""
    n, side = level.points.shape[:2]
    tile = side - 2 * _MARGIN
    points = level.points.flatten(0, 2) @ matrix[:, :2].T + matrix[:, 2]
    behind = points[:, 2] * points[:, 2].median().sign() < 1e-3
    grid = torch.where(behind[:, None], 2.0, points[:, :2] / points[:, 2:]).clamp(-4, 4)
    seen = F.grid_sample(level.source, grid.view(1, n * side, side, 2), padding_mode="border", align_corners=False)
    fields = _fields(seen.view(n, 1, side, side), problem.loss == "structure")
    fields = fields[..., _MARGIN - 2 : _MARGIN - 2 + tile, _MARGIN - 2 : _MARGIN - 2 + tile]
    valid = (grid.abs() <= 1).all(-1).view(n, 1, side, side).to(fields)
    if level.source_mask is not None:
        mask = F.grid_sample(level.source_mask, grid.view(1, n * side, side, 2), align_corners=False)
        valid = valid * (mask.view(n, 1, side, side) > FULLY_VALID)
    return fields, _core(valid, tile) * level.weight


def _normalised(level: _Level, warped: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, float]:
    """The tiles with the mean and the contrast of their target, the sign and weight of each, and how well all match."""
    mean = _tile_mean(warped, valid)
    centred = warped - mean
    deviation = _tile_mean(centred.square().sum(1, keepdim=True), valid).sqrt()
    wanted_mean = _tile_mean(level.target, valid)
    wanted = level.target - wanted_mean
    wanted_deviation = _tile_mean(wanted.square().sum(1, keepdim=True), valid).sqrt()
    tiny = 1e-3 * deviation.amax() + torch.finfo(deviation.dtype).tiny
    correlation = _tile_mean((centred * wanted).sum(1, keepdim=True), valid) / (
        (deviation + tiny) * (wanted_deviation + 1e-3)
    )
    share = valid.mean((1, 2, 3), keepdim=True)
    sign = 1.0 if float((correlation * share).sum()) >= 0 else -1.0
    agreeing = (sign * correlation).clamp_min(0)
    quality = float((agreeing * share).sum() / share.sum().clamp_min(1e-6))
    # The tile at the target's contrast and mean; a gain below its correlation would pull towards blur.
    matched = sign * centred / (deviation + tiny) * wanted_deviation + wanted_mean
    return matched, agreeing * (share > 0.25 * level.weight.amax((1, 2, 3), keepdim=True)), quality


def _step(level: _Level, generators: Tensor, difference: Tensor, weight: Tensor) -> Tensor:
    """The damped step ``(1, P)``: target less warped source is the target's slope times the points' motion."""
    cut = slice(_MARGIN, -_MARGIN)
    points = level.points[:, cut, cut].flatten(0, 2)
    homogeneous = torch.cat((points, torch.ones_like(points[:, :1])), 1)
    moved = homogeneous @ generators.mT  # (P, N, 3)
    motion = moved[..., :2] - points * moved[..., 2:]
    slope = level.slope.transpose(0, 1).flatten(1, 3)  # (K, N, 2)
    weights = weight[:, 0].flatten()
    columns = torch.einsum("knx,pnx->kpn", slope, motion)
    values = difference.transpose(0, 1).flatten(1)
    matrix = torch.stack([(column * weights) @ column.T for column in columns]).sum(0)
    gradient = torch.stack([(c * weights) @ value for c, value in zip(columns, values, strict=True)]).sum(0)
    matrix, gradient = matrix.double(), gradient.double()
    diagonal = matrix.diagonal()
    damped = matrix + torch.diag(diagonal * _DAMPING + 1e-9 * diagonal.amax() + 1e-30)
    step = torch.linalg.solve_ex(damped, gradient)[0].nan_to_num(0.0, 0.0, 0.0)
    return (step * (0.2 / step.norm().clamp_min(0.2)))[None].to(difference)


def _fields(patches: Tensor, structure: bool) -> Tensor:
    """What is compared of grey patches ``(n, 1, side, side)``: they lose two pixels on each side."""
    kernel = patches.new_tensor([0.25, 0.5, 0.25])
    smooth = F.conv2d(F.conv2d(patches, kernel.view(1, 1, 1, 3)), kernel.view(1, 1, 3, 1))
    if not structure:
        return smooth[..., 1:-1, 1:-1]
    x = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2
    y = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2
    size = (x.square() + y.square()).sqrt()
    size = size + 0.2 * size.mean((2, 3), keepdim=True) + torch.finfo(size.dtype).tiny
    fields = torch.cat(((x.square() - y.square()) / size, 2 * x * y / size, (x.square() + y.square()) / size), 1)
    return fields / size.sqrt()


def _choose_tiles(target: Tensor, mask: Tensor, tile: int, matrix: Tensor) -> Tensor:
    """The upper left pixels ``(n, 2)`` of tiles that show structure, spread over what the source covers."""
    h, w = target.shape[-2:]
    rows = torch.linspace(0, h - tile, max(1, round(h / tile)), device=target.device).round().long()
    columns = torch.linspace(0, w - tile, max(1, round(w / tile)), device=target.device).round().long()
    corner = torch.cartesian_prod(rows, columns)
    centre = (corner + tile / 2).to(target).flip(1) / target.new_tensor([w, h]) * 2 - 1
    there = torch.cat((centre, torch.ones_like(centre[:, :1])), 1) @ matrix.T
    covered = ((there[:, :2] / there[:, 2:]).abs() < 1.05).all(1) & (there[:, 2] * there[:, 2].median().sign() > 0)
    x = F.pad((target[..., 1:] - target[..., :-1]).abs(), (0, 1))
    y = F.pad((target[..., 1:, :] - target[..., :-1, :]).abs(), (0, 0, 0, 1))
    energy = (x.minimum(x.mean() * 8) + y.minimum(y.mean() * 8)) * mask
    total = F.pad(energy[0, 0].double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    r, c = corner.unbind(1)
    texture = total[r + tile, c + tile] - total[r, c + tile] - total[r + tile, c] + total[r, c]
    corner, texture = corner[covered], texture[covered]
    if len(corner) <= _MOST_TILES:
        return corner
    # The best tiles of each cell of a coarse chessboard, so that they are spread.
    cells = 7
    cell = (corner[:, 0] * cells // h) * cells + corner[:, 1] * cells // w
    order = texture.argsort(descending=True)
    rank = torch.zeros_like(cell)
    seen: dict[int, int] = {}
    for index in order.tolist():
        key = int(cell[index])
        rank[index] = seen[key] = seen.get(key, -1) + 1
    chosen = (rank.double() - texture / (texture.amax() + 1e-30)).argsort()[:_MOST_TILES]
    return corner[chosen]


def _source_pixels(matrix: Tensor, size: tuple[int, int], dsize: tuple[int, int]) -> float:
    """The source pixels that a pixel of the target spans, in the middle of what the source covers."""
    y, x = torch.meshgrid(*(torch.linspace(-0.95, 0.95, 15, dtype=matrix.dtype) for _ in range(2)), indexing="ij")
    points = torch.stack((x.flatten(), y.flatten(), torch.ones(225, dtype=matrix.dtype))).to(matrix)
    there = matrix @ points
    place = there[:2] / there[2]
    determinant = torch.linalg.det(matrix) / there[2] ** 3
    covered = (place.abs() < 1).all(0)
    area = determinant[covered if bool(covered.any()) else slice(None)].abs().median()
    return float((area * size[0] * size[1] / (dsize[0] * dsize[1])).sqrt().nan_to_num(1.0, 1.0, 1.0))


def _resized(image: Tensor, scale: float) -> Tensor:
    if scale > 0.95:
        return image
    return F.interpolate(image, [max(1, round(n * scale)) for n in image.shape[-2:]], mode="bilinear", antialias=True)


def _core(weight: Tensor, tile: int) -> Tensor:
    """1 where the neighbourhood that the fields see is valid, for the tile without its margin, times the weight."""
    least = -F.max_pool2d(-weight, 2 * 2 + 1, 1)
    start = _MARGIN - 2
    return least[..., start : start + tile, start : start + tile]


def _tile_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-6)
