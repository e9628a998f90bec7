import numpy as np
import pytest
import torch
from camera import view
from hypothesis import settings as hypothesis_settings
from kornia.geometry import warp_perspective
from PIL import Image
from settings import KORNIA_TAKES_FLAG
from skimage import data

hypothesis_settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
hypothesis_settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tests of `device` run, for instance cuda")
    parser.addoption("--dtype", default="float32", help="in which type, for instance float64 or bfloat16")


def pytest_collection_modifyitems(items):
    """Leave out the example of what an older kornia cannot do."""
    if not KORNIA_TAKES_FLAG:
        items[:] = [item for item in items if not item.name.endswith("linearize_lafs")]


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request):
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A photo, and the same photo taken again turned by 0.2, 0.6 times as large: files and the truth."""
    folder = tmp_path_factory.mktemp("photos")
    source = data.chelsea()
    truth = torch.tensor([[[0.588, -0.119, 60.0], [0.119, 0.588, -15.0], [0.0, 0.0, 1.0]]])
    tensor = torch.from_numpy(source.copy()).permute(2, 0, 1)[None].float()
    target = warp_perspective(tensor, truth, (170, 250), padding_mode="reflection")[0].permute(1, 2, 0).byte().numpy()
    Image.fromarray(source).save(folder / "source.jpg", quality=95)
    Image.fromarray(target).save(folder / "target.png")
    return folder, truth[0]


@pytest.fixture(scope="session")
def drift():
    """Frames of a moving camera, ``(F, H, W)`` from 0 to 1, and the truth, frame to first frame ``(F, 3, 3)``."""
    offsets = [(0, 0), (7, -3), (12, 5), (17, 9), (24, 6), (28, 13)]  # in pixels of the photo, three to one of a frame
    frames = [view(90 + x, 60 + y, 83, 97) for x, y in offsets]
    truth = torch.eye(3, dtype=torch.float64).repeat(len(offsets), 1, 1)
    truth[:, :2, 2] = torch.tensor(offsets) / 3
    return np.stack(frames), truth


@pytest.fixture(scope="session")
def grey():
    """A grey image from 0 to 1, and the same scene 9 pixels further left and 5 further down."""
    return view(90, 75, 89, 101), view(90 + 27, 75 - 15, 89, 101)
