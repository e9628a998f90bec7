"""Image registration: starts from the images themselves, a search through a linearized warp, a finish at full size."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lms_geometry.autocast import no_autocast
from lms_geometry.checks import check_flag
from lms_geometry.registration import search
from lms_geometry.registration.checks import (
    check_choices,
    check_images,
    check_init,
    check_mask,
    check_max_size,
    check_starts,
)
from lms_geometry.registration.motion import Motion
from lms_geometry.registration.problem import make_problem
from lms_geometry.registration.result import Registration, make_registration
from lms_geometry.registration.schedule import Annealed, Stage
from lms_geometry.registration.similarity import Loss
from lms_geometry.registration.solvers import Adam, GaussNewton
from lms_geometry.registration.starts import START_NAMES
from lms_geometry.registration.transforms import Transform

__all__ = ["Adam", "Annealed", "GaussNewton", "Registration", "Stage", "Transform", "register"]


def register(
    source: Tensor,
    target: Tensor,
    motion: Motion = "affine",
    solver: GaussNewton | Adam = GaussNewton(),
    *,
    init: Tensor | None = None,
    starts: Sequence[str] | None = None,
    loss: Loss = "squared",
    fit_gain_bias: bool = False,
    overlap_only: bool = False,
    source_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    max_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Registration:
    r"""Find the motion that warps ``source`` onto ``target``, for a whole batch at once.

    Minimises the difference between the warped source and the target. A pixel is first the mean over a square of many
    output pixels, which shrinks step by step. Then the intercept is dropped, so that the value is the exact bilinear
    one and the loss is 0 at the truth.

    :class:`GaussNewton` takes Gauss-Newton steps from several starts. Starts of every kind are compared on small images
    by the agreement of the images' gradients over their overlap, and the best is finished at full size, with steps on
    tiles that show structure. No finish is believed that agrees less than its start. :class:`Adam` is the paper's
    descent (section 6.4) from one start.

    Convention:
        - the result maps **source to target** in **pixels** with centres at integers: kornia's ``M``
        - the motion acts on the target's frame, in units of half its longer side, about its centre: a rotation angle, a
          log2 scale per axis, a shear, a translation, two perspective terms; ``"anisotropic"`` is the paper's five
        - outside its frame ``source`` is zero, unless ``overlap_only`` or ``source_mask`` leaves these pixels out
        - intensities have any unit and any offset; without ``overlap_only`` and masks, 0 stands for the outside

    Args:
        source: images to warp, shape :math:`(B, C, H, W)`.
        target: images to warp them onto, shape :math:`(B, C, h, w)`, of any size. Either batch may be 1. Either C may
            be 1, grey; then the mean of the other's channels is compared with it.
        motion: ``"translation"`` | ``"rigid"`` (rotation, translation) | ``"similarity"`` (rotation, scale,
            translation) | ``"anisotropic"`` (a scale per axis) | ``"affine"`` | ``"homography"``.
        solver: a :class:`GaussNewton` or an :class:`Adam`, which hold their own settings.
        init: where to start, source to target in pixels, shape :math:`(B, 3, 3)`, where B may be 1. If ``None``, the
            plain resize that lays the whole source on the whole target. A translation or similarity cannot undo a
            change of proportions: where those of the images differ by more than rounding, it starts from a source of
            the target's area with its proportions kept, centre on centre. A translation keeps the scale it starts from.
            A rigid motion lays pixels on pixels of the same size, centre on centre, and keeps the scale of an ``init``.
        starts: the kinds of starts, a tuple with any of ``"resize"``, the plain one; ``"turns"``, the same turned about
            the target's centre; ``"phase"``, turn, scale and shift by phase correlation; ``"features"``, matched SIFT
            features, which need OpenCV (``lms_geometry[features]``). ``None`` stands for all, or for ``init`` alone if
            that is given. What is not needed or cannot be tried is left out: see ``Registration.not_tried``. Of starts
            that agree about as well, the plainer one wins.
        loss: ``"squared"``; ``"huber"``, on which parts that are hidden in one of the images have less pull; or
            ``"structure"``, for images of two sensors, or two stains, whose brightness cannot be compared: it compares
            where edges are and which way they run, whichever of their sides is the brighter one.
        fit_gain_bias: whether a gain and a bias of each source are fitted, for images that differ in brightness and
            contrast.
        overlap_only: whether pixels that read outside the source are left out of the comparison, as between photos
            whose scene goes on beyond their edges. If not, the source is zero there, which is a cue when the target
            shows it so.
        source_mask: 1 where the source is valid and 0 where not, shape :math:`(B, 1, H, W)`, where B may be 1. A pixel
            that reads at most 0.99 of it is left out. Implies ``overlap_only``. Hidden pixels may have any values.
        target_mask: the weight of the target's pixels beside each other, from 0 to 1, shape :math:`(B, 1, h, w)`,
            where B may be 1. Half of the same weights are the same weights.
        max_size: the longest side, in pixels, of the images that are worked on. Larger ones are shrunk first. The
            matrix is that of the images as they were given. ``None``: the finish sees them at full size.
        generator: source of randomness for a solver whose sampler draws its samples; torch's global one if ``None``.
            The default draws nothing.
        progress: whether to show a progress bar; needs tqdm, which comes with ``lms_geometry[cli]``.

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
        >>> found = register(source, target, "translation")
        >>> bool((found.matrix - M).abs().max() < 0.01)
        True
    """
    if not isinstance(solver, GaussNewton | Adam):
        raise TypeError(f"solver must be a GaussNewton or an Adam, such as GaussNewton(), got {solver!r}")
    check_images(source, target)
    check_choices(motion, loss)
    check_flag("fit_gain_bias", fit_gain_bias)
    check_flag("overlap_only", overlap_only)
    check_flag("progress", progress)
    check_starts(starts, START_NAMES, init is not None, isinstance(solver, Adam))
    check_max_size(max_size)
    batch = max(source.shape[0], target.shape[0])
    if init is not None:
        check_init(init, source, batch)
    for name, mask, image in (("source_mask", source_mask, source), ("target_mask", target_mask, target)):
        if mask is not None:
            check_mask(name, mask, image, batch)
    if loss == "structure" and isinstance(solver, Adam) and callable(solver.sampler):
        raise ValueError(
            "loss='structure' compares edges, and a function as solver.sampler is given the images: use a sampler of "
            "the library, such as Annealed(), or another loss"
        )
    if torch.is_inference_mode_enabled() and (isinstance(solver, Adam) or solver.sampler == "bilinear"):
        raise RuntimeError(
            'the solver Adam and the sampler "bilinear" need gradients, which torch.inference_mode() has not: use '
            "torch.no_grad()"
        )

    with torch.no_grad(), no_autocast(source.device):
        problem = make_problem(
            source, target, init, motion, source_mask, target_mask, overlap_only, fit_gain_bias, loss
        )
        if max_size is not None:
            problem = problem.shrunk(max_size, max_size)
        steps = _count_steps(solver.steps, progress)
        if isinstance(solver, Adam):
            found = search.by_adam(problem, solver, init is not None, steps, generator)
        else:
            names = starts if starts is not None else (() if init is not None else START_NAMES)
            found = search.find(problem, solver, names, init is not None, steps, generator)
        return make_registration(source, target, problem, found)


def _count_steps(steps: int, progress: bool) -> Iterator[int]:
    if not progress:
        return iter(range(steps))
    try:
        from tqdm.auto import trange
    except ModuleNotFoundError as error:
        message = "progress=True needs tqdm: pip install 'lms_geometry[cli]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    return iter(trange(steps, desc="register", unit="step"))
