"""The paper's networks: a localiser, one look (STN) or several (ICSTN), and a classifier with one hidden layer."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor, nn

from benchmarks.classification.data import SIZE
from benchmarks.classification.samplers import Sampler
from lms_geometry.registration.motion import rotation_scale_matrix

LOOKS = {"none": 0, "STN": 1, "ICSTN": 4}


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Args:
        side: of the images that the localiser sees.
        steps: the most steps of training.
        patience: steps without a lower validation error after which training ends.
        localiser_rate: Adam's learning rate for the localiser; the classifier's is 1e-3.
    """

    side: int
    steps: int
    patience: int
    localiser_rate: float


SCALES = {
    "small": Scale(side=25, steps=20_000, patience=20_000, localiser_rate=5e-4),
    "paper": Scale(side=50, steps=300_000, patience=30_000, localiser_rate=1e-5),
}


class Network(nn.Module):
    """A classifier of the view that a spatial transformer chooses.

    The warp is a similarity: a rotation, the log2 of a scale, two translations. An STN sees the image and warps it
    once. An ICSTN sees the view it has so far, and composes its correction on the view's side of the warp, as in
    inverse composition: ``M <- M dM``. With ``"none"`` the view is the whole image, shrunk.

    Args:
        transformer: ``"none"``, ``"STN"`` or ``"ICSTN"``.
        scale: the size of the localiser.
        sampler: how the view is read.
        view: the side of the view.
        channels: of the images.
        classes: how many.
    """

    def __init__(
        self, transformer: str, scale: Scale, sampler: Sampler, view: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.looks, self.recurrent, self.side = LOOKS[transformer], transformer == "ICSTN", scale.side
        self.sampler, self.view = sampler, view
        self.classify = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * view**2, 128), nn.ReLU(), nn.Linear(128, classes)
        )
        self.localise = nn.Sequential()
        if self.looks:
            features = _paper_features(channels) if scale.side == SIZE else _small_features(channels)
            width = features(torch.zeros(1, channels, scale.side, scale.side)).numel()
            last = nn.Linear(48, 4)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.localise = nn.Sequential(*features, nn.ReLU(), nn.Flatten(), nn.Linear(width, 48), nn.ReLU(), last)
            # It halves the time of the convolutions on a CPU.
            self.localise.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, canvas: Tensor, seen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scores of the classes ``(B, classes)``, and the warp from view to image ``(B, 3, 3)``.

        Args:
            canvas: the images to sample, as ``Sampler.prepare`` makes them, from 0 to 1.
            seen: the images as the localiser of an STN sees them, ``(B, C, side, side)``.
            generator: of the samples.
        """
        warp = torch.eye(3, device=canvas.device).repeat(len(canvas), 1, 1)
        for _ in range(self.looks):
            if self.recurrent:
                seen = _resize(self._look(canvas, warp, generator), self.side)
            seen = seen.contiguous(memory_format=torch.channels_last)
            warp = warp @ similarity(self.localise(seen))
        return self.classify(self._look(canvas, warp, generator)), warp

    def _look(self, canvas: Tensor, warp: Tensor, generator: torch.Generator) -> Tensor:
        return self.sampler.read(canvas, warp[:, :2], SIZE, self.view, generator)


def similarity(parameters: Tensor) -> Tensor:
    """Rotation, log2 of the scale and translation ``(B, 4)`` as matrices ``(B, 3, 3)``."""
    angle, log2_scale, x, y = parameters.unbind(-1)
    scale = log2_scale.exp2()
    return convert_affinematrix_to_homography(rotation_scale_matrix(angle, scale, scale, x, y))


def _paper_features(channels: int) -> nn.Sequential:
    """C4 C8 P C16 P C32 P C1024 of section 6.2, 7 x 7. Padded, for without 50 pixels are too few for the last one."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 4, 7, padding=3), nn.ReLU(), nn.Conv2d(4, 8, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(32, 1024, 7, padding=3),
    )


def _small_features(channels: int) -> nn.Sequential:
    """C8 C16 with strides: 25 pixels become 7, become 3."""
    return nn.Sequential(nn.Conv2d(channels, 8, 7, stride=3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2))


def _resize(image: Tensor, side: int) -> Tensor:
    image = image.contiguous(memory_format=torch.channels_last)
    return F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
