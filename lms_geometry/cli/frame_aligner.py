"""Where the frames of a stack lie: against an image, the first frame, the one before, or the mean of all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lms_geometry.cli.align import Settings, Side, align, outcome
from lms_geometry.cli.frames import FolderFrames
from lms_geometry.cli.images import Frames
from lms_geometry.cli.inputs import InputError
from lms_geometry.cli.picture import Array, Picture
from lms_geometry.cli.warp import warp_picture

REFERENCES = ("first", "previous", "mean")
# What is told of a frame.
_TOLD = ("score", "good", "overlap", "start", "not_tried", "converged")

# A frame's matrix, if there was something to compare, and what is told of it.
_Motion = tuple[Tensor | None, dict[str, Any]]


@dataclass(frozen=True)
class StackOptions:
    """How the frames of a stack are aligned.

    Args:
        batch: how many frames are aligned at once.
        channel: the channel that is compared, counted from 0; ``None``: all of them.
        smooth: over how many frames the drift is smoothed, as the standard deviation of a Gaussian; 0: not at all.
    """

    batch: int = 8
    channel: int | None = None
    smooth: float = 0.0


class FrameAligner:
    """The frames of a stack, which it reads and aligns a batch at a time."""

    def __init__(self, frames: Frames, name: str, settings: Settings, options: StackOptions, progress: bool) -> None:
        self._frames, self._name = frames, name
        self._settings, self._options, self._progress = settings, options, progress
        channels = len(frames[0].pixels)
        if options.channel is not None and not 0 <= options.channel < channels:
            raise InputError(f"--channel must be from 0 to {channels - 1}, got {options.channel}")

    def against(self, reference: str | Side) -> tuple[Tensor, list[dict[str, Any]]]:
        """The matrix of each frame to the reference ``(F, 3, 3)``, and what is told of each.

        For the mean, the frames are aligned with the first, and then with the mean of those that this aligned well. A
        frame in which there is nothing to compare moves as the one before it.
        """
        if isinstance(reference, Side):
            return _joined(self._against_one(reference))
        first = self._side(0)
        if first is None:
            raise InputError(f"{self._label(0)} has nothing to compare the other frames with: begin with another")
        if reference == "previous":
            return _joined(self._chained(first))
        motions = self._against_one(first)
        motions[0] = _reference(self._label(0))
        if reference == "first":
            return _joined(motions)
        return _joined(self._against_one(Side.of("the mean frame", self._mean(motions))))

    def _against_one(self, target: Side) -> list[_Motion]:
        motions: list[_Motion] = []
        for indices in self._batches():
            sides = {index: side for index in indices if (side := self._side(index)) is not None}
            motions += self._align(indices, sides, [target])
        return motions

    def _chained(self, first: Side) -> list[_Motion]:
        """Each frame is aligned with the last one before it that shows something."""
        motions, before = [_reference(self._label(0))], first
        to_first = torch.eye(3, dtype=torch.float64)
        for indices in self._batches(start=1):
            sides: dict[int, Side] = {}
            targets: list[Side] = []
            for index in indices:
                side = self._side(index)
                if side is not None:
                    sides[index] = side
                    targets.append(before)
                    before = side
            for step, told in self._align(indices, sides, targets):
                if step is not None:
                    to_first = to_first @ step
                    to_first = to_first / to_first[2, 2]
                motions.append((None if step is None else to_first, told))
        return motions

    def _align(self, indices: Sequence[int], sides: dict[int, Side], targets: Sequence[Side]) -> list[_Motion]:
        """Align those of a batch of frames that have a side; ``targets`` are as many, or one for all."""
        found = align(list(sides.values()), targets, self._settings) if sides else None
        motions: list[_Motion] = []
        for index in indices:
            if found is None or index not in sides:
                told = {"score": 0.0, "good": False, "overlap": 0.0, "start": "none: it is blank"}
                motions.append((None, {"frame": self._label(index), **told}))
                continue
            result = outcome(found, list(sides).index(index), self._settings)
            told = {"frame": self._label(index), **{name: result[name] for name in _TOLD}}
            motions.append((torch.tensor(result["matrix"], dtype=torch.float64), told))
        return motions

    def _mean(self, motions: list[_Motion]) -> Picture:
        """The mean of the frames that are aligned well, where they show something."""
        total: Array = np.zeros(self._chosen(0).pixels.shape)
        weight: Array = np.zeros((1, *self._frames[0].size))
        for index, (matrix, told) in enumerate(motions):
            if matrix is None or not told["good"]:
                continue
            frame = self._chosen(index)
            shown = np.ones((1, *frame.size), np.float32) if frame.valid is None else frame.valid
            moved = warp_picture(replace(frame, opaque=shown), matrix, frame.size, self._settings.device)
            covered = np.zeros_like(shown) if moved.opaque is None else moved.opaque
            total += covered * np.where(covered > 0, moved.pixels, 0)
            weight += covered
        mean = np.where(weight > 0, total / np.maximum(weight, 1e-6), np.nan)
        return Picture(mean.astype(np.float32))

    def _batches(self, start: int = 0) -> Iterator[range]:
        from tqdm import tqdm

        count, batch = len(self._frames), self._options.batch
        for begin in tqdm(range(start, count, batch), desc="stack", unit="batch", disable=not self._progress):
            yield range(begin, min(begin + batch, count))

    def _side(self, index: int) -> Side | None:
        """A frame; ``None`` if there is nothing in it to compare."""
        picture = self._chosen(index)
        try:
            return Side.of(f"{self._name}, frame {index}", picture)
        except InputError:
            return None

    def _chosen(self, index: int) -> Picture:
        picture, channel = self._frames[index], self._options.channel
        return picture if channel is None else replace(picture, pixels=picture.pixels[channel : channel + 1])

    def _label(self, index: int) -> int | str:
        return self._frames.paths[index].name if isinstance(self._frames, FolderFrames) else index


def _reference(label: int | str) -> _Motion:
    told = {"frame": label, "score": 1.0, "good": True, "overlap": 1.0, "start": "none: it is the reference"}
    return torch.eye(3, dtype=torch.float64), told


def _joined(motions: list[_Motion]) -> tuple[Tensor, list[dict[str, Any]]]:
    """The matrices, that of the frame before where there is none, and what is told."""
    matrices: list[Tensor] = []
    for matrix, _ in motions:
        held = matrices[-1] if matrices else torch.eye(3, dtype=torch.float64)
        matrices.append(held if matrix is None else matrix)
    return torch.stack(matrices), [told for _, told in motions]
