"""Warps by a matrix of pixels or by a map.

The names, parameters and conventions are those of ``kornia.geometry``.
"""

from collections.abc import Sequence

import torch
from kornia.geometry.conversions import convert_affinematrix_to_homography, normalize_pixel_coordinates
from torch import Tensor

from lms_geometry._kornia import normalize_homography
from lms_geometry.autocast import no_autocast
from lms_geometry.checks import (
    MODES,
    PADDING_MODES,
    check_choice,
    check_dense,
    check_flag,
    check_image,
    check_noise,
    check_same_batch,
    check_same_device,
    check_sampling,
    check_size,
    check_tensor,
)
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.projection import inverse, project, unit_scale
from lms_geometry.sampling import sample
from lms_geometry.symbolic import one_node

_FILLED = (*PADDING_MODES, "fill")
_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@one_node
def warp_affine_linearized(
    src: Tensor,
    M: Tensor,
    dsize: tuple[int, int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
    fill_value: Tensor | None = None,
    *,
    sampling: LinearizedSampling | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Warp an image by an affine matrix, with the linearized gradient for the matrix.

    Stands for :func:`kornia.geometry.warp_affine`:

    .. math::
        \text{dst}(x, y) = \text{src} \left( M^{-1}_{11} x + M^{-1}_{12} y + M^{-1}_{13} ,
        M^{-1}_{21} x + M^{-1}_{22} y + M^{-1}_{23} \right )

    sampled by :func:`grid_sample_linearized` with the exact Jacobian, one footprint per image.

    Convention:
        - ``src`` is :math:`(B, C, H, W)`, ``dsize`` is ``(height, width)``
        - ``M`` maps **source to destination**, in **pixels** with centres at integers, whatever ``align_corners``
        - a singular or non-finite ``M`` puts every pixel outside the image, with gradient 0

    Args:
        src: the image, shape :math:`(B, C, H, W)`.
        M: affine matrices, shape :math:`(B, 2, 3)`. Either batch may be 1 and is then shared.
        dsize: size of the output, ``(height, width)``.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"`` | ``"fill"``.
        align_corners: meaning of -1 and 1 inside the computation; it moves no sample, only ``"reflection"`` differs.
        fill_value: the value outside the image when ``padding_mode="fill"``: shape :math:`(C)`, :math:`(1)`, or one
            that broadcasts to the output. Zeros if ``None``.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        noise: draws of :func:`draw_noise` for ``dsize``, or ``None``: see :func:`grid_sample_linearized`.
        generator: source of randomness when ``noise`` is ``None``.

    Returns:
        The warped image, shape :math:`(B, C, h, w)`, in ``src``'s dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices.

    Example:
        >>> image = torch.rand(1, 3, 20, 30)
        >>> M = torch.tensor([[[0.25, 0.0, 0.0], [0.0, 0.25, 0.0]]], requires_grad=True)
        >>> out = warp_affine_linearized(image, M, (5, 7))
        >>> out.shape, torch.autograd.grad(out.sum(), M)[0].shape
        (torch.Size([1, 3, 5, 7]), torch.Size([1, 2, 3]))
    """
    check_tensor("M", M, ("B", 2, 3))
    reading = Reading(mode, padding_mode, check_flag("align_corners", align_corners))
    dsize, sampling = check_warp("src", src, "M", M, dsize, reading, _FILLED, sampling, noise, generator)
    return warp_pixels(src, M, dsize, reading, fill_value, sampling, noise, generator)


@one_node
def warp_perspective_linearized(
    src: Tensor,
    M: Tensor,
    dsize: tuple[int, int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
    fill_value: Tensor | None = None,
    *,
    sampling: LinearizedSampling | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Warp an image by a homography, with the linearized gradient for the matrix.

    Stands for :func:`kornia.geometry.warp_perspective`:

    .. math::
        \text{dst}(x, y) = \text{src} \left(
        \frac{M^{-1}_{11} x + M^{-1}_{12} y + M^{-1}_{13}}{M^{-1}_{31} x + M^{-1}_{32} y + M^{-1}_{33}} ,
        \frac{M^{-1}_{21} x + M^{-1}_{22} y + M^{-1}_{23}}{M^{-1}_{31} x + M^{-1}_{32} y + M^{-1}_{33}} \right )

    sampled by :func:`grid_sample_linearized` with the exact Jacobian at every pixel.

    Convention:
        - ``src`` is :math:`(B, C, H, W)`, ``dsize`` is ``(height, width)``
        - ``M`` maps **source to destination**, in **pixels** with centres at integers, whatever ``align_corners``;
          a multiple of it is the same warp
        - a singular or non-finite ``M`` puts every pixel outside the image, with gradient 0; so does a horizon (depth
          0) with the pixels on it

    Args:
        src: the image, shape :math:`(B, C, H, W)`.
        M: homographies, shape :math:`(B, 3, 3)`. Either batch may be 1 and is then shared.
        dsize: size of the output, ``(height, width)``.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"`` | ``"fill"``.
        align_corners: meaning of -1 and 1 inside the computation; it moves no sample, only ``"reflection"`` differs.
        fill_value: the value outside the image when ``padding_mode="fill"``: shape :math:`(C)`, :math:`(1)`, or one
            that broadcasts to the output. Zeros if ``None``.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        noise: draws of :func:`draw_noise` for ``dsize``, or ``None``: see :func:`grid_sample_linearized`.
        generator: source of randomness when ``noise`` is ``None``.

    Returns:
        The warped image, shape :math:`(B, C, h, w)`, in ``src``'s dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices.

    Example:
        >>> image = torch.rand(1, 3, 20, 30)
        >>> M = torch.tensor([[[0.25, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.001, 1.0]]])
        >>> warp_perspective_linearized(image, M, (5, 7)).shape
        torch.Size([1, 3, 5, 7])
    """
    check_tensor("M", M, ("B", 3, 3))
    reading = Reading(mode, padding_mode, check_flag("align_corners", align_corners))
    dsize, sampling = check_warp("src", src, "M", M, dsize, reading, _FILLED, sampling, noise, generator)
    return warp_pixels(src, M, dsize, reading, fill_value, sampling, noise, generator)


@one_node
def remap_linearized(
    image: Tensor,
    map_x: Tensor,
    map_y: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
    normalized_coordinates: bool = False,
    *,
    sampling: LinearizedSampling | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Warp an image by a map of source points, with the linearized gradient for the map.

    Stands for :func:`kornia.geometry.remap`:

    .. math::
        \text{dst}(x, y) = \text{src}(\text{map}_x(x, y), \text{map}_y(x, y))

    sampled by :func:`grid_sample_linearized` with a Jacobian by finite differences of the map. For points that are not
    neighbours, or for a single one, call that function and give the Jacobian.

    Convention:
        - ``image`` is :math:`(B, C, H, W)`; the maps are source **pixels** with centres at integers, or normalised
        - as in kornia, pixel maps are normalised as for ``align_corners=True`` whatever flag is given, and ``None``
          means ``False``: pass ``align_corners=True`` for an identity map to return the image

    Args:
        image: the image, shape :math:`(B, C, H, W)`.
        map_x: source coordinate along the width, shape :math:`(B, h, w)`, also of integers. Either batch may be 1 and
            is then shared.
        map_y: source coordinate along the height, shape :math:`(B, h, w)`.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: see above.
        normalized_coordinates: whether the maps are in normalised coordinates, -1 to 1.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        noise: draws of :func:`draw_noise` for the maps' size, or ``None``: see :func:`grid_sample_linearized`.
        generator: source of randomness when ``noise`` is ``None``.

    Returns:
        The warped image, shape :math:`(B, C, h, w)`, in ``image``'s dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices.

    Example:
        >>> image = torch.rand(1, 3, 20, 30)
        >>> map_y, map_x = torch.meshgrid(torch.arange(5.0) * 4, torch.arange(7.0) * 4, indexing="ij")
        >>> remap_linearized(image, map_x[None], map_y[None], align_corners=True).shape
        torch.Size([1, 3, 5, 7])
    """
    map_x, map_y = _floating(map_x, image), _floating(map_y, image)
    check_tensor("map_x", map_x, ("B", "h", "w"))
    check_tensor("map_y", map_y, ("B", *map_x.shape[1:]))
    check_same_batch("map_y", map_y, "map_x", map_x)
    align_corners = check_flag("align_corners", align_corners, optional=True)
    reading, size = Reading(mode, padding_mode, align_corners), (map_x.shape[1], map_x.shape[2])
    maps = torch.broadcast_tensors(map_x, map_y)
    check_warp("image", image, "map_y", maps[1], size, reading, PADDING_MODES, sampling, noise, generator)
    _, settings = check_warp("image", image, "map_x", maps[0], size, reading, PADDING_MODES, sampling, noise, generator)
    grid = torch.stack(maps, -1).to(torch.promote_types(map_x.dtype, torch.float32))
    if not check_flag("normalized_coordinates", normalized_coordinates):
        grid = normalize_pixel_coordinates(grid, *image.shape[-2:])
    return sample_at(image, grid, None, reading, settings, noise, generator)


def check_warp(
    image_name: str,
    image: Tensor,
    other_name: str,
    other: Tensor,
    dsize: tuple[int, int],
    reading: Reading,
    padding_modes: Sequence[str],
    sampling: LinearizedSampling | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[tuple[int, int], LinearizedSampling]:
    """Check what all warps have in common, and return the size of the output and the settings of the method."""
    dsize, sampling = check_size("dsize", dsize), check_sampling(sampling)
    check_image(image_name, image)
    check_same_device(other_name, other, image_name, image)
    check_same_batch(other_name, other, image_name, image)
    check_choice("mode", reading.mode, MODES)
    check_choice("padding_mode", reading.padding_mode, padding_modes)
    batch = image.shape[0] if other.shape[0] == 1 else other.shape[0]
    check_noise(noise, generator, sampling, batch, dsize, image_name, image)
    return dsize, sampling


def warp_pixels(
    src: Tensor,
    M: Tensor,
    dsize: tuple[int, int],
    reading: Reading,
    fill_value: Tensor | None,
    sampling: LinearizedSampling,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Warp by a source-to-destination pixel matrix, affine ``(B, 2, 3)`` or projective ``(B, 3, 3)``.

    The arguments are checked, all but ``fill_value``.
    """
    with no_autocast(src.device):
        size = src.shape[-2], src.shape[-1]
        grid, jacobian = pixel_grid(M, dsize, size, reading.align_corners, differentiable=not sampling.is_drawn)
    if reading.padding_mode != "fill":
        return sample_at(src, grid, jacobian, reading, sampling, noise, generator)
    # A channel of ones beside the image says, at every output pixel, how much of it is image and how much is fill.
    src = torch.cat((src, torch.ones_like(src[:, :1])), 1)
    reading = Reading(reading.mode, "zeros", reading.align_corners)
    out = sample_at(src, grid, jacobian, reading, sampling, noise, generator)
    out, coverage = out[:, :-1], out[:, -1:]
    return out if fill_value is None else out + (1 - coverage) * _fill_of(fill_value, out)


def pixel_grid(
    M: Tensor, dsize: tuple[int, int], size: tuple[int, int], align_corners: bool, differentiable: bool = True
) -> tuple[Tensor, Tensor]:
    """The grid of a source-to-destination pixel matrix, affine ``(B, 2, 3)`` or projective ``(B, 3, 3)``.

    Args:
        M: the matrices.
        dsize, size: sizes of destination and source, ``(height, width)``.
        align_corners: meaning of -1 and 1 in the grid.
        differentiable: whether the Jacobian carries the derivative by the matrices, as the grid does.

    Returns:
        As :func:`lms_geometry.projection.project`.
    """
    affine = M.shape[-2] == 2
    matrix = M.to(torch.promote_types(M.dtype, torch.float32))
    matrix = convert_affinematrix_to_homography(matrix) if affine else unit_scale(matrix)
    matrix = normalize_homography(matrix, size, (max(dsize[0], 1), max(dsize[1], 1)), align_corners)
    src_from_dst, regular = inverse(matrix)
    return project(
        src_from_dst, regular, dsize, size, align_corners, affine=affine, differentiable_jacobian=differentiable
    )


def sample_at(
    src: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    reading: Reading,
    sampling: LinearizedSampling,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Sample in the wider dtype of image and grid, and return the image's own.

    The grid is in float32 or float64, since half precision cannot tell the pixels of a large image apart.
    """
    working = torch.promote_types(src.dtype, grid.dtype)
    image = src if working == torch.float32 else src.to(working)
    return sample(image, grid.to(working), reading, sampling, jacobian, noise, generator).to(src.dtype)


def _floating(coordinates: Tensor, image: Tensor) -> Tensor:
    """A map of whole numbers in a floating type, and anything else as it is."""
    if not isinstance(coordinates, Tensor) or coordinates.dtype not in _WHOLE_NUMBERS:
        return coordinates
    return coordinates.to(torch.float64 if getattr(image, "dtype", None) == torch.float64 else torch.float32)


def _fill_of(fill_value: object, out: Tensor) -> Tensor:
    if not isinstance(fill_value, Tensor):
        raise TypeError(f"fill_value must be a tensor or None, got {type(fill_value).__name__}")
    if check_dense("fill_value", fill_value).is_complex():
        raise TypeError(f"fill_value must have a real dtype, got {fill_value.dtype}")
    fill = fill_value.reshape(-1, 1, 1) if fill_value.ndim == 1 else fill_value
    try:
        fits = torch.broadcast_shapes(fill.shape, out.shape) == out.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"fill_value must have shape (1,), ({out.shape[1]},) or one that broadcasts to {tuple(out.shape)}, "
            f"got {tuple(fill_value.shape)}"
        )
    return fill.to(out)
