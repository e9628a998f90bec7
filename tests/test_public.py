import subprocess
import sys

import lms_geometry

PUBLIC = [
    "Adam",
    "Annealed",
    "GaussNewton",
    "LinearizedGridSample",
    "LinearizedHomographyWarper",
    "LinearizedRoIAlign",
    "LinearizedSampling",
    "Registration",
    "Stage",
    "Transform",
    "draw_noise",
    "grid_sample_linearized",
    "grid_sample_value_and_slope",
    "homography_warp_linearized",
    "register",
    "remap_linearized",
    "roi_align_linearized",
    "warp_affine_linearized",
    "warp_perspective_linearized",
]


def test_the_public_names_are_these():
    assert sorted(lms_geometry.__all__) == PUBLIC
    assert all(hasattr(lms_geometry, name) for name in PUBLIC)


def test_importing_warns_of_nothing_and_pulls_in_no_extra():
    code = (
        "import sys, torch, kornia, warnings; warnings.simplefilter('error');"
        "import lms_geometry, lms_geometry.integrations;"
        "print([m for m in ('matplotlib', 'skimage', 'PIL', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_every_public_name_has_an_example():
    for name in PUBLIC:
        thing = getattr(lms_geometry, name)
        assert "Args:" in thing.__doc__, name
        assert "Example:" in thing.__doc__, name
