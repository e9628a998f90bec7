"""Starts from the images, the finish at full size, and what the result says about them."""

import sys

import pytest
import torch
from kornia.geometry import warp_perspective
from scenes import DSIZE, MOTIONS, SIZE, about_centre, corner_error, draw_scene
from skimage import data

from lms_geometry import Adam, GaussNewton, register

SIDES = (150, 190)


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(data.astronaut()[::2, ::2].copy()).permute(2, 0, 1)[None].float() / 255


def _seen(photo, angle, scale, shift, perspective=(0.0, 0.0)):
    """The photo through a turn in degrees and a scale about its centre, a shift in pixels, and a perspective."""
    turn = torch.deg2rad(torch.tensor(float(angle)))
    cos, sin = scale * turn.cos().item(), scale * turn.sin().item()
    truth = about_centre([[cos, -sin], [sin, cos]], list(shift), photo.shape[-2:], SIDES)
    truth[2, :2] = torch.tensor(perspective)
    return truth, warp_perspective(photo, truth[None], SIDES)


@pytest.mark.parametrize(
    ("start", "angle", "scale", "shift", "limit"),
    [
        ("features", 70, 0.8, (30, -20), 0.2),
        ("phase", 23, 0.7, (12, -8), 0.2),
        ("turns", 80, 0.85, (4, 3), 0.2),
        ("resize", 5, 0.75, (3, 2), 0.2),
    ],
)
def test_every_kind_of_start_finds_what_it_is_for(photo, start, angle, scale, shift, limit):
    pytest.importorskip("cv2")
    truth, target = _seen(photo, angle, scale, shift)
    found = register(
        photo, 0.7 * target + 0.1, "similarity", starts=(start,), generator=torch.Generator().manual_seed(0)
    )
    assert found.start == (start,)
    assert corner_error(found.matrix, truth, SIDES).item() < limit
    assert found.good.tolist() == [True]


def test_two_crops_that_share_half_of_a_photo_are_found():
    image = torch.from_numpy(data.coffee()[::2, ::2].copy()).permute(2, 0, 1)[None].float() / 255
    source, target = image[..., :150], image[..., 75:225]
    found = register(source, target, "translation", starts=("phase",))
    expected = torch.tensor([[[1.0, 0, -75], [0, 1, 0], [0, 0, 1]]])
    torch.testing.assert_close(found.matrix, expected, rtol=0, atol=0.05)
    assert found.overlap.item() == pytest.approx(0.5, abs=0.02)


def test_without_opencv_the_rest_works_and_the_result_says_what_was_not_tried(photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    truth, target = _seen(photo, 40, 0.8, (5, 3))
    found = register(photo, target, "similarity")
    assert corner_error(found.matrix, truth, SIDES).item() < 0.2
    assert found.not_tried == ("features: OpenCV is not installed: pip install 'lms_geometry[features]'",)
    with pytest.raises(ValueError, match=r"starts must leave a way to begin.*OpenCV is not installed"):
        register(photo, target, "similarity", starts=("features",))


def test_a_good_start_is_not_made_worse(photo):
    truth, target = _seen(photo, 100, 0.7, (20, -10), (6e-4, -4e-4))
    near = truth.clone()
    near[:2, 2] += torch.tensor([0.8, -0.6])
    found = register(photo, target, "homography", init=near[None])
    assert found.start == ("init",)
    assert corner_error(found.matrix, truth, SIDES).item() < 0.1


def test_the_negative_of_an_image_is_met(photo):
    truth, target = _seen(photo, 12, 0.8, (6, -4))
    options = {"fit_gain_bias": True, "loss": "huber", "overlap_only": True}
    found = register(photo, 1 - target, "affine", **options)
    assert corner_error(found.matrix, truth, SIDES).item() < 0.5


def test_structure_meets_what_is_reversed_in_parts(photo):
    truth, target = _seen(photo, 8, 0.75, (4, -4))
    grey = target.mean(1, keepdim=True)
    bands = (3.1 * grey * torch.pi).cos()  # brightness says nothing, and the sign changes from place to place
    found = register(photo, bands, "similarity", loss="structure")
    assert corner_error(found.matrix, truth, SIDES).item() < 1


def test_a_rigid_motion_turns_and_shifts_and_keeps_lengths(photo):
    truth, target = _seen(photo, 20, 1.0, (7, -5))
    found = register(photo, target, "rigid")
    assert corner_error(found.matrix, truth, SIDES).item() < 0.1
    linear = found.matrix[0, :2, :2]
    torch.testing.assert_close(linear @ linear.T, torch.eye(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_size", [None, 97])
def test_a_similarity_is_one_at_full_size_whatever_sizes_are_rounded_to(photo, max_size):
    source = photo[..., :251, :239]
    truth, target = _seen(source, 15, 0.7, (3, 2))
    found = register(source, target, "similarity", max_size=max_size)
    a, b, c, d = found.matrix[0, :2, :2].flatten().tolist()
    assert (a, b) == pytest.approx((d, -c), abs=1e-5)
    assert corner_error(found.matrix, truth, SIDES).item() < (0.1 if max_size is None else 0.5)


def test_of_equally_good_starts_the_unturned_one_is_returned():
    square = torch.zeros(1, 1, 64, 64)
    square[..., 20:44, 20:44] = 1
    for image in (square, torch.nn.functional.interpolate(square, (160, 160))):
        found = register(image, image, "similarity")
        torch.testing.assert_close(found.matrix[0], torch.eye(3), rtol=0, atol=0.05)


@pytest.mark.parametrize("solver", [GaussNewton(), Adam()], ids=["gauss-newton", "adam"])
@pytest.mark.parametrize("unit", [1e-5, 1e-8, 1e-10, 1e10])
def test_units_of_any_size_give_the_same_result(unit, solver):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    found = register(unit * source, unit * target, "similarity", solver)
    assert corner_error(found.matrix, truth, DSIZE).item() < 0.5


def test_the_scale_of_an_initial_homography_means_nothing():
    source = draw_scene(DSIZE)
    first, second = (
        register(
            source,
            source,
            "homography",
            GaussNewton(steps=4),
            init=scale * torch.eye(3)[None],
            generator=torch.Generator().manual_seed(0),
        ).matrix
        for scale in (1.0, 1e-38)
    )
    assert first.isfinite().all()
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"starts": True}, TypeError, 'starts must be None or a tuple with any of "resize".*got True'),
        ({"starts": "turns"}, TypeError, "starts must be None or a tuple.*got 'turns'"),
        ({"starts": 5}, TypeError, "starts must be None or a tuple.*got 5"),
        ({"starts": ("sift",)}, ValueError, r"starts must be a tuple with any of .*got \('sift',\)"),
        ({"starts": ()}, ValueError, r"starts must be a tuple with any of .*got \(\)"),
        ({"starts": ("turns",), "solver": Adam()}, ValueError, "starts are those of GaussNewton"),
        ({"max_size": True}, ValueError, "max_size must be None or an int of at least 8, in pixels, got True"),
        ({"max_size": 4}, ValueError, "max_size must be None or an int of at least 8, in pixels, got 4"),
    ],
)
def test_bad_starts_and_sizes_are_named(options, error, message):
    with pytest.raises(error, match=message):
        register(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), **options)


def test_a_count_is_no_truth_value():
    with pytest.raises(ValueError, match="starts must be an int from 1 to 8, got True"):
        GaussNewton(starts=True)
