"""The spatial transformer of the hunt: a localiser, a sampler, and a classifier."""

import torch
from torch import Tensor, nn

from benchmarks.classification.samplers import Sampler

VIEW, CLASSES = 24, 43
# How many times smaller the localiser sees the photo.
_SHRUNK = 4
# The smallest scale of a view: the largest signs of the test just fit in.
_SMALLEST = 0.15
# What the heat is multiplied with before the softmax.
_SHARPNESS = 2.0


class Localiser(nn.Module):
    """Looks at a small photo and says where the view is: its scale and its centre, ``(B, 3)``.

    The centre is the mean position under a softmax over the photo (a soft argmax); the scale is read from the features
    there. So a sign is looked for in the same way wherever it is.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.AvgPool2d(_SHRUNK),
            nn.Conv2d(3, width, 6, 4, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.heat, self.scale = nn.Conv2d(width, 1, 1), nn.Linear(width, 1)
        nn.init.zeros_(self.scale.weight)
        nn.init.constant_(self.scale.bias, 0.5)

    def forward(self, photo: Tensor) -> Tensor:
        """The scales and the centres of the views."""
        features = self.features(photo)
        share = (_SHARPNESS * self.heat(features)).flatten(1).softmax(1)
        side = features.shape[-1]
        places = (2 * torch.arange(side) + 1) / side - 1
        y, x = torch.meshgrid(places, places, indexing="ij")
        centre = share @ torch.stack((x.flatten(), y.flatten()), 1)
        there = (features.flatten(2) @ share[:, :, None])[:, :, 0]
        return torch.cat((_SMALLEST + (1 - _SMALLEST) * self.scale(there).sigmoid(), centre), 1)


class Hunter(nn.Module):
    """Says where to look, reads the view and scores its class."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.localise = Localiser()
        self.classify = nn.Sequential(
            nn.GroupNorm(1, 3, eps=1e-3, affine=False),
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 36, 128),
            nn.ReLU(),
            nn.Linear(128, CLASSES),
        )

    def forward(self, photos: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The scores of the classes, and the scale and the centre of the views, ``(B, 3)``."""
        place = self.localise(photos)
        return self.classify(view(self.sampler, photos, place, generator)), place


def view(sampler: Sampler, photos: Tensor, place: Tensor, generator: torch.Generator) -> Tensor:
    """Views ``(B, 3, VIEW, VIEW)`` of a scale and a centre ``(B, 3)``."""
    scale, centre = place[:, :1, None], place[:, 1:, None]
    theta = torch.cat((scale * torch.eye(2), centre), 2)
    return sampler.read(sampler.prepare(photos, VIEW).float(), theta, photos.shape[-1], VIEW, generator)
