"""RoIAlign with a gradient for the boxes, inside torchvision and the packages that bind its function.

While a patch of :func:`linearize_roi_align` is on, these names hold a replacement, where their package is installed:

- torchvision: ``ops.roi_align``, which most code calls, and ``roi_align`` in the modules ``ops.roi_align``, which
  ``RoIAlign`` calls, and ``ops.poolers``, which ``MultiScaleRoIAlign`` calls
- detectron2: ``layers.roi_align``, and in the module of that name ``tv_roi_align`` and ``roi_align``
- mmcv: ``ops.roi_align``, and in the module of that name ``roi_align``
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lms_geometry.config import LinearizedSampling
from lms_geometry.differentiation import carries_gradient
from lms_geometry.roi import roi_align_linearized

from .draws import check_draws
from .replacement import Replacement

RoIAlign = Callable[..., Tensor]
Takes = Callable[[Tensor, Tensor | Sequence[Tensor]], bool]


def linearize_roi_align(
    *, sampling: LinearizedSampling | None = None, generator: torch.Generator | None = None
) -> RoIAlignPatch:
    """Replace the RoIAlign of torchvision, detectron2 and mmcv by :func:`lms_geometry.roi_align_linearized`.

    A call whose boxes carry a gradient is linearized. Any other call, and each under ``no_grad``, goes to the function
    that was there. So with drawn samples and an intercept, inference under ``no_grad`` has other values than training.
    The names that can be replaced are listed at the top of this module. ``patch.replaced`` lists those that were, and
    ``patch.linearized`` and ``patch.passed_on`` count the calls.

    torchvision's detectors detach the boxes that they propose, so that none of their calls is linearized: give their
    ``roi_heads`` boxes of your own. Scripted models keep their own function, and so do the crops of ground-truth masks
    in ``torchvision.models.detection``, which are labels. Code that bound the function before, by ``from
    torchvision.ops import roi_align``, keeps it too, with a warning: ``replace(that_module, "roi_align",
    torchvision.ops.roi_align)`` gives it the new one.

    Args:
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``. It changes no
            value, and neither do drawn samples with ``intercept=False``.
        generator: source of randomness; torch's global one if ``None``.

    Returns:
        The patch, already on. Take it back with ``patch.remove()``, or use it as a context manager.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a generator is given for fixed points.
        ModuleNotFoundError: if none of the packages can be imported.

    Warns:
        UserWarning: if other modules bound the function, and on removal, if no call was linearized.

    Example:
        >>> with linearize_roi_align(sampling=LinearizedSampling(intercept=False)):  # doctest: +SKIP
        ...     torchvision.ops.roi_align(features, [boxes.requires_grad_()], 7).sum().backward()
    """
    return RoIAlignPatch(sampling, generator)


class RoIAlignPatch(Replacement):
    """What :func:`linearize_roi_align` returns.

    Attributes:
        replaced: the names that hold a replacement.
        linearized: the number of calls that were linearized. Compiled calls are not counted.
        passed_on: the number of calls that went to the function that was there.
    """

    def __init__(self, sampling: LinearizedSampling | None, generator: torch.Generator | None) -> None:
        self.linearized = self.passed_on = 0
        settings = check_draws(sampling, generator)
        linearized = partial(roi_align_linearized, sampling=settings, generator=generator)
        bound = {
            f"{module_name}.{name}": (module, name, adapt(getattr(module, name), linearized, self._takes))
            for module_name, name, adapt in _BINDINGS
            if hasattr(module := _module(module_name), name)
        }
        if not bound:
            raise ModuleNotFoundError(
                "none of the packages whose roi_align is replaced can be imported: "
                + "; ".join(
                    f"{name}: {_import_error(name)}" for name in ("torchvision.ops", "detectron2.layers", "mmcv.ops")
                )
            )
        with warnings.catch_warnings():
            # This name crops the ground-truth masks of Mask R-CNN. They are labels and stay as they are.
            warnings.filterwarnings("ignore", r"torchvision\.models\.detection\.roi_heads\.roi_align \w")
            super().__init__(*bound.values())
        self.replaced = tuple(bound)

    def remove(self) -> None:
        """As :meth:`Replacement.remove`, with a warning if there were calls and none was linearized."""
        super().remove()
        if self.passed_on and not self.linearized:
            warnings.warn(
                f"none of {self.passed_on} calls of roi_align was linearized: no boxes asked for a gradient. The "
                "detectors of torchvision detach the boxes that they propose: give their roi_heads boxes of your own",
                stacklevel=2,
            )

    def _takes(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> bool:
        """Whether a call is to be linearized. Counts it, if not in a compiled graph."""
        if self._removed:  # some code kept the replacement
            return False
        takes = len(input) > 0 and any(map(carries_gradient, (boxes,) if isinstance(boxes, Tensor) else boxes))
        if not torch.compiler.is_compiling():
            self.linearized += takes
            self.passed_on += not takes
        return takes


def _torchvision(original: RoIAlign, linearized: RoIAlign, takes: Takes) -> RoIAlign:
    # mmcv looks for the parameter "aligned" in the code object, so that the parameters are written out.
    @wraps(original)
    def roi_align(
        input: Tensor,
        boxes: Tensor | Sequence[Tensor],
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
    ) -> Tensor:
        pool = linearized if takes(input, boxes) else original
        return pool(input, boxes, output_size, spatial_scale, sampling_ratio, aligned)

    return roi_align


def _mmcv(original: RoIAlign, linearized: RoIAlign, takes: Takes) -> RoIAlign:
    def roi_align(
        input: Tensor,
        rois: Tensor,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
    ) -> Tensor:
        if pool_mode == "avg" and takes(input, rois):
            return linearized(input, rois, output_size, spatial_scale, sampling_ratio, aligned)
        return original(input, rois, output_size, spatial_scale, sampling_ratio, pool_mode, aligned)

    return roi_align


_BINDINGS = (
    ("torchvision.ops", "roi_align", _torchvision),
    ("torchvision.ops.roi_align", "roi_align", _torchvision),
    ("torchvision.ops.poolers", "roi_align", _torchvision),
    ("detectron2.layers", "roi_align", _torchvision),
    ("detectron2.layers.roi_align", "roi_align", _torchvision),
    ("detectron2.layers.roi_align", "tv_roi_align", _torchvision),
    ("mmcv.ops", "roi_align", _mmcv),
    ("mmcv.ops.roi_align", "roi_align", _mmcv),
)


def _module(name: str) -> ModuleType | None:
    """The module of that name. It is imported now: if it were first imported under the patch, it would bind that."""
    return None if _import_error(name) else sys.modules[name]


def _import_error(name: str) -> Exception | None:
    """The error with which the import of a module fails, if it does."""
    try:
        import_module(name)
    except Exception as error:
        return error
    return None
