import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations.deform_conv import deform_conv2d_linearized

from lms_geometry import LinearizedSampling

B, C, OUT, H, W = 2, 4, 6, 11, 14


def read(image, y, x):
    """A bilinear read of one channel with zeros outside, by hand."""
    y0, x0 = int(y // 1), int(x // 1)
    total = 0.0
    for row, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for column, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += weight_y * weight_x * image[row, column].item()
    return total


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("offset_groups", [1, 2])
def test_values_are_those_of_a_loop(groups, offset_groups):
    """torchvision's own operator needs its compiled extension, so that the definition is written out."""
    stride, padding, dilation, kernel, size = (2, 1), (1, 2), (1, 2), (3, 2), (6, 16)
    image, weight, bias = torch.randn(1, C, H, W), torch.randn(OUT, C // groups, *kernel), torch.randn(OUT)
    offset, mask = 2 * torch.randn(1, 2 * offset_groups * 6, *size), torch.rand(1, offset_groups * 6, *size)
    ours = deform_conv2d_linearized(image, offset, weight, bias, stride, padding, dilation, mask)
    assert ours.shape == (1, OUT, *size)
    for o, i, j in ((0, 0, 0), (2, 3, 7), (5, 5, 15), (3, 1, 12)):
        total, depth = bias[o].item(), C // groups
        for c in range(depth):
            channel = o // (OUT // groups) * depth + c
            group = channel // (C // offset_groups)
            for tap in range(6):
                at = group * 6 + tap
                y = i * stride[0] - padding[0] + tap // 2 * dilation[0] + offset[0, 2 * at, i, j].item()
                x = j * stride[1] - padding[1] + tap % 2 * dilation[1] + offset[0, 2 * at + 1, i, j].item()
                total += (
                    weight[o, c, tap // 2, tap % 2].item() * mask[0, at, i, j].item() * read(image[0, channel], y, x)
                )
        assert abs(total - ours[0, o, i, j].item()) < 1e-4


def test_without_offsets_it_is_a_convolution_and_so_are_its_gradients():
    image, weight = torch.randn(B, C, H, W, requires_grad=True), torch.randn(OUT, C, 3, 3, requires_grad=True)
    offset = torch.zeros(B, 18, H, W, requires_grad=True)
    ours, plain = deform_conv2d_linearized(image, offset, weight, padding=1), F.conv2d(image, weight, padding=1)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    to = torch.randn(ours.shape)
    for got, want in zip(
        *(torch.autograd.grad(out, (image, weight), to, retain_graph=True) for out in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert torch.autograd.grad(ours, offset, to)[0].isfinite().all()


@pytest.mark.parametrize(
    "sampling", [LinearizedSampling(sigma=1.0, intercept=False), None], ids=["fixed", "as it comes"]
)
def test_on_a_plane_the_gradient_for_the_offsets_is_its_slope(sampling):
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    image, weight = (2 * x - 3 * y)[None, None], torch.rand(1, 1, 3, 3)
    offset = (0.3 * torch.randn(1, 18, 30, 40)).requires_grad_()
    options = {} if sampling is None else {"sampling": sampling}
    out = deform_conv2d_linearized(image, offset, weight, padding=1, **options)
    (gradient,) = torch.autograd.grad(out.sum(), offset)
    inner = gradient[0, :, 8:-8, 8:-8].unflatten(0, (9, 2))
    expected = torch.stack((-3 * weight.flatten(), 2 * weight.flatten()), 1)[..., None, None].expand_as(inner)
    torch.testing.assert_close(inner, expected, rtol=1e-2, atol=1e-2)


def test_offsets_three_pixels_off_are_found_from_further_away():
    """What the adapter is for: the loss on a moved image of blobs, by plain gradients and by these."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    centres = 24 * torch.rand(12, 2)
    image = sum((-((y - cy) ** 2 + (x - cx) ** 2) / 3).exp() for cy, cx in centres)[None, None]
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1.0
    true = torch.tensor([2.2, -2.0])

    def error(sampling):
        shift = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=0.1)
        moved = lambda at: at.repeat(9)[None, :, None, None].expand(1, 18, 24, 24)  # noqa: E731
        target = deform_conv2d_linearized(image, moved(true), weight, padding=1)
        for _ in range(60):
            out = deform_conv2d_linearized(image, moved(shift), weight, padding=1, sampling=sampling)
            optimizer.zero_grad()
            (out - target)[..., 4:-4, 4:-4].square().mean().backward()
            optimizer.step()
        return (shift.detach() - true).norm().item()

    wide = LinearizedSampling(num_samples=8, sigma=1.5, intercept=False, pattern="whitened", slope="plane")
    assert error(wide) < 0.1


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"offset": torch.zeros(B, 17, H, W)},
            ValueError,
            r"offset must have 2 G 9 channels, where G divides 4, got 17",
        ),
        ({"offset": torch.zeros(B, 18, H, 3)}, ValueError, r"offset must have shape \(2, 2 G kh kw, 11, 14\)"),
        ({"weight": torch.zeros(OUT, 3, 3, 3)}, ValueError, "weight must have channels that divide input's 4"),
        ({"stride": (1, 1, 1)}, ValueError, r"stride must be one number or two, got \(1, 1, 1\)"),
        ({"padding": 0.5}, TypeError, r"padding must be an int, got 0\.5"),
        ({"mask": torch.zeros(B, 8, H, W)}, ValueError, r"mask must have shape \(2, 9, 11, 14\), got \(2, 8, 11, 14\)"),
        ({"bias": torch.zeros(1)}, ValueError, r"bias must have shape \(6\), got \(1,\)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": (1, -1)}, ValueError, r"stride must be at least 1, got \(1, -1\)"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        (
            {"input": torch.rand(B, C, 1, 1), "padding": 0},
            ValueError,
            "input must be, with its padding, at least the 3 x 3 that the taps of weight span, got 1 x 1: raise padding",
        ),
        ({"dilation": (1, 8)}, ValueError, "input must be, .* at least the 3 x 17 that .* span, got 13 x 16"),
        ({"input": torch.rand(B, C, 0, 14)}, ValueError, "input must have at least one texel"),
        ({"input": torch.rand(B, 0, H, W)}, ValueError, "weight must have channels that divide input's 0"),
        (
            {"weight": torch.zeros(OUT, C, 0, 3)},
            ValueError,
            r"weight must have no axis of length 0, got \(6, 4, 0, 3\)",
        ),
        (
            {"weight": torch.zeros(OUT, 0, 3, 3)},
            ValueError,
            r"weight must have no axis of length 0, got \(6, 0, 3, 3\)",
        ),
        (
            {"weight": torch.zeros(5, 2, 3, 3)},
            ValueError,
            "weight must have as many outputs for each of its 2 groups, got 5",
        ),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    arguments = {
        "input": torch.rand(B, C, H, W), "offset": torch.zeros(B, 18, H, W), "weight": torch.zeros(OUT, C, 3, 3), "padding": 1,
    } | changed  # fmt: skip
    with pytest.raises(error, match=message):
        deform_conv2d_linearized(**arguments)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("offset", (B, 18, H, W)), ("weight", (OUT, C, 3, 3)), ("mask", (B, 9, H, W)), ("bias", (OUT,))],
)
def test_tensors_of_another_dtype_or_device_are_named(name, shape):
    arguments = {"offset": torch.zeros(B, 18, H, W), "weight": torch.zeros(OUT, C, 3, 3), "padding": 1}
    with pytest.raises(TypeError, match=f"{name} must have input's dtype torch.float32, got torch.float64"):
        deform_conv2d_linearized(torch.rand(B, C, H, W), **arguments | {name: torch.zeros(shape, dtype=torch.float64)})
    with pytest.raises(ValueError, match=f"{name} must be on input's device cpu, got meta"):
        deform_conv2d_linearized(torch.rand(B, C, H, W), **arguments | {name: torch.zeros(shape, device="meta")})


def test_an_image_as_large_as_the_kernel_has_one_output():
    image, weight = torch.rand(B, C, 3, 5), torch.rand(OUT, C, 3, 3)
    out = deform_conv2d_linearized(image, torch.zeros(B, 18, 1, 1), weight, dilation=(1, 2))
    torch.testing.assert_close(out, F.conv2d(image, weight, dilation=(1, 2)), rtol=1e-4, atol=1e-4)


def test_autocast_may_mix_dtypes():
    image, offset, weight = torch.rand(B, C, H, W).bfloat16(), torch.zeros(B, 18, H, W), torch.rand(OUT, C, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = deform_conv2d_linearized(image, offset, weight, torch.rand(OUT), padding=1)
    assert out.shape == (B, OUT, H, W)
