"""What callers pass that is unusual: arguments that torch, kornia and torchvision take are taken, others are named."""

import inspect

import cpu_torchvision  # noqa: F401
import kornia.geometry as kornia_geometry
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from settings import paper
from torchvision import ops

import lms_geometry
from lms_geometry import (
    LinearizedGridSample,
    LinearizedHomographyWarper,
    LinearizedRoIAlign,
    LinearizedSampling,
    draw_noise,
    grid_sample_linearized,
    grid_sample_value_and_slope,
    homography_warp_linearized,
    remap_linearized,
    roi_align_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)

every_sampling = pytest.mark.parametrize("sampling", [None, paper(), paper(intercept=False)])


def calls(image):
    """Every function that samples an image, by name, as a function of the image and of options."""
    grid = (0.9 * torch.rand(2, 4, 5, 2) - 0.4).to(image).requires_grad_()
    matrix = torch.eye(3).repeat(2, 1, 1).to(image).requires_grad_()
    maps = torch.rand(2, 4, 5).to(image).requires_grad_()
    boxes = torch.tensor([[0, 1.0, 1.0, 5.0, 6.0], [1, 0.0, 2.0, 7.0, 3.0]]).to(image).requires_grad_()
    return {
        "grid_sample_linearized": lambda **options: grid_sample_linearized(image, grid, **options),
        "grid_sample_value_and_slope": lambda **options: grid_sample_value_and_slope(image, grid, **options)[0],
        "warp_affine_linearized": lambda **options: warp_affine_linearized(image, matrix[:, :2], (4, 5), **options),
        "warp_perspective_linearized": lambda **options: warp_perspective_linearized(image, matrix, (4, 5), **options),
        "homography_warp_linearized": lambda **options: homography_warp_linearized(image, matrix, (4, 5), **options),
        "remap_linearized": lambda **options: remap_linearized(image, maps, maps, **options),
        "roi_align_linearized": lambda **options: roi_align_linearized(image, boxes, (4, 5), **options),
    }


NAMES = list(calls(torch.rand(2, 3, 8, 9)))


def test_every_function_that_samples_is_among_these():
    assert sorted(NAMES) == sorted(n for n in lms_geometry.__all__ if n.endswith(("_linearized", "_and_slope")))


@every_sampling
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"padding_mode": "fill", "fill_value": torch.rand(1)}])
def test_an_image_without_channels_gives_one_without(name, sampling, options):
    image = torch.rand(2, 0, 8, 9, requires_grad=True)
    call = calls(image)[name]
    if not set(options) <= set(inspect.signature(getattr(lms_geometry, name)).parameters):
        pytest.skip("no such option")
    out = call(sampling=sampling, **options)
    assert out.shape == (2, 0, 4, 5)
    if out.requires_grad:
        assert torch.autograd.grad(out.sum(), image)[0].shape == image.shape


def test_torch_kornia_and_torchvision_take_images_without_channels_too():
    image, grid = torch.rand(2, 0, 5, 5), torch.zeros(2, 3, 3, 2)
    assert F.grid_sample(image, grid, align_corners=False).shape == grid_sample_linearized(image, grid).shape
    boxes = torch.tensor([[0, 1.0, 1.0, 3.0, 4.0]])
    assert ops.roi_align(image, boxes, 3).shape == roi_align_linearized(image, boxes, 3).shape
    none = torch.rand(0, 3, 5, 5), torch.zeros(0, 5)
    assert ops.roi_align(*none, 3).shape == roi_align_linearized(*none, 3).shape == (0, 3, 3, 3)
    assert roi_align_linearized(none[0], [], 3).shape == (0, 3, 3, 3)


@every_sampling
@pytest.mark.parametrize("normalized_homography", [True, False])
def test_homographies_may_have_an_axis_more_as_kornia_documents_them(sampling, normalized_homography):
    image, M = torch.rand(2, 3, 8, 9), torch.eye(3).repeat(2, 1, 1) + 0.05 * torch.rand(2, 3, 3)
    options = {"normalized_homography": normalized_homography, "sampling": sampling}
    if sampling:
        options["noise"] = draw_noise(sampling, (4, 5))
    expected = homography_warp_linearized(image, M, (4, 5), **options)
    assert torch.equal(homography_warp_linearized(image, M[:, None], (4, 5), **options), expected)
    with pytest.raises(ValueError, match=r"src_homo_dst must have shape \(B, 3, 3\), got \(2, 2, 3, 3\)"):
        homography_warp_linearized(image, M[:, None].expand(-1, 2, -1, -1), (4, 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_maps_of_whole_numbers_are_read_as_kornia_reads_them(dtype):
    image = torch.rand(2, 3, 8, 9)
    map_y, map_x = torch.meshgrid(torch.arange(0, 8, 2), torch.arange(1, 9), indexing="ij")
    map_x, map_y = (m[None].repeat(2, 1, 1).to(dtype) for m in (map_x, map_y))
    arguments = image, map_x, map_y, "bilinear", "zeros", True
    ours = remap_linearized(*arguments, sampling=paper(intercept=False))
    torch.testing.assert_close(ours, kornia_geometry.remap(*arguments), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, image[:, :, ::2, 1:], rtol=1e-5, atol=1e-5)
    floating = remap_linearized(image, map_x.float(), map_y.float(), align_corners=True)
    assert torch.equal(remap_linearized(image, map_x, map_y.float(), align_corners=True), floating)
    double = remap_linearized(image.double(), map_x, map_y, align_corners=True)
    assert torch.equal(double, remap_linearized(image.double(), map_x.double(), map_y.double(), align_corners=True))


FLAGS = [
    (name, flag)
    for name in NAMES
    for flag in ("align_corners", "normalized_coordinates", "normalized_homography", "aligned")
    if flag in inspect.signature(getattr(lms_geometry, name)).parameters
]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
@pytest.mark.parametrize("value", ["nope", "False", 1, np.True_, torch.tensor(True), torch.zeros(2)], ids=repr)
def test_a_flag_is_true_or_false_and_is_not_read_by_its_truth_value(name, flag, value):
    with pytest.raises(TypeError, match=rf"{flag} must be True(, | or )False.* got .*, a {type(value).__name__}"):
        calls(torch.rand(2, 3, 8, 9))[name](**{flag: value})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("choice", ["mode", "padding_mode"])
@pytest.mark.parametrize("value", [None, 0, ["zeros"], np.array(["zeros", "border"]), torch.zeros(2)], ids=repr)
def test_a_choice_is_one_of_the_names(name, choice, value):
    if name == "roi_align_linearized":
        pytest.skip("no choices")
    with pytest.raises(ValueError, match=f"{choice} must be one of"):
        calls(torch.rand(2, 3, 8, 9))[name](**{choice: value})


def test_settings_are_no_tensors_and_no_arrays():
    for value in (np.array(["fixed", "whitened"]), torch.zeros(2), ["fixed"]):
        with pytest.raises(ValueError, match="pattern must be one of"):
            LinearizedSampling(pattern=value)
    for name in ("sigma", "num_samples", "intercept"):
        with pytest.raises(TypeError, match=f"{name} must be"):
            LinearizedSampling(**{name: torch.zeros(2)})


def test_numbers_of_numpy_are_numbers():
    image = torch.rand(2, 3, 8, 9)
    drawn = paper(sigma=np.float32(0.5), num_samples=np.int64(5), ridge=np.float64(1e-3), jitter=np.int32(1))
    assert drawn == paper(sigma=0.5, num_samples=5, ridge=1e-3, jitter=1)
    noise = draw_noise(drawn, (np.int64(4), np.uint8(5)))
    size = np.int64(4), np.int64(5)
    assert warp_affine_linearized(image, torch.eye(2, 3)[None], size, sampling=drawn, noise=noise).shape == (2, 3, 4, 5)
    boxes = [torch.tensor([[1.0, 1.0, 5.0, 6.0]])] * 2
    options = {"spatial_scale": np.float32(0.5), "sampling_ratio": np.int64(2)}
    for module in (LinearizedRoIAlign(np.int64(4), **options), LinearizedRoIAlign((np.int64(4),) * 2, **options)):
        torch.testing.assert_close(module(image, boxes), ops.roi_align(image, boxes, 4, 0.5, 2))
    warper = LinearizedHomographyWarper(np.int64(4), np.int64(5))
    assert warper(image, torch.eye(3)[None]).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torch.Tensor.to_sparse, r"must be a dense tensor, got layout torch\.sparse_coo: call to_dense\(\)"),
        (
            lambda image: image.to(torch.float8_e5m2),
            "must have a floating dtype of 16, 32 or 64 bits, got torch.float8",
        ),
        (
            lambda image: image.to(torch.complex64),
            "must have a floating dtype of 16, 32 or 64 bits, got torch.complex64",
        ),
        (
            lambda image: torch.nested.nested_tensor([image[0], image[1]], layout=torch.jagged),
            "must be a dense tensor, got a nested tensor",
        ),
    ],
    ids=["sparse", "float8", "complex", "nested"],
)
def test_tensors_of_other_kinds_are_refused(name, spoil, message):
    image = torch.rand(2, 3, 8, 9)
    tensors = {
        "grid": torch.rand(2, 4, 5, 2),
        "M": torch.eye(3).repeat(2, 1, 1)[:, : 2 if "affine" in name else 3],
        "src_homo_dst": torch.eye(3).repeat(2, 1, 1),
        "map_x": torch.rand(2, 4, 5),
        "map_y": torch.rand(2, 4, 5),
        "boxes": torch.rand(2, 5),
        "jacobian": torch.rand(2, 1, 1, 2, 2),
        "noise": torch.rand(2, 7, 4, 5, 2),
        "fill_value": torch.rand(2, 3, 4, 5),
    }
    for first in ("input", "src", "patch_src", "image"):
        tensors[first] = image
    function = getattr(lms_geometry, name)
    wanted = {n: t for n, t in tensors.items() if n in inspect.signature(function).parameters}
    wanted |= {"dsize": (4, 5)} if "warp" in name else {"output_size": (4, 5)} if "roi" in name else {}
    wanted |= {"padding_mode": "fill"} if "fill_value" in wanted else {}
    assert function(**wanted, sampling=paper()) is not None
    for argument, tensor in wanted.items():
        if isinstance(tensor, torch.Tensor):
            if argument == "fill_value" and "floating" in message:  # it may have any type that is real
                continue
            with pytest.raises(TypeError, match=f"{argument} {message}"):
                function(**wanted | {argument: spoil(tensor)}, sampling=paper())


@pytest.mark.parametrize("size", [(-4, 5), (4, -5), (4.5, 5), ("4", 5), (True, 5), (torch.tensor(4.5), 5)], ids=str)
def test_a_warper_of_no_size_is_refused_when_it_is_made(size):
    with pytest.raises(ValueError, match=r"\(height, width\) must be \(height, width\), both ints of at least 0, got"):
        LinearizedHomographyWarper(*size)


@pytest.mark.parametrize("flag", ["normalized_coordinates", "align_corners"])
def test_a_warper_with_a_tensor_for_a_flag_is_refused_when_it_is_made(flag):
    with pytest.raises(TypeError, match=f"{flag} must be True or False, got tensor"):
        LinearizedHomographyWarper(4, 5, **{flag: torch.zeros(2)})


def test_a_homography_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="src_homo_dst must be a tensor, got list"):
        LinearizedHomographyWarper(4, 5).precompute_warp_grid([[1.0]])
    with pytest.raises(TypeError, match="src_homo_dst must be a tensor, got list"):
        LinearizedHomographyWarper(4, 5)(torch.rand(1, 3, 8, 9), [[1.0]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output_size": 4.5}, ValueError, r"output_size must be .* got \(4\.5, 4\.5\)"),
        ({"output_size": True}, ValueError, "output_size must be"),
        ({"output_size": torch.tensor([3.0, 4.0])}, ValueError, "output_size must be"),
        ({"sampling_ratio": True}, TypeError, "sampling_ratio must be an int, got True"),
        ({"sampling_ratio": torch.zeros(2)}, TypeError, "sampling_ratio must be an int, got tensor"),
        ({"spatial_scale": float("inf")}, ValueError, "spatial_scale must be a finite number above 0, got inf"),
        ({"spatial_scale": float("nan")}, ValueError, "spatial_scale must be a finite number above 0, got nan"),
        ({"spatial_scale": torch.tensor(1.0)}, ValueError, "spatial_scale must be a finite number above 0, got tensor"),
        ({"input": torch.rand(0, 3, 8, 9)}, ValueError, "boxes must be none where input has no images, got 1"),
    ],
)
def test_arguments_of_roi_align(options, error, message):
    arguments = {"input": torch.rand(2, 3, 8, 9), "boxes": torch.tensor([[0, 1.0, 1.0, 5.0, 6.0]]), "output_size": 4}
    with pytest.raises(error, match=message):
        roi_align_linearized(**arguments | options)


def test_a_generator_is_one_also_where_noise_is_given():
    noise = draw_noise(paper(), (4, 5))
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int"):
        grid_sample_linearized(
            torch.rand(2, 3, 8, 9), torch.zeros(2, 4, 5, 2), sampling=paper(), noise=noise, generator=3
        )


def test_modules_name_a_flag_when_they_are_called():
    with pytest.raises(TypeError, match="align_corners must be True, False or None, got 'nope'"):
        LinearizedGridSample(align_corners="nope")(torch.rand(1, 1, 8, 9), torch.zeros(1, 4, 5, 2))
