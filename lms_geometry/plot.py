"""Pictures of your own warp: where its samples fall, and which way its gradient leads.

Import it by name, ``from lms_geometry import plot``; it needs matplotlib, which ``lms_geometry[plot]`` brings. Every
function returns a matplotlib figure, which a notebook shows and whose ``savefig`` writes it. ``Registration.plot()``
draws what :func:`lms_geometry.register` found.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lms_geometry.area import excess_area, nodes_along
from lms_geometry.backends.eager_area import jacobian_of
from lms_geometry.checks import check_sampling, check_size, check_tensor
from lms_geometry.config import LinearizedSampling
from lms_geometry.coordinates import pixels_per_unit, to_grid, to_pixels, units_per_pixel
from lms_geometry.figures import BLUE, GREY, ORANGE, SKY, VERMILION, new_figure, show
from lms_geometry.footprint import footprint
from lms_geometry.noise import draw_noise
from lms_geometry.sampling import grid_sample_linearized, grid_sample_value_and_slope
from lms_geometry.warp import pixel_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_gradient_field", "plot_samples"]

# The most output pixels whose outlines are drawn along an axis.
_OUTLINES = 24
# How far around an output pixel the close-up reaches, in half sides of the pixel and at least in source pixels.
_ROOM, _LEAST_ROOM = 2.2, 3.0
_UNIT_SQUARE = [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]


class _Samples(NamedTuple):
    """Where one output pixel is read, in source pixels, ``(n, 2)`` each."""

    value: Tensor
    slope: Tensor


def plot_samples(
    image: Tensor,
    warp: Tensor,
    dsize: tuple[int, int] | None = None,
    *,
    pixel: tuple[int, int] | None = None,
    sampling: LinearizedSampling | None = None,
    align_corners: bool = False,
    generator: torch.Generator | None = None,
) -> "Figure":
    """Draw where a warp reads an image, and the plane by which one output pixel stands for what it read.

    Four panels show the areas of the output pixels in the source; a close-up of one of them, with the points at which
    its value and its slope are read and the four texels of a bilinear read; the intensities around it as a surface,
    with the tangent plane of the sampler; and the same cut along x, with bilinear sampling's tangent beside. The
    intensity is the mean of the channels.

    Args:
        image: the source, shape :math:`(1, C, H, W)`.
        warp: a matrix from source to destination in pixels, shape :math:`(1, 2, 3)` or :math:`(1, 3, 3)`, as
            :func:`lms_geometry.warp_affine_linearized` takes it; or a grid, shape :math:`(1, h, w, 2)`, as
            :func:`lms_geometry.grid_sample_linearized` takes it.
        dsize: size of the output, ``(height, width)``, for a matrix; ``None`` for a grid.
        pixel: row and column of the output pixel that is looked at; the middle one if ``None``.
        sampling: settings of the sampler; :class:`lms_geometry.LinearizedSampling` as it comes if ``None``.
        align_corners: meaning of -1 and 1 in a grid.
        generator: source of randomness for settings that draw samples.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument has the wrong shape, or ``pixel`` lies outside the output.
        ModuleNotFoundError: if matplotlib is missing, which comes with ``lms_geometry[plot]``.

    Example:
        >>> image = torch.rand(1, 3, 64, 96)
        >>> M = torch.tensor([[[0.2, 0.05, 0.0], [-0.05, 0.2, 4.0]]])
        >>> figure = plot_samples(image, M, (16, 20))
        >>> [axes.get_title() for axes in figure.axes][:2]
        ['output pixels in the source', 'one of them, row 8, column 10']
    """
    sampling = check_sampling(sampling)
    grid, jacobian = _grid_and_jacobian("image", image, warp, dsize, align_corners)
    height, width = grid.shape[1:3]
    row, column = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"pixel must be (row, column) within the output's {height} x {width}, got {pixel}")
    size = image.shape[-1], image.shape[-2]
    points = torch.stack([to_pixels(x, n, align_corners) for x, n in zip(grid[0].unbind(-1), size, strict=True)], -1)
    centre, J = points[row, column], jacobian[0, row, column]
    noise = None
    if sampling.is_drawn:
        noise = draw_noise(sampling, (1, 1), generator=generator, device=grid.device, dtype=grid.dtype)
    samples = _samples_of(centre, J, sampling, noise)

    grey = _drawable(image).mean(1, keepdim=True)
    here = grid[:, row : row + 1, column : column + 1]
    value, slope = grid_sample_value_and_slope(
        grey, here, align_corners=align_corners, sampling=sampling, jacobian=J.view(1, 1, 1, 2, 2), noise=noise
    )
    units = grid.new_tensor([pixels_per_unit(n, align_corners) for n in size])
    plane = value.flatten(), slope.flatten() / units
    bilinear = _bilinear_plane(grey, here, align_corners, units)

    figure = new_figure(7.2, 6.8)
    whole, close = figure.add_subplot(2, 2, 1), figure.add_subplot(2, 2, 2)
    _draw_outlines(whole, image[0], points, jacobian[0], (row, column))
    room = max(_LEAST_ROOM, _ROOM / 2 * J.abs().sum(1).max().item(), 1.15 * _reach(samples, centre))
    _draw_reads(close, image[0], centre, J, samples, room)
    close.set_title(f"one of them, row {row}, column {column}", fontsize=10)
    _draw_surface(figure, grey, centre, plane, samples, room)
    _draw_cut(figure.add_subplot(2, 2, 4), grey, centre, plane, bilinear, room)
    return figure


def plot_gradient_field(
    source: Tensor,
    warp: Tensor,
    dsize: tuple[int, int] | None = None,
    *,
    target: Tensor | None = None,
    samplings: Mapping[str, LinearizedSampling | Literal["bilinear"]] | None = None,
    reach: float = 0.25,
    points: int = 14,
    align_corners: bool = False,
    generator: torch.Generator | None = None,
) -> "Figure":
    """Draw the descent field of a warp: from every wrong place, which way does the gradient lead?

    The warp is moved over the source to a grid of places around where it is. At each of them an arrow shows the
    direction of steepest descent of the mean squared difference between the view there and the target. Blue arrows
    lead back to the warp, vermilion ones away from it. The title gives the share of arrows within 45 degrees of the
    way back, which is 25 % for arrows at random. This is Fig. 8 of the paper, for your own image and warp.

    Args:
        source: the image that is sampled, shape :math:`(1, C, H, W)`.
        warp: the right warp, a matrix or a grid, as :func:`plot_samples` takes it.
        dsize: size of the output, ``(height, width)``, for a matrix; ``None`` for a grid.
        target: the view that is sought, shape :math:`(1, C, h, w)`. If ``None``, the mean of the source over every
            output pixel of the right warp, as a camera would see it.
        samplings: the samplers to compare, by the names that the panels get: ``"bilinear"``, or settings. If ``None``,
            bilinear sampling and :class:`lms_geometry.LinearizedSampling` as it comes.
        reach: the largest move along an axis, as a share of the source's longer side.
        points: the number of places along an axis.
        align_corners: meaning of -1 and 1 in a grid.
        generator: source of randomness for settings that draw samples.

    Returns:
        A matplotlib figure with a panel for each sampler.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument has the wrong shape or is out of range.
        ModuleNotFoundError: if matplotlib is missing, which comes with ``lms_geometry[plot]``.

    Example:
        >>> source = torch.rand(1, 1, 48, 48)
        >>> M = torch.tensor([[[0.25, 0.0, 0.0], [0.0, 0.25, 0.0]]])
        >>> figure = plot_gradient_field(source, M, (12, 12), points=4)
        >>> figure.axes[0].get_title().splitlines()[0]
        'bilinear'
    """
    grid, jacobian = _grid_and_jacobian("source", source, warp, dsize, align_corners)
    source = _drawable(source)
    if target is None:
        target = grid_sample_linearized(source, grid, align_corners=align_corners, jacobian=jacobian)
    check_tensor("target", target, (1, source.shape[1], *grid.shape[1:3]))
    target = _drawable(target)
    if not 0 < reach <= 1:
        raise ValueError(f"reach must be above 0 and at most 1, got {reach}")
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be an int of at least 2, got {points!r}")
    if samplings is None:
        samplings = {"bilinear": "bilinear", "lms_geometry": LinearizedSampling()}

    farthest = reach * max(source.shape[-2:])
    axis = torch.linspace(-farthest, farthest, points, device=grid.device, dtype=grid.dtype)
    moves = torch.cartesian_prod(axis, axis)
    moves = moves[moves.norm(dim=1) > 0]  # from the right place no way leads back
    columns = min(len(samplings), 2)
    rows = -(-len(samplings) // columns)
    figure = new_figure(3.4 * columns, 3.6 * rows + 1.3)
    figure.set_layout_engine("compressed")  # the panels are square
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(samplings) :]:
        panel.set_axis_off()
    for panel, (name, sampling) in zip(panels.flat, samplings.items(), strict=False):
        sampling = sampling if isinstance(sampling, str) and sampling == "bilinear" else check_sampling(sampling)
        field = torch.cat(
            [_descent(source, grid, jacobian, target, m, sampling, align_corners, generator) for m in moves.split(32)]
        )
        angle = F.cosine_similarity(field, -moves).clamp(-1, 1).arccos().rad2deg()
        _draw_field(panel, moves, field, angle, farthest)
        panel.set_title(f"{name}\n{(angle < 45).float().mean():.0%} lead back", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("offset from the right place, source pixels", fontsize=9)
    bar = figure.colorbar(
        panels.flat[0].collections[0], ax=panels, orientation="horizontal", aspect=40, ticks=[0, 45, 90, 135, 180]
    )
    bar.set_label("angle to the way back, degrees", fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _drawable(tensor: Tensor) -> Tensor:
    """A tensor of the caller's, of any floating type on any device, as matplotlib can draw what comes of it."""
    return tensor.detach().cpu().float()


def _grid_and_jacobian(
    name: str, image: Tensor, warp: Tensor, dsize: tuple[int, int] | None, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The grid ``(1, h, w, 2)`` and its Jacobian ``(1, h, w, 2, 2)``, in source pixels per output pixel."""
    check_tensor(name, image, (1, "C", "H", "W"))
    size = image.shape[-2], image.shape[-1]
    if getattr(warp, "ndim", 0) == 4:
        check_tensor("warp", warp, (1, "h", "w", 2))
        grid = _drawable(warp)
        return grid, jacobian_of(grid, (size[1], size[0]), align_corners)
    check_tensor("warp", warp, (1, 3 if getattr(warp, "shape", (0,))[1:2] == (3,) else 2, 3))
    if dsize is None:
        raise ValueError("dsize must be the output's (height, width) for a matrix, got None")
    grid, jacobian = pixel_grid(_drawable(warp), check_size("dsize", dsize), size, align_corners)
    return grid, jacobian.expand(*grid.shape[:3], 2, 2)


def _samples_of(centre: Tensor, J: Tensor, sampling: LinearizedSampling, noise: Tensor | None) -> _Samples:
    """Where an output pixel with the source point ``centre`` ``(2,)`` and the Jacobian ``J`` ``(2, 2)`` is read."""
    jacobian = J.view(2, 2, 1, 1, 1)
    if noise is not None:
        L = footprint(jacobian, sampling.sigma, sampling.jitter).view(2, 2)
        drawn = torch.cat((centre[None], centre + noise[:, 0, 0] @ L.T))
        return _Samples(drawn, drawn)
    averaging = sampling.averaging
    area = excess_area(jacobian, averaging.side, 0.0)
    if not area.extent.any():
        return _Samples(centre[None], centre[None])
    E = area.axes.view(2, 2)

    def along(axis: int, count: int) -> Tensor:
        return torch.cat([position.flatten() for position, _ in nodes_along(area.axes[:, axis], count)])

    inner = torch.cartesian_prod(along(0, averaging.nodes), along(1, averaging.nodes))
    ends = centre.new_tensor([-0.5, 0.5])
    edges = torch.cat(
        (
            torch.cartesian_prod(ends, along(1, averaging.edge_nodes)),
            torch.cartesian_prod(along(0, averaging.edge_nodes), ends),
        )
    )
    value = centre + inner @ E.T
    return _Samples(value, centre + edges @ E.T if sampling.slope == "edges" else value)


def _reach(samples: _Samples, centre: Tensor) -> float:
    return (torch.cat(samples) - centre).abs().max().item()


def _bilinear_plane(grey: Tensor, here: Tensor, align_corners: bool, units: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of a bilinear read, the slope per source pixel."""
    here = here.clone().requires_grad_()
    with torch.enable_grad():
        value = F.grid_sample(grey, here, align_corners=align_corners)
        (slope,) = torch.autograd.grad(value.sum(), here)
    return value.detach().flatten(), slope.flatten() / units


def _read(grey: Tensor, pixels: Tensor) -> Tensor:
    """Bilinear reads at source pixels ``(n, 2)``, with the border continued: ``(n,)``."""
    height, width = grey.shape[-2:]
    grid = torch.stack((to_grid(pixels[:, 0], width, False), to_grid(pixels[:, 1], height, False)), -1)
    return F.grid_sample(grey, grid[None, None], padding_mode="border", align_corners=False).flatten()


def _descent(
    source: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    target: Tensor,
    moves: Tensor,
    sampling: LinearizedSampling | Literal["bilinear"],
    align_corners: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """The direction of steepest descent, in source pixels, for each of the moves ``(n, 2)``."""
    moves = moves.clone().requires_grad_()
    units = grid.new_tensor([units_per_pixel(n, align_corners) for n in (source.shape[-1], source.shape[-2])])
    with torch.enable_grad():
        moved = grid + (moves * units)[:, None, None]
        if sampling == "bilinear":
            view = F.grid_sample(source.expand(len(moves), -1, -1, -1), moved, align_corners=align_corners)
        else:
            drawing = generator if sampling.is_drawn else None
            view = grid_sample_linearized(
                source, moved, align_corners=align_corners, sampling=sampling, jacobian=jacobian, generator=drawing
            )
        (gradient,) = torch.autograd.grad((view - target).square().mean((1, 2, 3)).sum(), moves)
    return -gradient


def _draw_outlines(axes: "Axes", image: Tensor, points: Tensor, jacobian: Tensor, pixel: tuple[int, int]) -> None:
    """The areas of the output pixels, at most some along an axis, on the image; one of them is marked."""
    from matplotlib.collections import PolyCollection

    show(axes, image, "output pixels in the source")
    corners = points[..., None, :] + torch.einsum("hwij,nj->hwni", jacobian, jacobian.new_tensor(_UNIT_SQUARE))
    step = [-(-n // _OUTLINES) for n in points.shape[:2]]
    shown = rearrange(corners[pixel[0] % step[0] :: step[0], pixel[1] % step[1] :: step[1]], "h w n xy -> (h w) n xy")
    axes.add_collection(PolyCollection(list(shown.numpy()), facecolor="none", edgecolor=SKY, linewidth=0.7))
    axes.add_collection(PolyCollection([corners[pixel].numpy()], facecolor="none", edgecolor=ORANGE, linewidth=2))
    axes.autoscale_view()
    axes.spines[:].set_visible(False)


def _draw_reads(axes: "Axes", image: Tensor, centre: Tensor, J: Tensor, samples: _Samples, room: float) -> None:
    from matplotlib.patches import Polygon, Rectangle

    show(axes, image, "")
    left, top = (centre.floor() - 0.5).tolist()
    axes.add_patch(Rectangle((left, top), 2, 2, fill=False, color=SKY, lw=2, label="texels of a bilinear read"))
    square = centre + J.new_tensor(_UNIT_SQUARE) @ J.T
    axes.add_patch(Polygon(square.numpy(), fill=False, color=ORANGE, lw=2, label="the output pixel"))
    dots: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.8}
    axes.plot(*samples.value.T.numpy(), marker="o", color=BLUE, markersize=6, label="reads for the value", **dots)
    if samples.slope is not samples.value:
        axes.plot(*samples.slope.T.numpy(), marker="D", color=VERMILION, markersize=5, label="and its slope", **dots)
    x, y = centre.tolist()
    axes.set(xlim=(x - room, x + room), ylim=(y + room, y - room))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=8, frameon=False)


def _draw_surface(
    figure: "Figure", grey: Tensor, centre: Tensor, plane: tuple[Tensor, Tensor], samples: _Samples, room: float
) -> None:
    """The intensities around a pixel, the reads for its value, and the sampler's tangent plane."""
    axes = figure.add_subplot(2, 2, 3, projection="3d", computed_zorder=False)
    span = torch.linspace(-room, room, 61, device=centre.device, dtype=centre.dtype)
    x, y = torch.meshgrid(span, span, indexing="xy")
    surface = _read(grey, centre + torch.stack((x, y), -1).view(-1, 2)).view_as(x)
    look: dict[str, Any] = {"rstride": 1, "cstride": 1, "linewidth": 0}
    axes.plot_surface(x.numpy(), y.numpy(), surface.numpy(), cmap="gray", alpha=0.6, **look)
    value, slope = plane
    height = value + slope[0] * x + slope[1] * y
    axes.plot_surface(x.numpy(), y.numpy(), height.numpy(), color=BLUE, alpha=0.5, zorder=2, **look)
    reads = _read(grey, samples.value)
    axes.plot(
        *(samples.value - centre).T.numpy(), reads.numpy(), "o", color=BLUE, markeredgecolor="white", ms=5, zorder=3
    )
    axes.set(xticks=[], yticks=[], zticks=[])
    axes.set_title("intensities and plane", fontsize=10)
    axes.set_zlim(*_limits(torch.cat((surface.flatten(), reads))))
    axes.view_init(28, -70)
    for pane in (axes.xaxis, axes.yaxis, axes.zaxis):
        pane.set_pane_color((0, 0, 0, 0))


def _draw_cut(
    axes: "Axes",
    grey: Tensor,
    centre: Tensor,
    plane: tuple[Tensor, Tensor],
    bilinear: tuple[Tensor, Tensor],
    room: float,
) -> None:
    """Intensity along x through a pixel, with the tangents of both samplers."""
    span = torch.linspace(-room, room, 241, device=centre.device, dtype=centre.dtype)
    intensity = _read(grey, centre + torch.stack((span, torch.zeros_like(span)), -1))
    axes.plot(span.numpy(), intensity.numpy(), color=GREY, label="image")
    lines = {"bilinear": (bilinear, VERMILION, "--"), "this sampler": (plane, BLUE, "-")}
    for name, ((value, slope), colour, style) in lines.items():
        line = (value + slope[0] * span).numpy()
        axes.plot(span.numpy(), line, color=colour, linestyle=style, label=f"{name}, {slope[0]:+.3f}")
    axes.set_ylim(*_limits(torch.cat((intensity, plane[0], bilinear[0]))))
    axes.set_xlabel("source pixels along x", fontsize=9)
    axes.set_ylabel("intensity", fontsize=9)
    axes.set_title("cut along x, slopes per source pixel", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _limits(values: Tensor) -> tuple[float, float]:
    low, high = values.min().item(), values.max().item()
    margin = max(0.1 * (high - low), 1e-3)
    return low - margin, high + margin


def _draw_field(axes: "Axes", moves: Tensor, field: Tensor, angle: Tensor, farthest: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("angle", [BLUE, "#9a9a9a", VERMILION])
    arrows = F.normalize(field, dim=1)
    look: dict[str, Any] = {"angles": "xy", "pivot": "mid", "scale": 17, "width": 0.011}
    axes.quiver(*moves.T.numpy(), *arrows.T.numpy(), angle.numpy(), cmap=colours, clim=(0, 180), **look)
    axes.plot(0, 0, "o", color=ORANGE, markersize=7)
    room = 1.12 * farthest
    axes.set(aspect="equal", xlim=(-room, room), ylim=(room, -room))
    axes.tick_params(labelsize=8)
