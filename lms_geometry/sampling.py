"""The linearized sampler, the one operation of the library, and how it is differentiated (equation 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_current_level, maybe_get_level
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

from lms_geometry.autocast import is_autocast
from lms_geometry.backends.eager import usable_points
from lms_geometry.backends.operator import linearized_sample
from lms_geometry.checks import (
    MODES,
    PADDING_MODES,
    check_choice,
    check_noise,
    check_same_batch,
    check_same_device,
    check_same_dtype,
    check_sampling,
    check_tensor,
)
from lms_geometry.config import LinearizedSampling
from lms_geometry.noise import draw_independent
from lms_geometry.reading import read


def grid_sample_linearized(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
    *,
    sampling: LinearizedSampling | None = None,
    jacobian: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sample an image at a grid of points, with the linearized gradient for the points.

    Stands for :func:`torch.nn.functional.grid_sample`. Around every point :math:`T(x_i)` it reads a few random samples,
    fits a plane to what they read, and returns the plane:

    .. math::
        I_0 + A_1 + A_{uv}^\top \left( T(x) - T(x_i) \right)

    (equation 2), where only :math:`T(x)` carries gradient. So the value is :math:`I_0`, what ``grid_sample`` reads,
    plus the intercept :math:`A_1` of the fit; the gradient for the grid is the slope :math:`A_{uv}`; the gradient for
    the image is that of :math:`I_0`. The slope is by design not the derivative of the value.

    Convention:
        - ``input`` is :math:`(B, C, H, W)`, ``grid`` is :math:`(B, h, w, 2)` in normalised coordinates, x first, where
          -1 and 1 are the centres (``align_corners=True``) or the outer edges (``False``) of the outermost texels
        - ``align_corners=None`` means ``False``
        - ``sampling.sigma`` is in output pixels, ``sampling.jitter`` and the slope are in source pixels
        - a NaN or infinite point, or one more than 100,000 half widths away, counts as outside the image: its value is
          the padding's, its gradient 0
        - an axis of the image that is one texel long has no slope

    Args:
        input: the image, shape :math:`(B, C, H, W)`. Half precision is computed in float32.
        grid: where to sample, shape :math:`(B, h, w, 2)`, in the dtype of ``input`` or, beside half precision, in
            float32. Either batch may be 1 and is then shared.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: see above.
        sampling: settings of the method; the paper's if ``None``.
        jacobian: derivative of the source point with respect to the output pixel, in source pixels per output pixel,
            row x first: shape :math:`(B, h, w, 2, 2)`, where B, h and w may be 1. It shapes the samples only and gets
            no gradient.
            Finite differences of the grid if ``None``: for points that are not neighbours, as in a list
            :math:`(B, N, 1, 2)`, they mean nothing, so give the Jacobian, for example the identity. Along an output
            axis of one pixel they are 0: with ``jitter=0``, as in :meth:`LinearizedSampling.training`, a single pixel
            has no slope, and a single row or column none across itself.
        noise: draws of :func:`draw_noise` for this output size, shape :math:`(K - 1, h, w, 2)`, shared over the batch,
            or :math:`(B, K - 1, h, w, 2)`. Drawn here if ``None``.
        generator: source of randomness when ``noise`` is ``None``; torch's global one if ``None``.

    Returns:
        The sampled image, shape :math:`(B, C, h, w)`, in ``input``'s dtype, or under autocast in that of
        ``grid_sample``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices.

    Example:
        >>> image = torch.rand(2, 3, 20, 30)
        >>> grid = F.affine_grid(torch.eye(2, 3).repeat(2, 1, 1), (2, 3, 5, 6), align_corners=False)
        >>> grid_sample_linearized(image, grid.requires_grad_()).shape
        torch.Size([2, 3, 5, 6])
    """
    sampling = LinearizedSampling() if sampling is None else sampling
    _check(input, grid, mode, padding_mode, sampling, jacobian, noise)
    align_corners = bool(align_corners)
    dtype = _result_dtype(input, grid)
    working = torch.promote_types(dtype, torch.float32)
    batch = input.shape[0] if grid.shape[0] == 1 else grid.shape[0]
    input, grid = input.to(dtype).expand(batch, -1, -1, -1), grid.to(working).expand(batch, -1, -1, -1)

    # While it is traced with gradients on, a graph cannot tell what will be asked of it.
    open_graph = torch.compiler.is_compiling() and torch.is_grad_enabled()
    if not sampling.intercept and not (open_graph or carries_gradient(grid)):
        return _read(input, usable_points(grid.detach()), mode, padding_mode, align_corners).to(dtype)
    whiten = noise is None and sampling.pattern == "whitened"  # by the backend, which is quicker at it
    if noise is None:
        size = grid.shape[1], grid.shape[2]
        noise = draw_independent(sampling.num_samples, size, generator, input.device, working)
    jacobian = None if jacobian is None else jacobian.detach().to(working)
    rest = jacobian, noise.detach().to(working), whiten, sampling, mode, padding_mode, align_corners
    if not _is_transformed(input, grid):
        return linearized_sample(input, grid, *rest)[0].to(dtype)
    points = usable_points(grid)
    value, slope = linearized_sample(input.detach(), grid.detach(), *rest)
    centre = _read(input, points.detach(), mode, padding_mode, align_corners)
    shift = (points - points.detach()).unsqueeze(1)
    return (value + (centre - centre.detach()) + (slope * shift).sum(-1)).to(dtype)


def _read(input: Tensor, points: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """``F.grid_sample`` in the points' dtype, with forward mode where that may be asked for."""
    input = input.to(points.dtype)
    plain = torch.compiler.is_compiling() or not _is_transformed(input, points)
    return (F.grid_sample if plain else read)(input, points, mode, padding_mode, align_corners)


def carries_gradient(tensor: Tensor) -> bool:
    """Whether a derivative for a tensor may be asked for, in reverse or forward mode, also through ``torch.func``."""
    if torch.compiler.is_compiling():
        transformed = torch._C._are_functorch_transforms_active()
        return transformed or (torch.is_grad_enabled() and tensor.requires_grad)
    if torch.is_grad_enabled() and tensor.requires_grad:
        return True
    if not is_batchedtensor(tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    if maybe_get_level(tensor) == maybe_current_level():
        tensor = get_unwrapped(tensor)
    with temporarily_pop_interpreter_stack():  # what the transform around this one made of the tensor
        return carries_gradient(tensor)


def _is_transformed(input: Tensor, grid: Tensor) -> bool:
    """Whether more than the operator's own reverse mode may be asked for: forward mode, torch.func or a compiler."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(t).tangent is not None for t in (input, grid))


def _result_dtype(input: Tensor, grid: Tensor) -> torch.dtype:
    """The dtype of ``F.grid_sample``, which autocast runs in the wider of the two and, on a CPU, in float32."""
    if not is_autocast(input.device):
        return input.dtype
    dtype = torch.promote_types(input.dtype, grid.dtype)
    return torch.promote_types(dtype, torch.float32) if input.device.type == "cpu" else dtype


def _check(
    input: Tensor,
    grid: Tensor,
    mode: str,
    padding_mode: str,
    sampling: LinearizedSampling,
    jacobian: Tensor | None,
    noise: Tensor | None,
) -> None:
    check_sampling(sampling)
    check_tensor("input", input, ("B", "C", "H", "W"))
    check_tensor("grid", grid, ("B", "h", "w", 2))
    check_same_device("grid", grid, "input", input)
    if grid.dtype != torch.float32 or input.dtype not in (torch.float16, torch.bfloat16):
        check_same_dtype("grid", grid, "input", input)
    check_same_batch("grid", grid, "input", input)
    check_choice("mode", mode, MODES)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    if min(input.shape[1:]) == 0:
        raise ValueError(f"input must have at least one channel and one texel, got {tuple(input.shape)}")
    batch, height, width = input.shape[0] if grid.shape[0] == 1 else grid.shape[0], grid.shape[1], grid.shape[2]
    if jacobian is not None:
        check_tensor("jacobian", jacobian, ("B", "h", "w", 2, 2))
        check_same_device("jacobian", jacobian, "input", input)
        lengths = zip(jacobian.shape[:3], (batch, height, width), strict=True)
        if any(got not in (1, want) for got, want in lengths):
            raise ValueError(
                f"jacobian must have shape ({batch}, {height}, {width}, 2, 2), or 1 for its first three lengths, "
                f"got {tuple(jacobian.shape)}"
            )
    check_noise(noise, sampling, batch, (height, width), input)
