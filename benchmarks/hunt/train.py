"""One training of the hunt, and its test."""

import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.classification.samplers import Sampler
from benchmarks.hunt.network import Hunter
from benchmarks.hunt.scenes import SIDE, Material, Scenes, compose

BATCH, LEARNING_RATE = 16, 2.5e-3
# Scenes get harder by this much with every step at which the network is right about more than this share of them, and
# easier else. The easiest of a batch are easier than the hardest by the last number.
PACE, RIGHT, SPAN = 1 / 500, 0.5, 0.4
# The seed of the scenes that are tested on, which no training has, and how many there are of each difficulty.
TEST_SEED, TESTED = 1000, 1000


class Score(NamedTuple):
    """The test of a network on scenes of one difficulty. Shares are from 0 to 1."""

    error: float
    """The share of the signs that it takes for another class."""
    found: float
    """The share of the views whose centre is within a quarter of the sign's side of the sign's centre."""
    scale: float
    """The mean scale of the views; 1 is the whole photo."""


class Training(NamedTuple):
    """What a training was like."""

    difficulty: float
    """That of the hardest scenes at the end."""
    milliseconds: float
    """Processor time of a step, without that of making the scenes."""


def train(sampler: Sampler, grain: float, seed: int, steps: int, material: Material) -> tuple[Hunter, Training]:
    """Train a network.

    The only loss is the classifier's cross-entropy, so that the localiser learns through the sampler alone. Signs are
    first so large that they cannot be missed, and get smaller as fast as the network learns to name them.
    """
    torch.manual_seed(seed)
    network, generator = Hunter(sampler), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 100, 4 - 4 * step / steps))
    hardest, right, seconds = 0.0, 0.0, 0.0
    for step in range(steps):
        numbers = range(step * BATCH, (step + 1) * BATCH)
        scenes = compose(material, seed, numbers, grain, (max(hardest - SPAN, 0.0), hardest))
        start = time.process_time()
        scores, _ = network(scenes.images, generator)
        optimizer.zero_grad()
        F.cross_entropy(scores, scenes.labels).backward()
        # A sign that is just missed has a steep gradient, which would throw the localiser off.
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - start
        right += 0.03 * ((scores.argmax(1) == scenes.labels).float().mean().item() - right)
        hardest = min(max(hardest + (PACE if right > RIGHT else -PACE), 0.0), 1.0)
    return network.eval(), Training(hardest, 1000 * seconds / steps)


@torch.no_grad()
def test(network: Hunter, grain: float, material: Material, difficulty: float) -> Score:
    """Test a network on ``TESTED`` scenes of one difficulty."""
    generator, sums = torch.Generator().manual_seed(0), torch.zeros(3)
    for numbers in torch.arange(TESTED).split(50):
        scenes = compose(material, TEST_SEED, numbers.tolist(), grain, (difficulty, difficulty))
        scores, place = network(scenes.images, generator)
        wrong = scores.argmax(1) != scenes.labels
        sums += torch.stack((wrong, is_found(place, scenes), place[:, 0]), 1).sum(0)
    return Score(*(sums / TESTED).tolist())


def is_found(place: Tensor, scenes: Scenes) -> Tensor:
    """Whether the centre of each view is within a quarter of the sign's side of the sign's centre."""
    away = (place[:, 1:] - scenes.centres).norm(dim=1) * SIDE / 2
    return away < scenes.sides / 4
