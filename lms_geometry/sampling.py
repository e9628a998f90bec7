"""The one operation of the library: sampling an image, by means over pixels or by fitted planes (equation 2)."""

import torch
from torch import Tensor, nn

from lms_geometry.area_differentiation import area_mean
from lms_geometry.autocast import is_autocast
from lms_geometry.backends import area_operator, operator
from lms_geometry.checks import (
    MODES,
    PADDING_MODES,
    check_choice,
    check_flag,
    check_image,
    check_noise,
    check_same_batch,
    check_same_device,
    check_same_dtype,
    check_sampling,
    check_tensor,
)
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.differentiation import carries_gradient, linearized_sample, read_centre
from lms_geometry.footprint import Placement
from lms_geometry.limits import FARTHEST_DRAW
from lms_geometry.noise import draw_independent
from lms_geometry.symbolic import one_node


@one_node
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
    r"""Sample an image at a grid of points, antialiased where the grid shrinks the image.

    Stands for :func:`torch.nn.functional.grid_sample`. Where neighbouring points of the grid are more than one source
    pixel apart, the value is the mean over the area of the output pixel, and the gradient is the derivative of that
    mean, for the grid and for the image. Where they are not, value and gradient are those of ``grid_sample``, the value
    to the last bit. Nothing is random. (:mod:`lms_geometry.area` has the equations.)

    With drawn samples, such as :meth:`LinearizedSampling.paper`, it is the sampler of the paper. Around every point
    :math:`T(x_i)` it reads a few random samples, fits a plane to what they read, and returns the plane:

    .. math::
        I_0 + A_1 + A_{uv}^\top \left( T(x) - T(x_i) \right)

    (equation 2), where only :math:`T(x)` carries gradient. So the value is :math:`I_0`, the read of ``grid_sample``,
    plus the intercept :math:`A_1` of the fit; the gradient for the grid is the slope :math:`A_{uv}`; the gradient for
    the image is that of :math:`I_0`. This slope is by design not the derivative of the value.

    Convention:
        - ``input`` is :math:`(B, C, H, W)`, ``grid`` is :math:`(B, h, w, 2)` in normalised coordinates, x first, where
          -1 and 1 are the centres (``align_corners=True``) or the outer edges (``False``) of the outermost texels
        - ``align_corners=None`` means ``False``
        - ``sampling.sigma`` is in output pixels, ``sampling.jitter`` and the slope are in source pixels
        - a NaN or infinite point, or one more than 100,000 half widths away, counts as outside the image: its value is
          the padding's, its gradient 0
        - for drawn samples, an axis of the image that is one texel long has no slope
        - second derivatives are those of the loss: the slopes, and where the gradient for the image goes, are constants
          to them

    Args:
        input: the image, shape :math:`(B, C, H, W)`. Half precision is computed in float32.
        grid: where to sample, shape :math:`(B, h, w, 2)`, in the dtype of ``input`` or, beside half precision, in
            float32. Either batch may be 1 and is then shared.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: see above.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        jacobian: derivative of the source point with respect to the output pixel, in source pixels per output pixel,
            row x first: shape :math:`(B, h, w, 2, 2)`, where B, h and w may be 1. With fixed points it gets a
            gradient, for it says how large the averaged area is; with drawn samples it gets none.
            Finite differences of the grid if ``None``, through which the gradient for the area then reaches the grid.
            For points that are not neighbours, as in a list :math:`(B, N, 1, 2)`, differences mean nothing, so give the
            Jacobian, for example the identity. Along an output axis of one pixel they are 0, so that nothing is
            averaged along it.
        noise: for drawn samples, draws of :func:`draw_noise` for this output size, shape :math:`(K - 1, h, w, 2)`,
            shared over the batch, or :math:`(B, K - 1, h, w, 2)`. A number beyond 100, which no draw is, counts as 100.
            Drawn here if ``None``, once for the whole batch, over which it then does not average out: see
            :func:`draw_noise`.
        generator: for drawn samples, the source of randomness when ``noise`` is ``None``; torch's global one if
            ``None``.

    Returns:
        The sampled image, shape :math:`(B, C, h, w)`, in ``input``'s dtype, or under autocast in that of
        ``grid_sample``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices; if ``noise`` or
            ``generator`` is given for fixed points.

    Example:
        >>> import torch.nn.functional as F
        >>> image = torch.rand(2, 3, 20, 30)
        >>> grid = F.affine_grid(torch.eye(2, 3).repeat(2, 1, 1), (2, 3, 5, 6), align_corners=False)
        >>> grid_sample_linearized(image, grid.requires_grad_()).shape
        torch.Size([2, 3, 5, 6])
    """
    sampling = check_sampling(sampling)
    reading = Reading(mode, padding_mode, check_flag("align_corners", align_corners, optional=True))
    _check(input, grid, reading, sampling, jacobian, noise, generator)
    dtype = _result_dtype(input, grid)
    grid = grid.to(torch.promote_types(dtype, torch.float32))
    return sample(input.to(dtype), grid, reading, sampling, jacobian, noise, generator)


@one_node
def grid_sample_value_and_slope(
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
) -> tuple[Tensor, Tensor]:
    r"""Sample an image at a grid of points, and return the slope beside the value.

    For your own Gauss-Newton or Lucas-Kanade: the slope is the derivative of every value with respect to its point, the
    number that :func:`grid_sample_linearized` hands to autograd (:math:`A_{uv}` of equation 2 for drawn samples). It
    holds the area of the pixel still. Neither result has an autograd history.

    Convention:
        - as :func:`grid_sample_linearized`; the slope is in intensity per **unit of the grid**, half the image's width
          or height (with ``align_corners=True`` half of the distance between the outermost texel centres)

    Args:
        input: the image, shape :math:`(B, C, H, W)`. Half precision is computed in float32.
        grid: where to sample, shape :math:`(B, h, w, 2)`. Either batch may be 1 and is then shared.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: meaning of -1 and 1; ``None`` means ``False``.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        jacobian: source pixels per output pixel, as for :func:`grid_sample_linearized`.
        noise: draws of :func:`draw_noise` for this output size; drawn here if ``None``.
        generator: source of randomness when ``noise`` is ``None``; torch's global one if ``None``.

    Returns:
        The sampled image, shape :math:`(B, C, h, w)`, in the dtype that :func:`grid_sample_linearized` returns; and its
        slopes along x and y, shape :math:`(B, C, h, w, 2)`, in the same dtype or, for half precision, in float32. A
        slope is 0 along a coordinate that is NaN, infinite or far outside.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices.

    Example:
        Lucas and Kanade's search for a translation, of an image with itself moved:

        >>> import torch.nn.functional as F
        >>> y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
        >>> image = (-((x - 22) ** 2 + 2 * (y - 18) ** 2) / 60).exp()[None, None]
        >>> grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, 20, 25), align_corners=False)
        >>> target = F.grid_sample(image, grid + torch.tensor([0.2, -0.1]), align_corners=False)
        >>> shift, sampling = torch.zeros(2), LinearizedSampling(sigma=1.0)
        >>> for _ in range(20):
        ...     value, slope = grid_sample_value_and_slope(image, grid + shift, sampling=sampling)
        ...     J, residual = slope.reshape(-1, 2), (value - target).reshape(-1)
        ...     shift = shift - torch.linalg.solve(J.T @ J, J.T @ residual)
        >>> bool((shift - torch.tensor([0.2, -0.1])).abs().max() < 0.01)
        True
    """
    sampling = check_sampling(sampling)
    reading = Reading(mode, padding_mode, check_flag("align_corners", align_corners, optional=True))
    _check(input, grid, reading, sampling, jacobian, noise, generator)
    dtype = _result_dtype(input, grid)
    grid = grid.detach().to(torch.promote_types(dtype, torch.float32))
    input, grid = _one_batch(input.detach().to(dtype), grid)
    if not sampling.is_drawn:
        jacobian = None if jacobian is None else jacobian.detach().to(grid.dtype)
        value, slope, _ = area_operator.area_slopes(input, grid, jacobian, *sampling.averaging, *reading)
        return (value if sampling.intercept else read_centre(input, grid, reading)), slope
    placement = _placement(grid, sampling, jacobian, noise, generator)
    return operator.linearized_sample(input, grid, placement, sampling, reading)


class LinearizedGridSample(nn.Module):
    """Module form of :func:`grid_sample_linearized`.

    Convention:
        - as :func:`grid_sample_linearized`

    Args:
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: meaning of -1 and 1; ``None`` means ``False``.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.

    Example:
        >>> sample = LinearizedGridSample(padding_mode="border")
        >>> sample(torch.rand(2, 3, 20, 30), torch.zeros(2, 5, 6, 2)).shape
        torch.Size([2, 3, 5, 6])
    """

    def __init__(
        self,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool | None = None,
        *,
        sampling: LinearizedSampling | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.sampling = LinearizedSampling() if sampling is None else sampling

    def forward(
        self,
        input: Tensor,
        grid: Tensor,
        *,
        jacobian: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample ``input`` :math:`(B, C, H, W)` at ``grid`` :math:`(B, h, w, 2)`, as :func:`grid_sample_linearized`."""
        reading = self.mode, self.padding_mode, self.align_corners
        return grid_sample_linearized(
            input, grid, *reading, sampling=self.sampling, jacobian=jacobian, noise=noise, generator=generator
        )

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"mode={self.mode!r}, padding_mode={self.padding_mode!r}, align_corners={self.align_corners}, "
            f"sampling={self.sampling}"
        )


def sample(
    input: Tensor,
    grid: Tensor,
    reading: Reading,
    sampling: LinearizedSampling,
    jacobian: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The work of :func:`grid_sample_linearized`, for arguments that are checked.

    ``grid`` is in float32 or float64, ``input`` in the same dtype or, beside float32, in half precision. The result is
    in the dtype of ``input``.
    """
    input, grid = _one_batch(input, grid)
    # While a graph is traced with gradients on, it does not tell which derivatives it will be asked for.
    open_graph = torch.compiler.is_compiling() and torch.is_grad_enabled()
    if not sampling.intercept and not (open_graph or carries_gradient(grid)):
        return read_centre(input, grid, reading)
    if not sampling.is_drawn:
        jacobian = None if jacobian is None else jacobian.to(grid.dtype)
        if sampling.intercept:
            return area_mean(input, grid, jacobian, sampling.averaging, reading)
        mean = area_mean(input.detach(), grid, jacobian, sampling.averaging, reading)
        return read_centre(input, grid, reading) + (mean - mean.detach())
    placement = _placement(grid, sampling, jacobian, noise, generator)
    return linearized_sample(input, grid, placement, sampling, reading)[0]


def _one_batch(input: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The two with one batch size."""
    if input.shape[0] == grid.shape[0]:
        return input, grid
    batch = input.shape[0] if grid.shape[0] == 1 else grid.shape[0]
    return input.expand(batch, -1, -1, -1), grid.expand(batch, -1, -1, -1)


def _placement(
    grid: Tensor,
    sampling: LinearizedSampling,
    jacobian: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> Placement:
    """Where the samples fall, in the grid's dtype. Draws made here are whitened by the backend, which is quicker."""
    jacobian = None if jacobian is None else jacobian.detach().to(grid.dtype)
    if noise is not None:
        return Placement(noise.detach().to(grid.dtype).clamp(-FARTHEST_DRAW, FARTHEST_DRAW), jacobian)
    size = grid.shape[1], grid.shape[2]
    noise = draw_independent(sampling.num_samples, size, generator, grid.device, grid.dtype)
    return Placement(noise, jacobian, whiten=sampling.pattern == "whitened")


def _result_dtype(input: Tensor, grid: Tensor) -> torch.dtype:
    """The dtype of ``F.grid_sample``, which autocast runs in the wider of the two and, on a CPU, in float32."""
    if not is_autocast(input.device):
        return input.dtype
    dtype = torch.promote_types(input.dtype, grid.dtype)
    return torch.promote_types(dtype, torch.float32) if input.device.type == "cpu" else dtype


def _check(
    input: Tensor,
    grid: Tensor,
    reading: Reading,
    sampling: LinearizedSampling,
    jacobian: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> None:
    check_image("input", input)
    check_tensor("grid", grid, ("B", "h", "w", 2))
    check_same_device("grid", grid, "input", input)
    if grid.dtype != torch.float32 or input.dtype not in (torch.float16, torch.bfloat16):
        check_same_dtype("grid", grid, "input", input)
    check_same_batch("grid", grid, "input", input)
    check_choice("mode", reading.mode, MODES)
    check_choice("padding_mode", reading.padding_mode, PADDING_MODES)
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
    check_noise(noise, generator, sampling, batch, (height, width), "input", input)
