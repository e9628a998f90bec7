"""Random cases for the kernels of a device, compared with eager float64 on the CPU."""

import os
import random
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.samplers import MASKED
from lms_geometry import LinearizedSampling, backends, draw_noise, grid_sample_linearized
from lms_geometry.checks import PADDING_MODES

# Image, grid, Jacobian and noise.
Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
METHODS = {
    "mean": LinearizedSampling(),
    "gaussian": replace(LinearizedSampling.paper(), ridge=0.3),
    "whitened": replace(MASKED, ridge=0.3, jitter=0.5),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# After so many cases there was one of every method, dtype and padding.
KINDS = len(METHODS) * len(DTYPES) * len(PADDING_MODES)


def compare(seed: int, backend: str, device: torch.device) -> tuple[str, dict[str, float]]:
    """The kind of a case, and the errors of value and gradients as shares of what is allowed."""
    choose = random.Random(seed)
    names = list(METHODS)
    name, dtype = names[seed % 3], DTYPES[seed // 3 % 3]
    sampling = replace(METHODS[name], intercept=choose.random() < 0.8)
    sampling = replace(sampling, num_samples=choose.choice((4, 9, 16, 25) if name == "mean" else (4, 7, 8, 12)))
    how = {"padding_mode": PADDING_MODES[seed // 9 % 3], "align_corners": choose.random() < 0.5}
    tensors = _tensors(choose, seed, sampling, dtype)

    def moved(to: torch.dtype | torch.device) -> Tensors:
        image, grid, jacobian, noise = tensors
        return image.to(to), grid.to(to), *(None if t is None else t.to(to) for t in (jacobian, noise))  # type: ignore[return-value]

    exact = _run("eager", moved(torch.float64), sampling, how)
    eager = _run("eager", tensors, sampling, how)
    got = _run(backend, moved(device), sampling, how)
    errors = {}
    for what in exact:
        true, usual, ours = exact[what], eager[what].double(), got[what].double().cpu()
        rounding = max(1e-5, 2 * torch.finfo(got[what].dtype).eps)
        allowed = rounding * true.abs().max().clamp_min(1) + 8 * (usual - true).abs().max()
        error = ((ours - true).abs().max() / allowed).item()
        errors[what] = error if error == error else float("inf")
    return f"{name}, {str(dtype).removeprefix('torch.')}", errors


def _tensors(choose: random.Random, seed: int, sampling: LinearizedSampling, dtype: torch.dtype) -> Tensors:
    """Image, grid, Jacobian and noise: odd and unequal sizes, layouts of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels = choose.randint(1, 3), choose.choice((1, 2, 3, 5, 16))
    height, width, h, w = (choose.randint(*span) for span in ((2, 33), (2, 37), (1, 13), (1, 17)))
    image = torch.rand(batch, channels, height, 2 * width, generator=generator).to(dtype)
    layout = choose.choice(("contiguous", "channels last", "strided"))
    image = image[..., ::2] if layout == "strided" else image[..., :width].contiguous()
    if layout == "channels last":
        image = image.contiguous(memory_format=torch.channels_last)
    theta = 0.9 * torch.eye(2, 3) + 0.4 * torch.randn(batch, 2, 3, generator=generator)
    grid = F.affine_grid(theta, [batch, channels, h, w], align_corners=False)
    grid = grid + 0.02 * torch.randn(grid.shape, generator=generator)
    jacobian = None
    if min(h, w) == 1 or choose.random() < 0.5:
        shape = choose.choice(((batch, h, w), (batch, 1, 1), (1, 1, 1)))
        jacobian = 2 * torch.randn(*shape, 2, 2, generator=generator)
    noise = draw_noise(sampling, (h, w), generator=generator) if sampling.is_drawn else None
    return image, grid, jacobian, noise


def _run(backend: str, tensors: Tensors, sampling: LinearizedSampling, how: dict[str, Any]) -> dict[str, Tensor]:
    before, os.environ[backends.VARIABLE] = os.environ.get(backends.VARIABLE), backend
    try:
        image, grid, jacobian, noise = tensors
        learnt = {"image": image.detach().requires_grad_(), "grid": grid.detach().requires_grad_()}
        if jacobian is not None and not sampling.is_drawn:
            learnt["jacobian"] = jacobian = jacobian.detach().requires_grad_()
        value = grid_sample_linearized(
            learnt["image"], learnt["grid"], **how, sampling=sampling, jacobian=jacobian, noise=noise
        )
        weight = torch.linspace(-1, 1, value.numel()).cos().view(value.shape).to(value)
        gradients = torch.autograd.grad(value, tuple(learnt.values()), weight)
    finally:
        if before is None:
            del os.environ[backends.VARIABLE]
        else:
            os.environ[backends.VARIABLE] = before
    return {"value": value.detach(), **dict(zip(learnt, gradients, strict=True))}
