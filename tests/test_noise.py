import pytest
import torch
from settings import paper

from lms_geometry import draw_noise


@pytest.mark.parametrize("pattern", ["gaussian", "whitened"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_has_one_draw_fewer_than_samples_for_every_output_pixel(pattern, dtype):
    noise = draw_noise(paper(num_samples=5, pattern=pattern), (7, 3), dtype=dtype)
    assert noise.shape == (4, 7, 3, 2)
    assert noise.dtype == dtype


def test_gaussian_noise_has_mean_0_and_covariance_1_over_the_image():
    noise = draw_noise(paper(), (101, 97)).flatten(0, 2)
    assert noise.mean(0).abs().max() < 0.02
    assert (noise.T.cov() - torch.eye(2)).abs().max() < 0.02


@pytest.mark.parametrize("num_samples", [4, 5, 8, 33])
def test_whitened_noise_has_mean_0_and_covariance_1_at_every_pixel(num_samples):
    sampling = paper(num_samples=num_samples, pattern="whitened")
    noise = draw_noise(sampling, (9, 11), dtype=torch.float64)
    covariance = torch.einsum("khwi,khwj->hwij", noise, noise) / (num_samples - 1)
    assert noise.mean(0).abs().max() < 1e-8
    assert (covariance - torch.eye(2)).abs().max() < 1e-8


def test_whitened_draws_point_everywhere():
    noise = draw_noise(paper(pattern="whitened"), (60, 60)).flatten(0, 2)
    angle = torch.atan2(noise[:, 1], noise[:, 0])
    share = torch.histc(angle, 8, -torch.pi, torch.pi) / len(angle)
    assert (share - 1 / 8).abs().max() < 0.01


def test_the_same_seed_gives_the_same_noise_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = (draw_noise(paper(), (4, 5), generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_one_is_used():
    torch.manual_seed(5)
    first = draw_noise(paper(), (4, 5))
    assert not torch.equal(first, draw_noise(paper(), (4, 5)))
    torch.manual_seed(5)
    assert torch.equal(first, draw_noise(paper(), (4, 5)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("paper", (4, 5)),
            TypeError,
            r"sampling must be a LinearizedSampling, got 'paper': pass LinearizedSampling\.paper\(\)",
        ),
        ((paper(), (4, 5, 6)), ValueError, r"size must be \(height, width\), .* got \(4, 5, 6\)"),
        ((paper(), (-1, 5)), ValueError, r"size must be \(height, width\), .* got \(-1, 5\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_noise(*arguments)


def test_an_integer_dtype_is_refused():
    with pytest.raises(TypeError, match="dtype must be a floating type, got float32"):
        draw_noise(paper(), (5, 6), dtype="float32")
    with pytest.raises(TypeError, match=r"dtype must be a floating type, got torch\.int64"):
        draw_noise(paper(), (4, 5), dtype=torch.int64)
