import dataclasses
import pickle

import pytest
from settings import paper

from lms_geometry import LinearizedSampling


def test_the_papers_settings_are_those_of_its_text():
    wanted = (8, 1.0, 1.0, 1e-3, True, True, "gaussian", "plane")
    assert dataclasses.astuple(LinearizedSampling.paper()) == wanted


def test_the_defaults_are_fixed_points_over_the_pixels_area():
    default = LinearizedSampling()
    assert dataclasses.astuple(default) == (9, 12**-0.5, 0.0, 1e-3, True, False, "fixed", "edges")
    assert not default.is_drawn
    assert default.averaging == (3, 1.0, "edges")
    assert LinearizedSampling(num_samples=25, sigma=12**-0.5 * 2, slope="plane").averaging == (5, 2.0, "plane")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 8}, "num_samples must be a square, such as 4, 9 or 16, for fixed points, got 8"),
        ({"num_samples": 1}, "num_samples must be a square"),
        ({"num_samples": -4}, "num_samples must be a square"),
        ({"jitter": 1.0}, "jitter must be 0 for fixed points, got 1.0: it is a setting of drawn samples"),
        ({"mask_out_of_bounds": True}, "mask_out_of_bounds must be False for fixed points"),
        ({"pattern": "whitened"}, "slope must be 'plane' for whitened samples, got 'edges'"),
        ({"slope": "corner"}, r"slope must be one of \('edges', 'plane'\), got 'corner'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearizedSampling(**settings)


def test_settings_are_frozen_hashable_and_picklable():
    sampling = paper(num_samples=5, pattern="whitened")
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.sigma = 2.0
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    assert len({sampling, dataclasses.replace(sampling)}) == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_samples": 2}, ValueError, "num_samples must be at least 3 for gaussian samples, got 2"),
        (
            {"num_samples": 3, "pattern": "whitened"},
            ValueError,
            "num_samples must be at least 4 for whitened samples, got 3",
        ),
        ({"num_samples": 8.0}, TypeError, "num_samples must be an int, got 8.0"),
        ({"num_samples": True}, TypeError, "num_samples must be an int, got True"),
        ({"sigma": -1.0}, ValueError, "sigma must be finite and not negative, got -1.0"),
        ({"sigma": float("nan")}, ValueError, "sigma must be finite and not negative, got nan"),
        ({"sigma": "1"}, TypeError, "sigma must be a number, got '1'"),
        ({"jitter": float("inf")}, ValueError, "jitter must be finite and not negative, got inf"),
        ({"ridge": 0.0}, ValueError, "ridge must be at least 1e-09, got 0.0"),
        ({"ridge": 1e-10}, ValueError, "ridge must be at least 1e-09, got 1e-10"),
        ({"ridge": 9e-5}, ValueError, "ridge must be at least 0.0001 with mask_out_of_bounds or 3 samples, got 9e-05"),
        (
            {"ridge": 9e-5, "mask_out_of_bounds": False, "num_samples": 3},
            ValueError,
            "ridge must be at least 0.0001 with mask_out_of_bounds or 3 samples, got 9e-05",
        ),
        ({"sigma": 101.0}, ValueError, "sigma must be at most 100, got 101.0"),
        ({"jitter": 1e10}, ValueError, "jitter must be at most 100, got 10000000000.0"),
        ({"ridge": -1e-3}, ValueError, "ridge must be finite and not negative, got -0.001"),
        ({"sigma": 0, "jitter": 0}, ValueError, "sigma and jitter must not both be 0"),
        ({"intercept": 1}, TypeError, "intercept must be True or False, got 1"),
        ({"mask_out_of_bounds": None}, TypeError, "mask_out_of_bounds must be True or False, got None"),
        ({"pattern": "uniform"}, ValueError, "pattern must be one of .* got 'uniform'"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        paper(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_samples": 3},
        {"num_samples": 4, "pattern": "whitened"},
        {"sigma": 0},
        {"jitter": 0},
        {"sigma": 100},
        {"jitter": 100},
        {"ridge": 1e-4},
        {"ridge": 1e-9, "mask_out_of_bounds": False},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(settings):
    assert paper(**settings) != paper()
