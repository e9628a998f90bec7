"""Align images by gradient descent through a linearized warp (section 6.4)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from kornia.geometry.conversions import normal_transform_pixel
from kornia.geometry.linalg import transform_points
from kornia.geometry.transform import homography_warp
from torch import Tensor

from lms_geometry.checks import check_choice, check_same_batch, check_same_device, check_same_dtype, check_tensor
from lms_geometry.config import LinearizedSampling
from lms_geometry.warp import homography_warp_linearized

Warp = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
Motion = Literal["translation", "similarity", "anisotropic", "affine", "homography"]

_PARAMETERS: dict[Motion, tuple[str, ...]] = {
    "translation": ("x", "y"),
    "similarity": ("x", "y", "angle", "scale"),
    "anisotropic": ("x", "y", "angle", "scale_x", "scale_y"),
    "affine": ("x", "y", "angle", "scale_x", "scale_y", "shear"),
    "homography": ("x", "y", "angle", "scale_x", "scale_y", "shear", "tilt_x", "tilt_y"),
}
# Small steps of these move the corners furthest; taken as fast as the others they lead away before the rest is right.
_RATES = {"shear": 0.25, "tilt_x": 0.1, "tilt_y": 0.1}

_DEFAULT_SAMPLING = LinearizedSampling(pattern="whitened", mask_out_of_bounds=False)
_DEFAULT_ANNEAL = (8.0, 0.125)
_ANNEALED_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Registration:
    """What :func:`register` found, and the way there.

    Args:
        matrix: source to target in pixels with centres at integers, shape :math:`(B, 3, 3)`, such that
            ``warp_perspective(source, matrix, target.shape[-2:])`` looks like the target.
        loss: mean squared difference before each step, shape :math:`(steps, B)`.
        displacement: how far the target's corners moved over the source in each step, mean of the four, in source
            pixels, shape :math:`(steps, B)`.
        path: the matrix before each step and after the last, shape :math:`(steps + 1, B, 3, 3)`.
    """

    matrix: Tensor
    loss: Tensor
    displacement: Tensor
    path: Tensor


def register(
    source: Tensor,
    target: Tensor,
    motion: Motion = "affine",
    *,
    init: Tensor | None = None,
    sampling: LinearizedSampling | Warp | Literal["bilinear"] | None = None,
    anneal: tuple[float, float] | None = None,
    steps: int = 200,
    learning_rate: float = 0.02,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Registration:
    r"""Find the motion that warps ``source`` onto ``target``, for a whole batch at once.

    Minimises the mean squared difference by Adam through :func:`homography_warp_linearized`, as in section 6.4 of the
    paper. Unlike the paper it starts with samples spread over many output pixels and draws them in: ``sigma`` falls
    geometrically over the first three quarters of the steps; then the row of ones is dropped, so that the value is the
    exact bilinear one and the loss is 0 at the truth.

    Convention:
        - the result maps **source to target** in **pixels** with centres at integers: kornia's ``M``
        - the motion acts on the target's frame, in units of half its longer side, about its centre: a rotation angle, a
          log2 scale an axis, a shear, a translation, two perspective terms; ``"anisotropic"`` is the paper's five
        - what lies outside ``source`` is zero

    Args:
        source: images to move, shape :math:`(B, C, H, W)`.
        target: images to move them onto, shape :math:`(B, C, h, w)`, of any size. Either batch may be 1.
        motion: ``"translation"`` | ``"similarity"`` (rotation, scale, translation) | ``"anisotropic"`` (a scale an
            axis) | ``"affine"`` | ``"homography"``.
        init: where to start, source to target in pixels, shape :math:`(B, 3, 3)`, where B may be 1. If ``None``, the
            plain resize that lays the whole source on the whole target.
        sampling: settings of the sampler. If ``None``, whitened samples without a mask, annealed. To compare with:
            ``"bilinear"`` for plain ``grid_sample``, or a function called like :func:`kornia.geometry.homography_warp`,
            with the source, normalised target-to-source homographies and the target's size.
        anneal: ``sigma`` at the first step and after three quarters of the steps, in output pixels. If ``None``,
            (8, 0.125) with the default sampling; a sampling that is given stays as it is.
        steps: number of steps of Adam.
        learning_rate: Adam's.
        generator: source of randomness; torch's global one if ``None``.
        progress: whether to show a progress bar; needs tqdm, which comes with ``lms_geometry[cli]``.

    Returns:
        The :class:`Registration`.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device, batch or range, or ``init`` is singular.

    Example:
        >>> from kornia.geometry import warp_perspective
        >>> y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
        >>> source = (-((x - 22) ** 2 + 2 * (y - 18) ** 2) / 60).exp()[None, None]
        >>> M = torch.tensor([[[0.5, 0.0, 2.0], [0.0, 0.5, -1.0], [0.0, 0.0, 1.0]]])
        >>> target = warp_perspective(source, M, (20, 25))
        >>> found = register(source, target, "translation", generator=torch.Generator().manual_seed(0))
        >>> bool((found.matrix - M).abs().max() < 0.3)
        True
    """
    _check(source, target, motion, init, sampling, anneal, steps, learning_rate)
    working = torch.promote_types(source.dtype, torch.float32)
    batch = source.shape[0] if target.shape[0] == 1 else target.shape[0]
    source, target = (image.detach().to(working).expand(batch, -1, -1, -1) for image in (source, target))
    size, dsize = (source.shape[-2], source.shape[-1]), (target.shape[-2], target.shape[-1])
    if sampling is None:
        sampling, anneal = _DEFAULT_SAMPLING, anneal or _DEFAULT_ANNEAL

    with torch.enable_grad(), torch.autocast(source.device.type, enabled=False):
        target_frame, source_frame = (
            normal_transform_pixel(height, width, device=source.device, dtype=working, align_corners=False)
            for height, width in (dsize, size)
        )
        start = torch.eye(3, dtype=working, device=source.device).expand(batch, 3, 3)
        if init is not None:
            start = source_frame @ init.detach().to(working).inverse() @ target_frame.inverse()
        parameters = source.new_zeros(batch, len(_PARAMETERS[motion]), requires_grad=True)
        optimizer = torch.optim.Adam([parameters], lr=learning_rate)

        losses, path = [], []
        for step in _steps(steps, progress):
            matrix = start @ _motion_matrix(motion, parameters, dsize)
            if isinstance(sampling, LinearizedSampling):
                settings = sampling if anneal is None else _annealed(sampling, anneal, step / steps)
                moved = homography_warp_linearized(source, matrix, dsize, sampling=settings, generator=generator)
            else:
                moved = (
                    homography_warp(source, matrix, dsize)
                    if sampling == "bilinear"
                    else sampling(source, matrix, dsize)
                )
            loss = (moved - target).square().mean((1, 2, 3))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
            path.append(matrix.detach())
        path.append((start @ _motion_matrix(motion, parameters, dsize)).detach())

        from_target = source_frame.inverse() @ torch.stack(path) @ target_frame
        to_target = from_target.inverse()
        to_target = to_target / to_target[..., 2:, 2:]
        corners = transform_points(
            from_target[..., None, :, :], _corners(dsize, like=source).expand(steps + 1, batch, 4, 2)
        )
        displacement = corners.diff(dim=0).norm(dim=-1).mean(-1)
    return Registration(to_target[-1], torch.stack(losses), displacement, to_target)


def _motion_matrix(motion: Motion, parameters: Tensor, dsize: tuple[int, int]) -> Tensor:
    """Rotation, scales, shear, translation and perspective of the target's frame, ``(B, 3, 3)``, normalised."""
    names = _PARAMETERS[motion]
    zero, one = torch.zeros_like(parameters[:, 0]), torch.ones_like(parameters[:, 0])
    given = {name: value * _RATES.get(name, 1.0) for name, value in zip(names, parameters.unbind(1), strict=True)}
    x, y, angle, shear, tilt_x, tilt_y = (given.get(n, zero) for n in ("x", "y", "angle", "shear", "tilt_x", "tilt_y"))
    scale_x, scale_y = (given.get(n, given.get("scale", zero)).exp2() for n in ("scale_x", "scale_y"))
    cos, sin = angle.cos(), angle.sin()
    rotation = _rows((cos, -sin, x), (sin, cos, y), (zero, zero, one))
    stretch = _rows((scale_x, scale_x * shear, zero), (zero, scale_y, zero), (zero, zero, one))
    perspective = _rows((one, zero, zero), (zero, one, zero), (tilt_x, tilt_y, one))
    to_frame = torch.tensor([dsize[1], dsize[0], max(dsize)], dtype=zero.dtype, device=zero.device) / max(dsize)
    return (rotation @ stretch @ perspective) * to_frame / to_frame[:, None]


def _rows(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _corners(size: tuple[int, int], like: Tensor) -> Tensor:
    height, width = size
    corners = [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]
    return torch.tensor(corners, dtype=like.dtype, device=like.device)


def _annealed(sampling: LinearizedSampling, anneal: tuple[float, float], share: float) -> LinearizedSampling:
    """The settings after a share of the steps."""
    first, last = anneal
    sigma = first * (last / first) ** min(share / _ANNEALED_SHARE, 1.0)
    return replace(sampling, sigma=sigma, intercept=sampling.intercept and share < _ANNEALED_SHARE)


def _steps(steps: int, progress: bool) -> Iterable[int]:
    if not progress:
        return range(steps)
    from tqdm.auto import trange

    return trange(steps, desc="register", unit="step")


def _check(
    source: Tensor,
    target: Tensor,
    motion: Motion,
    init: Tensor | None,
    sampling: LinearizedSampling | Warp | str | None,
    anneal: tuple[float, float] | None,
    steps: int,
    learning_rate: float,
) -> None:
    check_tensor("source", source, ("B", "C", "H", "W"))
    check_tensor("target", target, ("B", source.shape[1], "h", "w"))
    check_same_device("target", target, "source", source)
    check_same_dtype("target", target, "source", source)
    check_same_batch("target", target, "source", source)
    for name, image in (("source", source), ("target", target)):
        if image.numel() == 0:
            raise ValueError(f"{name} must not be empty, got {tuple(image.shape)}")
        if not image.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    check_choice("motion", motion, get_args(Motion))
    if not isinstance(sampling, LinearizedSampling) and not callable(sampling) and sampling not in (None, "bilinear"):
        raise TypeError(f'sampling must be a LinearizedSampling, "bilinear", a function or None, got {sampling!r}')
    if anneal is not None and not isinstance(sampling, LinearizedSampling | None):
        raise ValueError("anneal must be None for a sampling that has no sigma to anneal")
    if anneal is not None and (len(anneal) != 2 or not all(math.isfinite(s) and s > 0 for s in anneal)):
        raise ValueError(f"anneal must be two positive standard deviations (first, last), got {anneal!r}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be finite and above 0, got {learning_rate}")
    if init is not None:
        check_tensor("init", init, ("B", 3, 3))
        check_same_device("init", init, "source", source)
        if init.shape[0] not in (1, max(source.shape[0], target.shape[0])):
            raise ValueError(
                f"init must have batch size 1 or the images' {max(source.shape[0], target.shape[0])}, "
                f"got {init.shape[0]}"
            )
        if not init.isfinite().all() or (torch.linalg.det(init.double()) == 0).any():
            raise ValueError("init must be finite and invertible")
