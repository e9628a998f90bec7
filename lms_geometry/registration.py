"""Align images through a linearized warp: by Gauss-Newton steps from several starts, or by Adam as in section 6.4."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from kornia.geometry.linalg import transform_points
from kornia.geometry.transform import homography_warp
from torch import Tensor

from lms_geometry.agreement import Loss, agreement, residual
from lms_geometry.annealing import ANNEALED_SHARE, annealed
from lms_geometry.autocast import no_autocast
from lms_geometry.checks import check_choice, check_same_batch, check_same_device, check_same_dtype, check_tensor
from lms_geometry.config import WIDEST, LinearizedSampling
from lms_geometry.gauss_newton import Descent, descend
from lms_geometry.homography import homography_warp_linearized
from lms_geometry.motions import PARAMETERS, Motion, motion_matrix
from lms_geometry.problem import WHOLLY_SEEN, Problem, make_problem, normalisation

Warp = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
Optimizer = Literal["gauss-newton", "adam"]

_DEFAULT_ANNEAL: dict[Optimizer, tuple[float, float]] = {"gauss-newton": (4.0, 0.0625), "adam": (8.0, 0.125)}
_DEFAULT_STEPS: dict[Optimizer, int] = {"gauss-newton": 60, "adam": 200}
_DEFAULT_STARTS = 5
_MOST_STARTS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """What :func:`register` found, and the way there.

    Args:
        matrix: source to target in pixels with centres at integers, shape :math:`(B, 3, 3)`, such that
            ``warp_perspective(source, matrix, target.shape[-2:])`` looks like the target.
        score: how well the images agree at the end, from 0 to 1, shape :math:`(B)`: the correlation of the moved source
            with the target where both are seen, with less weight on pixels that differ much.
        converged: whether the steps became too small to matter before they ran out, shape :math:`(B)`. A wrong answer
            may have converged too. Adam has no such test: all ``False``.
        loss: the loss before each step, shape :math:`(steps, B)`; in the last quarter of Gauss-Newton's steps, which
            are taken back where the loss rises, the lowest up to and including the step.
        displacement: how far the target's corners moved over the source in each step, mean of the four, in source
            pixels, shape :math:`(steps, B)`.
        path: the matrix before each step and after the last, shape :math:`(steps + 1, B, 3, 3)`.
    """

    matrix: Tensor
    score: Tensor
    converged: Tensor
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
    steps: int | None = None,
    learning_rate: float = 0.02,
    generator: torch.Generator | None = None,
    progress: bool = False,
    optimizer: Optimizer | None = None,
    starts: int | None = None,
    loss: Loss = "squared",
    photometric: bool = False,
    overlap: bool = False,
    source_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
) -> Registration:
    r"""Find the motion that warps ``source`` onto ``target``, for a whole batch at once.

    Minimises the difference between the warped source and the target. The samples of linearized sampling start spread
    over many output pixels and are drawn in; then the intercept is dropped, so that the value is the exact bilinear
    one and the loss is 0 at the truth.

    ``"gauss-newton"`` uses that the fitted slopes are the Jacobian of every pixel. It starts from several turns of the
    image and on a small target, drops the worst starts on the way, and finishes by Levenberg and Marquardt's steps,
    each image until it has converged. ``"adam"`` is the paper's descent (section 6.4) from one start.

    Convention:
        - the result maps **source to target** in **pixels** with centres at integers: kornia's ``M``
        - the motion acts on the target's frame, in units of half its longer side, about its centre: a rotation angle, a
          log2 scale per axis, a shear, a translation, two perspective terms; ``"anisotropic"`` is the paper's five
        - what lies outside ``source`` is zero, unless ``overlap`` or ``source_mask`` leaves it out
        - values are of any unit and may have any offset; without ``overlap`` and masks, 0 is what lies outside

    Args:
        source: images to move, shape :math:`(B, C, H, W)`.
        target: images to move them onto, shape :math:`(B, C, h, w)`, of any size. Either batch may be 1. Either C may
            be 1, grey; then the mean of the other's channels is compared with it.
        motion: ``"translation"`` | ``"similarity"`` (rotation, scale, translation) | ``"anisotropic"`` (a scale per
            axis) | ``"affine"`` | ``"homography"``.
        init: where to start, source to target in pixels, shape :math:`(B, 3, 3)`, where B may be 1. If ``None``, the
            plain resize that lays the whole source on the whole target; but where their proportions differ by more
            than rounding, a translation or similarity starts from a source of the target's area with its proportions
            kept, centre on centre. A translation keeps the scale it starts from.
        sampling: settings of the sampler. If ``None``, :meth:`LinearizedSampling.alignment`, annealed. To compare with:
            ``"bilinear"`` for plain ``grid_sample``, or, with Adam, a function called like
            :func:`kornia.geometry.homography_warp`, with the source, normalised target-to-source homographies and the
            target's size.
        anneal: ``sigma`` at the first step and after three quarters of the steps, in output pixels. If ``None``,
            (4, 0.0625), with Adam (8, 0.125), for the default sampling; a sampling that is given stays as it is.
        steps: most steps; 60, with Adam 200, if ``None``.
        learning_rate: Adam's.
        generator: source of randomness; torch's global one if ``None``.
        progress: whether to show a progress bar; needs tqdm, which comes with ``lms_geometry[cli]``.
        optimizer: ``"gauss-newton"`` | ``"adam"``. If ``None``, the former with the default sampling, the latter with a
            sampling that is given, as in the paper's comparison.
        starts: from how many turns about the target's centre Gauss-Newton starts: the first of 0, 45, -45, 90, -90,
            135, -135 and 180 degrees. If ``None``, 5, but 1 with an ``init``. Translations have one.
        loss: ``"squared"``, or ``"huber"``, on which what is hidden in one image has less pull.
        photometric: whether a gain and a bias of each source are fitted, for images that differ in brightness and
            contrast.
        overlap: whether what lies outside the source is left out of the comparison, as between photos that go on beyond
            their edges. If not, it is zero, which is a cue when the target shows it so.
        source_mask: 1 where the source counts and 0 where not, shape :math:`(B, 1, H, W)`, where B may be 1. A pixel
            that reads less than 0.99 of it does not count. Implies ``overlap``. What is hidden may have any values.
        target_mask: the same of the target, shape :math:`(B, 1, h, w)`; what is between 0 and 1 is a weight.

    Returns:
        The :class:`Registration`.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device, batch or range, or ``init`` is singular.
        RuntimeError: if Adam or bilinear sampling is asked for in inference mode, which has no gradients.

    Example:
        >>> from kornia.geometry import warp_perspective
        >>> y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
        >>> source = (-((x - 22) ** 2 + 2 * (y - 18) ** 2) / 60).exp()[None, None]
        >>> M = torch.tensor([[[0.5, 0.0, 2.0], [0.0, 0.5, -1.0], [0.0, 0.0, 1.0]]])
        >>> target = warp_perspective(source, M, (20, 25))
        >>> found = register(source, target, "translation", generator=torch.Generator().manual_seed(0))
        >>> bool((found.matrix - M).abs().max() < 0.01)
        True
    """
    default_optimizer: Optimizer = "gauss-newton" if sampling is None else "adam"
    optimizer = default_optimizer if optimizer is None else optimizer
    _check(source, target, motion, init, sampling, anneal, steps, learning_rate)
    _check_method(optimizer, sampling, starts, loss, photometric, overlap, source, target, source_mask, target_mask)
    steps = _DEFAULT_STEPS[optimizer] if steps is None else steps
    if motion == "translation":
        starts = 1
    elif starts is None:
        starts = 1 if optimizer == "adam" or init is not None else _DEFAULT_STARTS
    if sampling is None:
        sampling, anneal = LinearizedSampling.alignment(), anneal or _DEFAULT_ANNEAL[optimizer]

    with torch.no_grad(), no_autocast(source.device):
        given = make_problem(source, target, init, motion, source_mask, target_mask, overlap, photometric, loss)
        problem = given.normalised()
        ticks = iter(_steps(steps, progress))
        if optimizer == "adam" or callable(sampling):
            images = given if callable(sampling) else problem  # a function may read images of its own
            found = _adam(images, sampling, anneal, steps, ticks, learning_rate, generator)
        else:
            found = descend(problem, sampling, anneal, starts, ticks, steps, generator)
        return _registration(problem, found)


def _adam(
    problem: Problem,
    sampling: LinearizedSampling | Warp | Literal["bilinear"],
    anneal: tuple[float, float] | None,
    steps: int,
    ticks: Iterable[int],
    learning_rate: float,
    generator: torch.Generator | None,
) -> Descent:
    """The paper's descent (section 6.4), through the gradient of the warp."""
    source, target, dsize = problem.source, problem.target, problem.dsize
    with torch.enable_grad():
        parameters = source.new_zeros(len(source), len(PARAMETERS[problem.motion]), requires_grad=True)
        optimizer = torch.optim.Adam([parameters], lr=learning_rate)
        losses, path = [], []
        for step in ticks:
            matrix = problem.start @ motion_matrix(problem.motion, parameters, dsize)
            if isinstance(sampling, LinearizedSampling):
                settings = sampling if anneal is None else annealed(sampling, anneal, step / steps, ANNEALED_SHARE)
                moved = homography_warp_linearized(source, matrix, dsize, sampling=settings, generator=generator)
            else:
                moved = (
                    homography_warp(source, matrix, dsize)
                    if sampling == "bilinear"
                    else sampling(source, matrix, dsize)
                )
            seen = problem.target_mask
            if problem.source_mask is not None:
                seen = seen * (homography_warp(problem.source_mask, matrix.detach(), dsize) > WHOLLY_SEEN)
            moved, wanted = moved[:, None], problem.target_mask[:, None]
            compared = residual(moved, target[:, None], seen[:, None], wanted, problem.photometric, problem.loss)
            loss = compared.loss[:, 0]
            optimizer.zero_grad()
            loss.sum().backward()
            path.append(parameters.detach().clone())
            losses.append(loss.detach())
            optimizer.step()
    path.append(parameters.detach())
    return Descent(torch.stack(path), torch.stack(losses), torch.zeros_like(losses[0], dtype=torch.bool))


def _registration(problem: Problem, found: Descent) -> Registration:
    """Parameters as matrices in pixels, and what they came to."""
    source, dsize = problem.source, problem.dsize
    count, batch = found.path.shape[:2]
    motions = motion_matrix(problem.motion, found.path.flatten(0, 1), dsize).view(count, batch, 3, 3)
    normalised = problem.start @ motions
    from_target = normalisation(source).inverse() @ normalised @ normalisation(problem.target)
    to_target = torch.linalg.inv_ex(from_target).inverse  # an error would end the batch for one image that diverged
    to_target = to_target / to_target[..., 2:, 2:]
    corners = _corners(dsize, like=source).expand(count, batch, 4, 2)
    displacement = transform_points(from_target[..., None, :, :], corners).diff(dim=0).norm(dim=-1).mean(-1)

    source_mask = torch.ones_like(source[:, :1]) if problem.source_mask is None else problem.source_mask
    seen = problem.target_mask * homography_warp(source_mask, normalised[-1], dsize)
    moved = homography_warp(source, normalised[-1], dsize)
    score = agreement(moved, problem.target, seen)
    return Registration(to_target[-1], score.nan_to_num(0.0), found.converged, found.loss, displacement, to_target)


def _corners(size: tuple[int, int], like: Tensor) -> Tensor:
    height, width = size
    corners = [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]
    return torch.tensor(corners, dtype=like.dtype, device=like.device)


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
    steps: int | None,
    learning_rate: float,
) -> None:
    check_tensor("source", source, ("B", "C", "H", "W"))
    check_tensor("target", target, ("B", "C", "h", "w"))
    if source.shape[1] != target.shape[1] and 1 not in (source.shape[1], target.shape[1]):
        raise ValueError(f"target must have source's {source.shape[1]} channels or either 1, got {target.shape[1]}")
    check_same_device("target", target, "source", source)
    check_same_dtype("target", target, "source", source)
    check_same_batch("target", target, "source", source)
    for name, image in (("source", source), ("target", target)):
        if image.numel() == 0:
            raise ValueError(f"{name} must not be empty, got {tuple(image.shape)}")
    check_choice("motion", motion, get_args(Motion))
    if isinstance(sampling, type) or getattr(sampling, "__self__", None) is LinearizedSampling:
        raise TypeError(f"sampling must be a LinearizedSampling, got {sampling!r}, which still has to be called")
    if not isinstance(sampling, LinearizedSampling) and not callable(sampling) and sampling not in (None, "bilinear"):
        raise TypeError(f'sampling must be a LinearizedSampling, "bilinear", a function or None, got {sampling!r}')
    if anneal is not None and not isinstance(sampling, LinearizedSampling | None):
        raise ValueError("anneal must be None for a sampling that has no sigma to anneal")
    if anneal is not None and not (
        isinstance(anneal, Sequence) and len(anneal) == 2 and all(_is_positive(sigma) for sigma in anneal)
    ):
        raise ValueError(f"anneal must be two positive standard deviations (first, last), got {anneal!r}")
    if anneal is not None and max(anneal) > WIDEST:
        raise ValueError(f"anneal must be at most {WIDEST} output pixels, got {anneal!r}")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
    if not _is_positive(learning_rate):
        raise ValueError(f"learning_rate must be finite and above 0, got {learning_rate!r}")
    if init is not None:
        check_tensor("init", init, ("B", 3, 3))
        check_same_device("init", init, "source", source)
        if init.shape[0] not in (1, max(source.shape[0], target.shape[0])):
            raise ValueError(
                f"init must have batch size 1 or the images' {max(source.shape[0], target.shape[0])}, "
                f"got {init.shape[0]}"
            )
        working = torch.promote_types(source.dtype, torch.float32)
        inverse, singular = torch.linalg.inv_ex(init.detach().to(working))
        if singular.any() or not (init.to(working).isfinite() & inverse.isfinite()).all():
            raise ValueError(f"init must be finite and invertible in {working}")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _check_method(
    optimizer: Optimizer,
    sampling: LinearizedSampling | Warp | str | None,
    starts: int | None,
    loss: Loss,
    photometric: bool,
    overlap: bool,
    source: Tensor,
    target: Tensor,
    source_mask: Tensor | None,
    target_mask: Tensor | None,
) -> None:
    check_choice("optimizer", optimizer, get_args(Optimizer))
    check_choice("loss", loss, get_args(Loss))
    for name, flag in (("photometric", photometric), ("overlap", overlap)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")
    if optimizer == "gauss-newton" and callable(sampling):
        raise ValueError('optimizer must be "adam" for a sampling that is a function, got "gauss-newton"')
    if torch.is_inference_mode_enabled() and (optimizer == "adam" or sampling == "bilinear"):
        raise RuntimeError(
            'the optimizer "adam" and the sampling "bilinear" need gradients, which torch.inference_mode() has not: '
            "use torch.no_grad()"
        )
    if starts is not None and (not isinstance(starts, int) or not 1 <= starts <= _MOST_STARTS):
        raise ValueError(f"starts must be an int from 1 to {_MOST_STARTS}, got {starts!r}")
    if starts is not None and starts > 1 and optimizer == "adam":
        raise ValueError(f'starts must be 1 with the optimizer "adam", got {starts}')
    batch = max(source.shape[0], target.shape[0])
    for name, mask, image in (("source_mask", source_mask, source), ("target_mask", target_mask, target)):
        if mask is None:
            continue
        check_tensor(name, mask, ("B", 1, *image.shape[-2:]))
        check_same_device(name, mask, "source", source)
        if mask.shape[0] not in (1, batch):
            raise ValueError(f"{name} must have batch size 1 or the images' {batch}, got {mask.shape[0]}")
        if not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError(f"{name} must lie between 0 and 1")
        least = WHOLLY_SEEN if name == "source_mask" else 0
        if not (mask > least).flatten(1).any(1).all():
            raise ValueError(f"{name} must be above {least} somewhere in every image")
