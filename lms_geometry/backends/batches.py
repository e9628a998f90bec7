"""A batch may be one image expanded: kernels are handed that image once, and how far it is to the next."""

from torch import Tensor


def unexpanded(tensor: Tensor) -> Tensor:
    """One image of a batch that is one image expanded, else the batch."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def image_stride(tensor: Tensor) -> int:
    """How far it is from image to image, 0 where all share one."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
