"""The settings of the solvers: defaults, schedules, and errors for bad ones."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from kornia.geometry import warp_perspective
from scenes import DSIZE, MOTIONS, SIZE, about_centre, corner_error, draw_scene
from settings import paper

from lms_geometry import Adam, Annealed, GaussNewton, LinearizedSampling, Stage, register
from lms_geometry._kornia import homography_warp
from lms_geometry.registration import gauss_newton
from lms_geometry.registration.schedule import SEARCH


def test_sigma_falls_geometrically_and_then_the_intercept_is_dropped():
    annealed = Annealed(8.0, 0.5, paper(num_samples=5))
    settings = [annealed.at(share) for share in (0.0, 0.1875, 0.375, 0.75, 0.9)]
    assert [setting.sigma for setting in settings] == pytest.approx([8, 4, 2, 0.5, 0.5])
    assert [setting.intercept for setting in settings] == [True, True, True, False, False]
    assert all(setting.num_samples == 5 for setting in settings)
    assert not annealed.at(0.5, exact_from=0.5).intercept
    assert not Annealed(8.0, 0.5, paper(intercept=False)).at(0).intercept


def test_over_gives_the_settings_of_every_step_and_keeps_the_value_a_mean():
    annealed = Annealed(8.0, 0.5, paper(num_samples=5))
    samplings = list(annealed.over(12))
    assert [sampling.sigma for sampling in samplings] == [annealed.at(step / 12).sigma for step in range(12)]
    assert (samplings[0].sigma, samplings[-1].sigma) == (8.0, 0.5)
    assert all(sampling.intercept and sampling.num_samples == 5 for sampling in samplings)
    assert not any(sampling.intercept for sampling in Annealed(8.0, 0.5, paper(intercept=False)).over(3))


def test_solvers_are_values():
    assert GaussNewton(stages=SEARCH) == GaussNewton()
    assert len({GaussNewton(), GaussNewton(steps=60), Adam(), Adam(steps=9)}) == 3
    with pytest.raises(FrozenInstanceError):
        GaussNewton().steps = 3


def test_a_function_gets_the_images_the_homographies_the_size_and_the_step():
    source, calls = draw_scene(SIZE) + 3, []

    def sampler(image, homography, size, step):
        calls.append((torch.equal(image, source), homography.shape, size, step))
        return homography_warp(image, homography, size)

    register(source, draw_scene(DSIZE), solver=Adam(steps=3, sampler=sampler), overlap_only=True)
    assert calls == [(True, (1, 3, 3), DSIZE, step) for step in range(3)]


def test_the_stages_say_at_which_sizes_how_many_starts_move_which_parameters(monkeypatch):
    found = []

    def spy(problem, parameters, *others):
        equations = normal_equations(problem, parameters, *others)
        found.append((problem.source.shape[-2:], problem.target.shape[-2:], parameters.shape[1], parameters))
        return equations

    normal_equations = gauss_newton._normal_equations
    monkeypatch.setattr(gauss_newton, "_normal_equations", spy)
    source, target = draw_scene((60, 90)), draw_scene((30, 45))
    stages = Stage(0.2, 9, kept=2, free=2, source_ratio=3), Stage(0.4, None, kept=1, free=4)
    register(source, target, "homography", GaussNewton(steps=10, starts=4, stages=stages))
    assert [(tuple(size), tuple(dsize), starts) for size, dsize, starts, _ in found[:5]] == [
        ((18, 27), (6, 9), 4),
        ((18, 27), (6, 9), 4),
        ((60, 90), (30, 45), 2),
        ((60, 90), (30, 45), 2),
        ((60, 90), (30, 45), 1),
    ]
    first, second, third = (parameters for _, _, _, parameters in found[:3])
    assert (second != first).any(0).any(0).tolist() == [True, True] + [False] * 6
    assert (third[0, :, 4:] == 0).all()


def test_damping_shortens_a_step_and_a_wide_tolerance_ends_the_finish():
    source = draw_scene(SIZE)
    target = warp_perspective(source, about_centre(*MOTIONS["affine"], SIZE, DSIZE)[None], DSIZE)
    solver = GaussNewton(steps=12, starts=1)
    default, damped, early = (
        register(source, target, "affine", replace(solver, **changed))
        for changed in ({}, {"damping": 10.0}, {"tolerance": 10.0})
    )
    assert damped.displacement[0] < default.displacement[0] / 5
    assert early.converged.all()
    assert (early.displacement[9:] == 0).all()
    assert (default.displacement[9:] > 0).any()


def test_one_more_stage_does_no_harm():
    truth = about_centre(*MOTIONS["affine"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    stages = (replace(SEARCH[0], until=0.1, longest=16, kept=4), *SEARCH)
    found = register(source, target, solver=GaussNewton(stages=stages))
    assert corner_error(found.matrix, truth, DSIZE) < 0.01


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GaussNewton(steps=0), ValueError, "steps must be an int of at least 1, got 0"),
        (lambda: Adam(steps=2.5), ValueError, "steps must be an int of at least 1, got 2.5"),
        (lambda: GaussNewton(starts=0), ValueError, "starts must be an int from 1 to 8, got 0"),
        (lambda: GaussNewton(starts=9), ValueError, "starts must be an int from 1 to 8, got 9"),
        (lambda: GaussNewton(damping=0.0), ValueError, "damping must be a finite number above 0, got 0.0"),
        (lambda: GaussNewton(tolerance="small"), ValueError, "tolerance must be a finite number .* got 'small'"),
        (lambda: Adam(learning_rate="0.1"), ValueError, "learning_rate must be a finite number above 0, got '0.1'"),
        (lambda: Adam(learning_rate=-1.0), ValueError, "learning_rate must be a finite number above 0, got -1.0"),
        (lambda: Adam(sampler="nearest"), TypeError, "sampler must be an Annealed, .* or a function, got 'nearest'"),
        (lambda: Adam(sampler=np.zeros(3)), TypeError, "sampler must be an Annealed, .* or a function, got array"),
        (lambda: GaussNewton(sampler=None), TypeError, 'sampler must be an Annealed, .* or "bilinear", got None'),
        (
            lambda: Adam(sampler=LinearizedSampling.paper),
            TypeError,
            "sampler must be an Annealed, .*paper.*, which still has to be called",
        ),
        (lambda: GaussNewton(sampler=Annealed), TypeError, "which still has to be called"),
        (lambda: GaussNewton(sampler=homography_warp), TypeError, "sampler must give slopes, .* use Adam, got"),
        (lambda: GaussNewton(stages=[SEARCH[0]]), TypeError, "stages must be a tuple of at least one Stage, got"),
        (lambda: GaussNewton(stages=()), TypeError, r"stages must be a tuple of at least one Stage, got \(\)"),
        (lambda: GaussNewton(stages=SEARCH[::-1]), ValueError, "stages must have rising until and end with kept=1"),
        (lambda: GaussNewton(stages=SEARCH[:1]), ValueError, "stages must have rising until and end with kept=1"),
        (lambda: Annealed(8.0, 1.0).over(0), ValueError, "steps must be an int of at least 1, got 0"),
        (lambda: Annealed(8.0, 1.0).over(2.5), ValueError, "steps must be an int of at least 1, got 2.5"),
        (lambda: Annealed(8.0, 0.0), ValueError, "last must be a finite number above 0 and at most 100, got 0.0"),
        (lambda: Annealed(200.0, 1.0), ValueError, "first must be a finite number above 0 and at most 100, got 200.0"),
        (lambda: Annealed("a", 1.0), ValueError, "first must be a finite number .* got 'a'"),
        (lambda: Annealed(8.0, 1.0, "bilinear"), TypeError, "sampling must be a LinearizedSampling, got 'bilinear'"),
        (lambda: Stage(1.5, 32, 1, 5), ValueError, "until must be a finite number above 0 and at most 1, got 1.5"),
        (lambda: Stage(0.5, 0, 1, 5), ValueError, "longest must be an int of at least 1, got 0"),
        (lambda: Stage(0.5, 32, 0, 5), ValueError, "kept must be an int of at least 1, got 0"),
        (lambda: Stage(0.5, 32, 1, 0), ValueError, "free must be an int of at least 1, got 0"),
        (lambda: Stage(0.5, 32, 1, 5, 0), ValueError, "source_ratio must be a finite number above 0, got 0"),
    ],
)
def test_a_bad_setting_is_named_with_what_came_and_what_is_wanted(make, error, message):
    with pytest.raises(error, match=message):
        make()
