import pytest
import torch
from hypothesis import settings as hypothesis_settings
from settings import KORNIA_TAKES_FLAG

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
