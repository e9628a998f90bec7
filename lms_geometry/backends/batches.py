"""A batch may be one image expanded: kernels are handed that image once, and how far it is to the next."""

from torch import Tensor


def unexpanded(tensor: Tensor) -> Tensor:
    """One image of a batch that is one image expanded, else the batch."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def compact(grid: Tensor, jacobian: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """Grid, Jacobian and noise, contiguous, with a batch each, and the Jacobians from pixel to pixel: 0 or 1."""
    h, w = grid.shape[1:3]
    noise = noise if noise.ndim == 5 else noise.unsqueeze(0)
    grid, noise = (unexpanded(tensor).contiguous() for tensor in (grid, noise))
    if jacobian is None:
        return grid, None, noise, 0
    shared = jacobian.shape[1:3] == (1, 1)
    jacobian = unexpanded(jacobian if shared else jacobian.expand(-1, h, w, 2, 2)).contiguous()
    return grid, jacobian, noise, 0 if shared else 1


def image_stride(tensor: Tensor) -> int:
    """How far it is from image to image, 0 where all share one."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
