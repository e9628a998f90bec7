"""Noise for samplers in other people's code: under ``vmap``, under checkpointing, and from a seed of its own."""

import hashlib
import itertools

import torch
from torch import Tensor

from lms_geometry.checks import check_noise, check_sampling
from lms_geometry.config import LinearizedSampling
from lms_geometry.noise import draw_noise

from . import _torch_private

# The number of latest calls under checkpointing whose noise can be drawn again.
_TICKETS_KEPT = 2**17


def check_draws(sampling: object, generator: object) -> LinearizedSampling:
    """Return the settings of a patch, or raise, as the calls that it will swap would, for them or the generator."""
    settings = check_sampling(sampling)
    check_noise(None, generator, settings, 1, (1, 1), "input", torch.empty(0))  # only noise is compared with an image
    return settings


class Draws:
    """Draws noise from torch's global generator or, with a seed, from a stream of its own.

    With a seed the calls on each device are numbered, and seed, device and number give the noise. Checkpointing runs a
    call again, which must find its number again. Checkpointing restores torch's global generator for this. So a call
    that may run again draws a ticket from that generator, and calls with the same ticket have the same number.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._numbers: dict[int, itertools.count[int]] = {}
        self._tickets: dict[int, int] = {}

    @property
    def seeded(self) -> bool:
        """Whether the noise comes from a seed of its own."""
        return self._seed is not None

    def __call__(self, sampling: LinearizedSampling, grid: Tensor, runs_again: bool = False) -> Tensor:
        """Noise for a grid :math:`(B, h, w, 2)`, shared over its batch, and over what ``vmap`` maps.

        ``runs_again`` says that checkpointing runs the call twice without hooks on saved tensors.
        """
        size, dtype = (grid.shape[-3], grid.shape[-2]), torch.promote_types(grid.dtype, torch.float32)
        if torch.compiler.is_compiling():
            return draw_noise(sampling, size, device=grid.device, dtype=dtype)
        with _torch_private.no_transforms():
            generator = None if self._seed is None else self._generator(grid.device.index or 0, runs_again)
            return draw_noise(sampling, size, generator=generator, device=grid.device, dtype=dtype)

    def _generator(self, device: int, runs_again: bool) -> torch.Generator:
        number = next(self._numbers.setdefault(device, itertools.count()))
        if runs_again or _torch_private.may_run_again():
            ticket = int(torch.randint(2**62, (), device="cpu"))
            number = self._tickets.setdefault(ticket, number)
            if len(self._tickets) > _TICKETS_KEPT:
                self._tickets.pop(next(iter(self._tickets)))
        digest = hashlib.blake2b(f"{self._seed} {device} {number}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
