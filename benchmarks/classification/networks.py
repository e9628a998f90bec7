"""The paper's networks: a localiser, one look (STN) or several (ICSTN), and a classifier with one hidden layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.classification.data import SIZE
from benchmarks.classification.layers import Conv2d, Linear
from benchmarks.classification.samplers import Sampler
from lms_geometry.registration.motion import rotation_scale_matrix

# The number of views that each transformer's localiser chooses one after the other.
LOOKS = {"none": 0, "STN": 1, "ICSTN": 4}
# The largest view that is resized and convolved by one matrix, in pixels of the convolution's kernel. A larger one
# costs a CPU less in two steps.
_LARGEST_VIEW = 3


@dataclass(frozen=True)
class Scale:
    """The size of an experiment.

    Args:
        side: the side of the images that the localiser sees.
        features: makes the localiser's convolutions, from the number of networks and of the images' channels.
        steps: the most steps of training.
        patience: the number of steps without a lower validation error after which training ends.
        localiser_rate: Adam's learning rate for the localiser; the classifier's is 1e-3.
    """

    side: int
    features: Callable[[int, int], nn.Sequential]
    steps: int
    patience: int
    localiser_rate: float


class Network(nn.Module):
    """Classifiers of the views that spatial transformers choose: one, or several of one kind side by side.

    The warp is a similarity: a rotation, the log2 of a scale, two translations. An STN sees the image and warps it
    once. An ICSTN sees the view it has so far, and composes its correction on the view's side of the warp, as in
    inverse composition: ``M <- M dM``. With ``"none"`` the view is the whole image, shrunk.

    Args:
        transformer: ``"none"``, ``"STN"`` or ``"ICSTN"``.
        scale: the size of the localiser.
        sampler: how the view is read.
        view: the side of the view.
        channels: the number of channels of the images.
        classes: the number of classes.
        count: the number N of networks.
    """

    # What the first convolution sees of each pixel of a view, resized; None where the view is too large for that.
    patches: Tensor | None

    def __init__(
        self, transformer: str, scale: Scale, sampler: Sampler, view: int, channels: int, classes: int, count: int = 1
    ) -> None:
        super().__init__()
        self.looks, self.recurrent, self.side = LOOKS[transformer], transformer == "ICSTN", scale.side
        self.sampler, self.view = sampler, view
        self.classify = nn.Sequential(
            nn.Flatten(2), Linear(count, channels * view**2, 128), nn.ReLU(), Linear(count, 128, classes)
        )
        self.localise = nn.Sequential()
        if self.looks:
            features = scale.features(count, channels)
            width = features(torch.zeros(1, count, channels, scale.side, scale.side)).flatten(2).shape[2]
            last = Linear(count, 48, 4)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.localise = nn.Sequential(
                *features, nn.ReLU(), nn.Flatten(2), Linear(count, width, 48), nn.ReLU(), last
            )
        self.register_buffer("patches", self._patches_of_pixels() if self.recurrent else None, persistent=False)

    def forward(self, canvas: Tensor, seen: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Scores of the classes ``(B, N, classes)``, and the warp from view to image ``(B, N, 3, 3)``.

        Args:
            canvas: the images to sample, as ``Sampler.prepare`` makes them, from 0 to 1, ``(B, N, C, H, W)``.
            seen: the images as the localiser of an STN sees them, ``(B, N, C, side, side)``.
            generators: the generator of each network's samples.
        """
        warp = torch.eye(3, device=canvas.device, dtype=canvas.dtype).expand(*canvas.shape[:2], 3, 3)
        localise = self._localise_view() if self.recurrent else self.localise
        for _ in range(self.looks):
            if self.recurrent:
                seen = self._look(canvas, warp, generators)
            warp = warp @ similarity(localise(seen))
        return self.classify(self._look(canvas, warp, generators)), warp

    def _look(self, canvas: Tensor, warp: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        theta = warp[:, :, :2]
        if not self.sampler.is_random:
            views = self.sampler.read(canvas.flatten(0, 1), theta.flatten(0, 1), SIZE, self.view, generators[0])
            return views.unflatten(0, theta.shape[:2])
        each = zip(canvas.unbind(1), theta.unbind(1), generators, strict=True)
        return torch.stack([self.sampler.read(c, t, SIZE, self.view, generator) for c, t, generator in each], 1)

    def _patches_of_pixels(self) -> Tensor | None:
        first = self.localise[0]
        assert isinstance(first, Conv2d)
        if self.view**2 > _LARGEST_VIEW * first.weight.shape[-1] ** 2:
            return None
        pixels = torch.eye(self.view**2).unflatten(1, (1, 1, self.view, self.view))
        return first.patches(_resize(pixels, self.side).flatten(0, 2))

    def _localise_view(self) -> Callable[[Tensor], Tensor]:
        """The localiser behind a resize of the view ``(B, N, C, view, view)`` to the side that it wants."""
        if self.patches is None:
            return lambda view: self.localise(_resize(view, self.side))
        first, others = self.localise[0], self.localise[1:]
        assert isinstance(first, Conv2d)
        convolve = first.behind(self.patches)
        return lambda view: others(convolve(view))


def similarity(parameters: Tensor) -> Tensor:
    """The matrices ``(..., 3, 3)`` of a rotation, the log2 of a scale and a translation, ``(..., 4)``."""
    angle, log2_scale, x, y = parameters.unbind(-1)
    scale = log2_scale.exp2()
    matrix = rotation_scale_matrix(angle, scale, scale, x, y)
    last = matrix.new_tensor([0.0, 0.0, 1.0]).expand(*matrix.shape[:-2], 1, 3)
    return torch.cat((matrix, last), -2)


def _paper_features(count: int, channels: int, last: int = 1024) -> nn.Sequential:
    """C4 C8 P C16 P C32 P C1024 of section 6.2, 7 x 7; padded, since without 50 pixels are too few for the last one."""
    pool = nn.MaxPool3d((1, 2, 2))  # of the pixels, not of the channels
    return nn.Sequential(
        *(Conv2d(count, channels, 4, 7, padding=3), nn.ReLU(), Conv2d(count, 4, 8, 7, padding=3), nn.ReLU(), pool),
        *(Conv2d(count, 8, 16, 7, padding=3), nn.ReLU(), pool),
        *(Conv2d(count, 16, 32, 7, padding=3), nn.ReLU(), pool),
        Conv2d(count, 32, last, 7, padding=3),
    )


def _small_features(count: int, channels: int) -> nn.Sequential:
    """C8 C16 with strides, by which the side falls from 25 to 7 and to 3."""
    return nn.Sequential(Conv2d(count, channels, 8, 7, stride=3), nn.ReLU(), Conv2d(count, 8, 16, 3, stride=2))


# `middle` has the paper's five convolutions, but sees half the side, and its last convolution has an eighth of the
# channels. That is a fifteenth of the multiplications of the paper's size; a CPU trains it in a night.
SCALES = {
    "small": Scale(side=25, features=_small_features, steps=20_000, patience=20_000, localiser_rate=5e-4),
    "middle": Scale(
        side=25, features=partial(_paper_features, last=128), steps=300_000, patience=40_000, localiser_rate=5e-4
    ),
    "paper": Scale(side=50, features=_paper_features, steps=300_000, patience=80_000, localiser_rate=1e-5),
}


def _resize(images: Tensor, side: int) -> Tensor:
    """Bilinear, of the last two axes of ``(B, N, C, h, w)``."""
    flat = images.flatten(0, 1)
    return F.interpolate(flat, (side, side), mode="bilinear", align_corners=False).unflatten(0, images.shape[:2])
