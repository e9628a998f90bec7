import pytest
import torch
import torch.nn.functional as F
from kornia.geometry import warp_perspective
from scenes import DSIZE, MOTIONS, SIZE, about_centre, corner_error, draw_scene, overlapping_crops
from settings import paper

from lms_geometry import Adam, Annealed, GaussNewton, LinearizedSampling, register
from lms_geometry._kornia import homography_warp


@pytest.mark.parametrize("motion", [*MOTIONS, "homography"])
def test_it_recovers_a_known_motion_between_images_of_unequal_size(motion):
    linear, shift = MOTIONS[motion if motion in MOTIONS else "similarity"]
    if motion == "anisotropic":  # scales along the target's axes first, then a turn
        angle = torch.tensor(0.25)
        turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        linear = torch.linalg.inv(turn @ torch.diag(torch.tensor([2.4, 3.6]))).tolist()
    truth = about_centre(linear, shift, SIZE, DSIZE)
    if motion == "homography":
        truth[2, :2] = torch.tensor([0.0008, -0.0006])
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    found = register(source, target, motion)
    assert corner_error(found.matrix, truth, DSIZE).item() < 0.5
    warped = warp_perspective(source, found.matrix, target.shape[-2:])
    assert (warped - target).square().mean() < 1e-4
    assert found.loss[-1].item() < 0.02 * found.loss[0].item()


def test_a_whole_batch_is_aligned_at_once_and_each_image_on_its_own():
    """An image's result does not depend on what else is in the batch."""
    source = torch.cat((draw_scene(SIZE, 0), draw_scene(SIZE, 1)))
    truths = torch.stack(
        [about_centre(*MOTIONS["similarity"], SIZE, DSIZE), about_centre(*MOTIONS["affine"], SIZE, DSIZE)]
    )
    target = warp_perspective(source, truths, DSIZE)
    together = register(source, target)
    assert (corner_error(together.matrix, truths, DSIZE) < 0.5).all()
    alone = register(source[1:], target[1:])
    torch.testing.assert_close(together.matrix[1:], alone.matrix, rtol=1e-2, atol=1e-2)


def test_one_source_serves_many_targets():
    source = draw_scene(SIZE)
    truths = torch.stack(
        [about_centre([[1 / 3, 0.0], [0.0, 1 / 3]], shift, SIZE, DSIZE) for shift in ([2.0, 1.0], [-3.0, 0.0])]
    )
    target = warp_perspective(source.expand(2, -1, -1, -1), truths, DSIZE)
    found = register(source, target, "translation")
    assert (corner_error(found.matrix, truths, DSIZE) < 0.5).all()


@pytest.mark.parametrize("grey", ["source", "target"])
def test_a_grey_image_is_aligned_with_the_mean_of_the_others_channels(grey):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    both = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    one = (both[0], target) if grey == "source" else (source, both[1])
    found, expected = (register(*images, "similarity").matrix for images in (one, both))
    assert torch.equal(found, expected)
    assert corner_error(found, truth, DSIZE) < 0.1


def test_the_start_is_the_plain_resize_and_the_path_begins_there():
    source = draw_scene(SIZE)
    found = register(source, F.interpolate(source, DSIZE), solver=GaussNewton(steps=3))
    expected = torch.tensor([[1 / 3, 0.0, -1 / 3], [0.0, 1 / 3, -1 / 3], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found.path[0, 0], expected)
    assert torch.equal(found.matrix, found.path[-1])
    assert found.loss.shape == (3, 1)
    assert found.displacement.shape == (3, 1)
    assert found.path.shape == (4, 1, 3, 3)


def test_an_initial_matrix_is_where_it_starts():
    truth = about_centre([[0.05, -0.4], [0.4, 0.05]], [0.0, 0.0], SIZE, DSIZE)[None]
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth, DSIZE)
    init = truth.clone()
    init[:, :2, 2] += torch.tensor([2.0, -1.0])
    found = register(source, target, "similarity", init=init)
    torch.testing.assert_close(found.path[0], init, rtol=1e-4, atol=1e-4)
    assert corner_error(found.matrix, truth, DSIZE).item() < 0.5


def test_displacement_is_how_far_the_corners_moved():
    source = draw_scene(SIZE)
    target = warp_perspective(source, about_centre(*MOTIONS["similarity"], SIZE, DSIZE)[None], DSIZE)
    found = register(source, target, "similarity", GaussNewton(steps=5))
    for step in range(5):
        corners = torch.tensor(
            [[0.0, 0, 1], [DSIZE[1] - 1, 0, 1], [0, DSIZE[0] - 1, 1], [DSIZE[1] - 1, DSIZE[0] - 1, 1]]
        )
        before, after = ((torch.linalg.inv(matrix) @ corners.T)[:, :2].mT for matrix in found.path[step : step + 2])
        expected = (after - before).norm(dim=-1).mean(-1)
        torch.testing.assert_close(found.displacement[step], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", [GaussNewton, Adam])
@pytest.mark.parametrize("sampler", [None, LinearizedSampling.paper()], ids=["default", "drawn"])
def test_a_result_repeats_and_the_global_generator_is_left_alone(sampler, solver):
    """The default draws nothing. What is drawn comes from the generator that is given."""
    source = draw_scene(SIZE)
    target = F.interpolate(source, DSIZE)
    settings = {} if sampler is None else {"sampler": sampler}
    state, paths = torch.get_rng_state(), []
    for seed in (4, 4, 5):
        given = {} if sampler is None else {"generator": torch.Generator().manual_seed(seed)}
        paths.append(register(source, target, solver=solver(steps=5, **settings), **given).path)
    assert torch.equal(paths[0], paths[1])
    assert torch.equal(paths[0], paths[2]) == (sampler is None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "sampler",
    [
        "bilinear",
        lambda source, homography, size, step: homography_warp(source, homography, size),
        LinearizedSampling.paper(),
        paper(intercept=False),
    ],
)
def test_any_sampler_may_be_used(sampler):
    source = draw_scene(SIZE)
    truth = about_centre([[1 / 3, 0.0], [0.0, 1 / 3]], [1.0, -0.7], SIZE, DSIZE)[None]
    target = warp_perspective(source, truth, DSIZE)
    solver = Adam(sampler=sampler)
    found = register(source, target, "translation", solver, generator=torch.Generator().manual_seed(0))
    assert corner_error(found.matrix, truth, DSIZE).item() < 2


def test_adam_changes_its_sampling_only_if_it_is_annealed(monkeypatch):
    from lms_geometry.registration import adam

    seen = []

    def spy(*arguments, sampling, **options):
        seen.append((round(sampling.sigma, 4), sampling.intercept))
        return registration_warp(*arguments, sampling=sampling, **options)

    registration_warp = adam.homography_warp_linearized
    monkeypatch.setattr(adam, "homography_warp_linearized", spy)
    source, target = draw_scene(SIZE), draw_scene(DSIZE)
    register(source, target, solver=Adam(steps=4, sampler=paper(sigma=2.0)))
    assert seen == [(2.0, True)] * 4
    seen.clear()
    register(source, target, solver=Adam(steps=4, sampler=Annealed(8.0, 1.0, paper(sigma=2.0))))
    assert seen == [(8.0, True), (4.0, True), (2.0, True), (1.0, False)]


def test_it_works_where_gradients_are_off_and_under_autocast():
    source = draw_scene(SIZE)
    target = F.interpolate(source, DSIZE)
    plain = register(source, target, solver=GaussNewton(steps=3))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        other = register(source, target, solver=GaussNewton(steps=3))
    assert torch.equal(plain.path, other.path)


@pytest.mark.parametrize("solver", [Adam(steps=2), GaussNewton(steps=2, sampler="bilinear")])
def test_what_needs_gradients_says_so_in_inference_mode(solver):
    with torch.inference_mode():
        assert register(A, D, solver=GaussNewton(steps=2)).matrix.isfinite().all()
        with pytest.raises(RuntimeError, match=r'Adam .* "bilinear" need gradients.* use torch\.no_grad\(\)'):
            register(A, D, solver=solver)


def test_results_may_be_compared_and_are_equal_to_themselves_alone():
    first, second = (register(A, D, solver=GaussNewton(steps=1)) for _ in range(2))
    assert first == first
    assert first != second
    assert len({first, second}) == 2


def test_progress_shows_a_bar(capsys):
    register(draw_scene(SIZE), draw_scene(DSIZE), solver=GaussNewton(steps=2), progress=True)
    assert "register: 100%" in capsys.readouterr().err


A, D = torch.rand(2, 3, 16, 18), torch.rand(2, 3, 8, 9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: register(A[0], D), ValueError, r"source must have shape \(B, C, H, W\), got \(3, 16, 18\)"),
        (lambda: register(A, D[:, :2]), ValueError, "target must have source's 3 channels or either 1, got 2"),
        (
            lambda: register(A.byte(), D),
            TypeError,
            r"source must have a floating dtype of 16, 32 or 64 bits, got torch\.uint8",
        ),
        (
            lambda: register(A, D.double()),
            TypeError,
            r"target must have source's dtype torch\.float32, got torch\.float64",
        ),
        (
            lambda: register(A.repeat(2, 1, 1, 1)[:3], D),
            ValueError,
            "target must have batch size 1 or source's 3, got 2",
        ),
        (lambda: register(A[:, :, :0], D), ValueError, r"source must not be empty, got \(2, 3, 0, 18\)"),
        (lambda: register(A * torch.nan, D), ValueError, "source must be finite"),
        (lambda: register(A, D * 1e25), ValueError, "target must be at most 1e\\+15 in size, got .*e\\+2"),
        (lambda: register(A, D, "elastic"), ValueError, "motion must be one of .* got 'elastic'"),
        (lambda: register(A, D, "affine", "adam"), TypeError, "solver must be a GaussNewton or an Adam.* got 'adam'"),
        (lambda: register(A, D, solver=GaussNewton), TypeError, r"such as GaussNewton\(\), got <class"),
        (lambda: register(A, D, init=torch.eye(3)), ValueError, r"init must have shape \(B, 3, 3\), got \(3, 3\)"),
        (
            lambda: register(A, D, init=torch.eye(3).repeat(3, 1, 1)),
            ValueError,
            "init must have batch size 1 or the images' 2, got 3",
        ),
        (lambda: register(A, D, init=torch.zeros(1, 3, 3)), ValueError, "init must be finite and invertible"),
        (
            lambda: register(A, D, init=torch.eye(3).double()[None] + 1e9),
            ValueError,
            r"init must be finite and invertible in torch\.float32",
        ),
    ],
)
def test_bad_arguments_are_named_with_what_came_and_what_is_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _turned_by(degrees):
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin = angle.cos().item() / 3, angle.sin().item() / 3
    return about_centre([[cos, -sin], [sin, cos]], [0.5, -0.5], SIZE, DSIZE)


def test_more_starts_find_a_turn_that_one_does_not():
    source, truth = draw_scene(SIZE, 3), _turned_by(100)
    target = warp_perspective(source, truth[None], DSIZE)
    errors = {}
    for starts in (1, 5):
        solver = GaussNewton(starts=starts)
        found = register(source, target, "similarity", solver)
        errors[starts] = corner_error(found.matrix, truth, DSIZE).item()
    assert errors[5] < 0.1
    assert errors[1] > 5


def test_gauss_newton_ends_nearer_than_adam_in_fewer_steps():
    truth = about_centre(*MOTIONS["affine"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    errors = {}
    for name, solver in (("gauss-newton", GaussNewton()), ("adam", Adam())):
        found = register(source, target, solver=solver)
        errors[name] = corner_error(found.matrix, truth, DSIZE).item()
    assert errors["gauss-newton"] < 0.01
    assert errors["gauss-newton"] < errors["adam"] / 5


@pytest.mark.parametrize(
    "sampler",
    [
        LinearizedSampling(),
        LinearizedSampling(slope="plane"),
        LinearizedSampling.paper(),
        Annealed(4.0, 0.29, LinearizedSampling()),
        "bilinear",
    ],
    ids=["default", "plane", "drawn", "annealed", "bilinear"],
)
@pytest.mark.parametrize("solver", [GaussNewton, Adam])
def test_every_sampler_of_a_solver_draws_near(solver, sampler):
    source, truth = draw_scene(SIZE), about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    init = truth[None] @ torch.tensor([[1.0, 0.0, 1.5], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    found = register(source, target, "similarity", solver(sampler=sampler), init=init, generator=generator)
    assert corner_error(found.matrix, truth, DSIZE).item() < 0.5 * corner_error(init, truth, DSIZE).item()


@pytest.mark.parametrize("overlap_only", [False, True])
@pytest.mark.parametrize("sampler", ["bilinear", Adam().sampler], ids=["bilinear", "annealed"])
def test_adam_works_on_images_of_max_size(overlap_only, sampler):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    options = {"max_size": max(DSIZE) // 2, "overlap_only": overlap_only}
    init = truth[None] @ torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.5], [0.0, 0.0, 1.0]])
    found = register(source, target, "similarity", Adam(sampler=sampler), init=init, **options)
    assert corner_error(found.matrix, truth, DSIZE).item() < 0.2 * corner_error(init, truth, DSIZE).item()


def test_a_converged_image_stands_still():
    source = draw_scene(SIZE)
    target = warp_perspective(source, about_centre(*MOTIONS["similarity"], SIZE, DSIZE)[None], DSIZE)
    found = register(source, target, "similarity")
    assert found.converged.tolist() == [True]
    assert found.displacement[-1].item() == 0
    assert found.loss.isfinite().all()
    short = register(source, target, "similarity", GaussNewton(steps=2))
    assert short.converged.tolist() == [False]


def test_in_the_finish_the_loss_never_rises():
    source = draw_scene(SIZE)
    target = warp_perspective(source, about_centre(*MOTIONS["similarity"], SIZE, DSIZE)[None], DSIZE)
    target = target + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    found = register(source, target)
    assert (found.loss[45:].diff(dim=0) <= 0).all()


@pytest.mark.parametrize("solver", [GaussNewton(), Adam()], ids=["gauss-newton", "adam"])
def test_a_gain_and_a_bias_are_fitted_when_asked(solver):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = 0.6 * warp_perspective(source, truth[None], DSIZE) + 0.25
    errors = {}
    for fit in (False, True):
        found = register(source, target, "similarity", solver, fit_gain_bias=fit)
        errors[fit] = corner_error(found.matrix, truth, DSIZE).item()
    assert errors[True] < 0.2
    assert errors[True] < errors[False] / 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", [GaussNewton(), Adam()], ids=["gauss-newton", "adam"])
def test_half_precision_is_worked_on_in_float32(dtype, solver):
    source = draw_scene(SIZE)
    target = warp_perspective(source, about_centre(*MOTIONS["similarity"], SIZE, DSIZE)[None], DSIZE)
    pair = source.to(dtype), target.to(dtype)
    found, expected = (register(*images, "similarity", solver) for images in (pair, [i.float() for i in pair]))
    assert torch.equal(found.matrix, expected.matrix)
    assert found.warp().dtype == dtype


@pytest.mark.parametrize("options", [{"loss": "structure"}, {"loss": "huber", "fit_gain_bias": True}])
def test_a_match_of_reversed_contrast_is_good(options):
    source, target, truth = overlapping_crops()
    found = register(1 - source, target, "translation", overlap_only=True, **options)
    assert (found.matrix - truth).abs().max() < 0.1
    assert found.good.item()


def test_adam_compares_edges_where_structure_is_asked_for():
    """One half of the target is a negative, so that no gain and bias fit it."""
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    target[..., : DSIZE[1] // 2] = 1 - target[..., : DSIZE[1] // 2]
    errors = {}
    for loss in ("structure", "huber"):
        found = register(source, target, "similarity", Adam(), loss=loss, fit_gain_bias=True)
        errors[loss] = corner_error(found.matrix, truth, DSIZE).item()
    assert errors["structure"] < 1
    assert errors["structure"] < errors["huber"] / 3


def test_hubers_loss_is_pulled_less_by_a_hidden_patch():
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    target[..., 6:14, 8:17] = torch.tensor([0.9, 0.1, 0.4])[:, None, None]
    errors = {}
    for loss in ("squared", "huber"):
        found = register(source, target, "similarity", loss=loss)
        errors[loss] = corner_error(found.matrix, truth, DSIZE).item()
    assert errors["huber"] < 0.5
    assert errors["huber"] < errors["squared"] / 2


def test_an_image_that_adam_leads_away_does_not_end_its_batch():
    source, target = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 8, 8)
    for motion, rate in (("affine", 300.0), ("homography", 30.0)):
        solver = Adam(steps=20, learning_rate=rate)
        score = register(source, target, motion, solver).score
        assert ((score >= 0) & (score <= 1)).all()


def test_the_score_tells_a_match_from_none():
    source = torch.cat((draw_scene(SIZE, 0), draw_scene(SIZE, 0)))
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    target = torch.cat((warp_perspective(source[:1], truth[None], DSIZE), torch.rand(1, 3, *DSIZE)))
    found = register(source, target, "similarity")
    assert found.score[0] > 0.99
    assert found.score[1] < 0.7


@pytest.mark.parametrize("solver", [GaussNewton(steps=12), Adam(steps=3)], ids=["gauss-newton", "adam"])
@pytest.mark.parametrize("motion", ["similarity", "homography"])
def test_finite_images_give_finite_results(motion, solver):
    blank, dot = (torch.zeros(1, 1, 9, 11), torch.ones(1, 1, 5, 4)), (torch.rand(1, 1, 1, 1), A[:1, :1])
    line, bright = (torch.rand(1, 1, 2, 1), torch.rand(1, 1, 1, 7)), (5e5 * A[:1, :1], torch.zeros(1, 1, 5, 4))
    robust = {"fit_gain_bias": True, "loss": "huber", "overlap_only": True}
    structure = {"fit_gain_bias": True, "loss": "structure"}
    for (source, target), options in ((blank, robust), (dot, robust), (line, {}), (bright, {}), (bright, structure)):
        found = register(source, target, motion, solver, **options)
        for result in (found.matrix, found.score, found.displacement, found.path):
            assert result.isfinite().all()


@pytest.mark.parametrize("level", [0.3, 1.0, 255.0])
def test_a_blank_pair_leaves_the_rest_of_its_batch_alone(level):
    source = draw_scene(SIZE)
    target = 0.6 * warp_perspective(source, about_centre(*MOTIONS["similarity"], SIZE, DSIZE)[None], DSIZE) + 0.25
    sources, targets = (torch.cat((image, torch.full_like(image, level))) for image in (source, target))
    together, alone = (
        register(*pair, "similarity", fit_gain_bias=True) for pair in ((sources, targets), (source, target))
    )
    torch.testing.assert_close(together.matrix[:1], alone.matrix)
    assert together.matrix.isfinite().all()
    assert together.score[1] < 0.01


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "l1"}, ValueError, "loss must be one of .* got 'l1'"),
        (
            {"target_mask": torch.ones(1, 1, 3, 3)},
            ValueError,
            r"target_mask must have shape \(B, 1, 8, 9\), got \(1, 1, 3, 3\)",
        ),
        ({"source_mask": torch.ones(3, 1, 16, 18)}, ValueError, "source_mask must have batch size 1 or the images' 2"),
        ({"source_mask": torch.full((1, 1, 16, 18), 0.5)}, ValueError, "source_mask must be above 0.99 somewhere"),
        ({"target_mask": torch.zeros(1, 1, 8, 9)}, ValueError, "target_mask must be above 0 somewhere in every image"),
        ({"overlap_only": "no"}, TypeError, "overlap_only must be True or False, got 'no'"),
        ({"fit_gain_bias": 1}, TypeError, "fit_gain_bias must be True or False, got 1"),
        ({"progress": (2, 3)}, TypeError, r"progress must be True or False, got \(2, 3\)"),
        ({"source_mask": torch.full((1, 1, 16, 18), 2.0)}, ValueError, "source_mask must lie between 0 and 1"),
        (
            {"loss": "structure", "solver": Adam(sampler=lambda image, *_: image)},
            ValueError,
            "loss='structure' compares edges, and a function as solver.sampler is given the images: use a sampler",
        ),
    ],
)
def test_a_bad_way_to_compare_the_images_is_named(options, error, message):
    with pytest.raises(error, match=message):
        register(A, D, **options)
