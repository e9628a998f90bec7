"""A training step of a small spatial transformer: plain, compiled, and captured in a CUDA graph."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lms_geometry import grid_sample_linearized


class Transformer(nn.Module):
    """Looks at an image, decides where to look closer, and reads that place at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.decide = nn.Linear(128, 6)
        nn.init.constant_(self.decide.bias, 0.0)
        with torch.no_grad():
            self.decide.bias[[0, 4]] = 0.9
            self.decide.weight.mul_(0.1)

    def forward(self, image: Tensor) -> Tensor:
        """An image ``(B, 3, H, W)`` to ``(B, 3, H // 2, W // 2)``."""
        theta = self.decide(self.look(image)).view(-1, 2, 3)
        size = [len(image), 3, image.shape[2] // 2, image.shape[3] // 2]
        return grid_sample_linearized(image, F.affine_grid(theta, size, align_corners=False), align_corners=False)


def differences(device: torch.device) -> Iterator[tuple[str, float | str]]:
    """For each way to run the step: the largest difference of a gradient from the plain one's, or the error."""
    torch.manual_seed(0)
    plain = Transformer().to(device)
    large = device.type == "cuda"
    image = torch.rand(16 if large else 2, 3, *((112, 112) if large else (17, 19)), device=device)
    reference = copy.deepcopy(plain)
    expected = _gradients(reference, reference, image)
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "compiled": lambda model: torch.compile(model, backend="inductor" if large else "aot_eager")
    }
    if large:
        ways["CUDA graph"] = lambda model: torch.cuda.make_graphed_callables(model, (image,))
    for name, way in ways.items():
        model = copy.deepcopy(plain)
        try:
            got = _gradients(model, way(model), image)
        except Exception as error:
            yield name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            yield name, max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, expected, strict=True))


def _gradients(model: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> list[Tensor]:
    """The gradients of a model's parameters after one step of ``run``, which is the model or a form of it."""
    run(image).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
