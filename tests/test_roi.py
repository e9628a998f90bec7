import copy
import math
import pickle

import cpu_torchvision  # noqa: F401
import oracle
import pytest
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from settings import paper
from torch.overrides import TorchFunctionMode
from torchvision import ops

from lms_geometry import LinearizedRoIAlign, draw_noise, roi, roi_align_linearized

EXACT = paper(intercept=False)
WHITENED = paper(intercept=False, mask_out_of_bounds=False, pattern="whitened")
N, C, H, W = 2, 3, 17, 23
BINS = (3, 5)
INSIDE = torch.tensor(
    [[0, 2.3, 3.1, 19.4, 12.7], [1, 4.0, 1.0, 9.0, 15.0], [1, 3.7, 6.2, 4.1, 6.5], [0, 1.0, 2.0, 22.0, 16.0]]
)
LEAVING = torch.tensor(
    [[1, -7.3, -2.2, 11.8, 9.9], [0, 15.0, 12.0, 40.5, 21.5], [0, 30.0, 3.0, 39.0, 8.0], [1, -9.0, -8.0, 31.0, 25.0]]
)
EMPTY = torch.tensor([[0, 5.5, 4.5, 5.5, 9.0], [1, 3.0, 8.0, 3.0, 8.0], [1, 9.0, 9.0, 4.0, 6.0]])
BOXES = torch.cat((INSIDE, LEAVING, EMPTY))
conventions = pytest.mark.parametrize("aligned", [False, True])
settings_of_the_method = pytest.mark.parametrize(
    "sampling", [paper(), EXACT, WHITENED], ids=["paper", "exact", "whitened"]
)
samplings = pytest.mark.parametrize("sampling_ratio", [-1, 1, 3])


def roi_align_by_hand(input, boxes, bins, spatial_scale, sampling_ratio, aligned):
    """RoIAlign as its paper and torchvision's compiled operator have it, a point at a time."""
    out = torch.zeros(len(boxes), input.shape[1], *bins, dtype=input.dtype)
    for r, (number, *box) in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (edge * spatial_scale - (0.5 if aligned else 0) for edge in box)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        bin_w, bin_h = width / bins[1], height / bins[0]
        points_x = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
        points_y = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
        for i in range(bins[0]):
            for j in range(bins[1]):
                for iy in range(points_y):
                    for ix in range(points_x):
                        y = y1 + i * bin_h + (iy + 0.5) * bin_h / points_y
                        x = x1 + j * bin_w + (ix + 0.5) * bin_w / points_x
                        out[r, :, i, j] += read(input[int(number)], y, x) / (points_y * points_x)
    return out


def read(image, y, x):
    """Bilinear, the border repeated for one pixel, and zeros beyond."""
    height, width = image.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(image[:, 0, 0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = (1 - x + left) * image[:, top, left] + (x - left) * image[:, top, right]
    lower = (1 - x + left) * image[:, bottom, left] + (x - left) * image[:, bottom, right]
    return (1 - y + top) * upper + (y - top) * lower


def within(boxes, *args):
    """Which bins have all their points where the image reads. Elsewhere torchvision's plain Python repeats the border."""
    ones = torch.ones(N, 1, H, W, dtype=torch.float64)
    return (roi_align_by_hand(ones, boxes, *args) > 1 - 1e-6).expand(-1, C, -1, -1)


class TestValuesWithoutTheIntercept:
    @conventions
    @samplings
    def test_equal_a_loop_over_points(self, sampling_ratio, aligned):
        image, boxes = torch.randn(N, C, H, W, dtype=torch.float64), BOXES.double()
        args = (BINS, 1.0, sampling_ratio, aligned)
        torch.testing.assert_close(
            roi_align_linearized(image, boxes, *args, sampling=EXACT),
            roi_align_by_hand(image, boxes, *args),
            rtol=0,
            atol=1e-11,
        )

    @conventions
    @samplings
    @pytest.mark.parametrize("spatial_scale", [1.0, 0.25])
    def test_equal_torchvision(self, sampling_ratio, aligned, spatial_scale):
        image, boxes = torch.randn(N, C, H, W), BOXES.clone()
        boxes[:, 1:] /= spatial_scale
        args = (BINS, spatial_scale, sampling_ratio, aligned)
        ours = roi_align_linearized(image, boxes, *args, sampling=EXACT)
        compared = within(boxes, *args)
        assert compared.double().mean() > 0.4
        torch.testing.assert_close(ours[compared], ops.roi_align(image, boxes, *args)[compared], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 1)])
    def test_equal_a_loop_on_images_one_texel_long(self, size):
        image, boxes = torch.randn(N, C, *size, dtype=torch.float64), BOXES.double()
        args = (BINS, 0.4, 2, True)
        expected = roi_align_by_hand(image, boxes, *args)
        torch.testing.assert_close(roi_align_linearized(image, boxes, *args, sampling=EXACT), expected)

    def test_without_a_gradient_nothing_is_drawn(self):
        image = torch.rand(N, C, H, W)
        state = torch.get_rng_state()
        roi_align_linearized(image, BOXES, BINS, sampling=EXACT)
        assert torch.equal(torch.get_rng_state(), state)


def test_the_default_dtype_does_not_matter():
    image, noise = torch.randn(N, C, H, W), draw_noise(paper(), BINS)
    expected = roi_align_linearized(image, BOXES, BINS, sampling=paper(), noise=noise)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(roi_align_linearized(image, BOXES, BINS, sampling=paper(), noise=noise), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@conventions
@samplings
@pytest.mark.parametrize("sampling", [paper(), EXACT], ids=["intercept", "exact"])
def test_gradient_for_the_image_is_torchvisions(sampling_ratio, aligned, sampling):
    image, boxes = torch.randn(N, C, H, W, requires_grad=True), torch.cat((INSIDE, LEAVING))
    args = (BINS, 1.0, sampling_ratio, aligned)
    weight = torch.randn(len(boxes), C, *BINS) * within(boxes, *args)
    theirs = torch.autograd.grad(ops.roi_align(image, boxes, *args), image, weight)
    ours = torch.autograd.grad(
        roi_align_linearized(image, boxes.requires_grad_(), *args, sampling=sampling), image, weight
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def drawn_for_each(boxes, sampling, bins):
    """Noise (R, K - 1, h, w, 2): every box has draws of its own."""
    noise = draw_noise(sampling, (len(boxes) * bins[0], bins[1]))
    return noise.unflatten(1, (len(boxes), bins[0])).movedim(1, 0)


class TestGradientForTheBoxes:
    @conventions
    @settings_of_the_method
    def test_is_exact_on_a_plane(self, sampling, aligned):
        y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
        image = (0.3 * x - 0.7 * y)[None, None]
        boxes = torch.tensor([[0, 32.0, 36.0, 60.0, 42.0], [0, 40.0, 30.0, 52.0, 48.0]], requires_grad=True)
        weight = torch.randn(2, 1, *BINS)
        pooled = roi_align_linearized(image, boxes, BINS, 0.5, 2, aligned, sampling=sampling)
        # On a plane the value of a bin is the plane at its centre, a fixed share of the way from edge to edge.
        share_y, share_x = ((torch.arange(n) + 0.5) / n for n in BINS)
        centre_x = 0.5 * (boxes[:, 1, None] * (1 - share_x) + boxes[:, 3, None] * share_x)
        centre_y = 0.5 * (boxes[:, 2, None] * (1 - share_y) + boxes[:, 4, None] * share_y)
        plane = (0.3 * centre_x[:, None, :] - 0.7 * centre_y[:, :, None])[:, None]
        torch.testing.assert_close(pooled, plane + (0.2 if aligned else 0), rtol=1e-3, atol=1e-3)
        ours, expected = (torch.autograd.grad(value, boxes, weight)[0] for value in (pooled, plane))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)

    @conventions
    @settings_of_the_method
    @pytest.mark.parametrize("box", [[20.0, 16.0, 66.0, 50.0], [31.0, 20.0, 52.0, 62.0], [13.0, 10.0, 80.0, 45.0]])
    def test_is_that_of_the_blurred_image(self, sampling, aligned, box):
        y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 128), indexing="ij")
        image = (-(((x - 0.5) / 0.6) ** 2) - ((y - 0.4) / 0.5) ** 2).exp()[None, None]
        bins, box = (6, 7), torch.tensor([0, *box])
        boxes = box.repeat(20, 1).requires_grad_()
        noise = drawn_for_each(boxes, sampling, bins)
        pooled = roi_align_linearized(image, boxes, bins, 1.0, 2, aligned, sampling=sampling, noise=noise)
        ours = torch.autograd.grad(pooled.sum(), boxes)[0].mean(0)[1:]

        # One bin of spread along the height and along the width, and one pixel of jitter.
        spread = tuple(
            math.hypot(extent / n, 1) for extent, n in zip((box[3:] - box[1:3]).tolist()[::-1], bins, strict=True)
        )
        blurred = gaussian_blur2d(image.double(), (65, 65), spread)
        step = torch.eye(5, dtype=torch.float64)[1:] / 4
        there, back = (
            ops.roi_align(blurred, box + sign * step, bins, 1.0, 2, aligned).sum((1, 2, 3)) for sign in (1, -1)
        )
        slope = (2 * (there - back)).float()
        assert torch.equal(ours.sign(), slope.sign())
        torch.testing.assert_close(ours, slope, rtol=0.1, atol=0)

    def test_a_box_narrower_than_a_pixel_has_a_width_only_if_aligned(self):
        image = torch.arange(12.0).expand(1, 1, 9, 12)
        for aligned in (False, True):
            boxes = torch.tensor([[0, 4.0, 3.0, 4.5, 6.0]], requires_grad=True)
            roi_align_linearized(image, boxes, 2, sampling_ratio=1, aligned=aligned).sum().backward()
            gradient = boxes.grad[0, [1, 3]]
            expected = torch.tensor([2.0, 2.0]) if aligned else torch.tensor([4.0, 0.0])
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)

    def test_is_zero_where_every_sample_is_masked_and_not_where_the_padding_counts(self):
        image = 1 + torch.rand(1, 2, H, W)
        gradients = []
        for masked in (True, False):
            sampling = paper(pattern="whitened", mask_out_of_bounds=masked)
            boxes = torch.tensor([[0, -8.0, 2.0, -2.0, 14.0], [0, -90.0, 2.0, -70.0, 14.0]], requires_grad=True)
            noise = draw_noise(sampling, BINS).clamp(-1, 1)
            pooled = roi_align_linearized(image, boxes, BINS, 1.0, 2, sampling=sampling, noise=noise)
            gradients.append(torch.autograd.grad(pooled.sum(), boxes)[0])
        masked, unmasked = gradients
        # Towards the image the first box brightens; the second is too far away to tell.
        assert unmasked[0, 3] > 0.1
        assert unmasked[1].count_nonzero() == 0
        assert masked[0].abs().sum() < 0.5 * unmasked[0].abs().sum()
        assert masked[1].count_nonzero() == 0

    @pytest.mark.parametrize("masked", [True, False])
    def test_across_the_border_it_is_that_of_the_oracles_slopes_with_the_border_repeated_once(self, masked):
        image, sampling = torch.rand(1, C, H, W), paper(ridge=0.1, mask_out_of_bounds=masked)
        noise = draw_noise(sampling, BINS, generator=torch.Generator().manual_seed(0))
        surrounded = F.pad(image, (1, 1, 1, 1), "replicate")
        for _, *corners in LEAVING[[0, 1, 3]].tolist():
            box = torch.tensor([[0, *corners]], requires_grad=True)
            pooled = roi_align_linearized(image, box, BINS, sampling=sampling, noise=noise)
            (found,) = torch.autograd.grad(pooled.sum(), box)

            x1, y1, x2, y2 = corners
            share_y, share_x = (((torch.arange(n) + 0.5) / n).double() for n in BINS)
            x, y = x1 + share_x * (x2 - x1) + 1, y1 + share_y * (y2 - y1) + 1
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
            grid = oracle.points_of(centres, (W + 2, H + 2), align_corners=True)
            jacobian = torch.diag(torch.tensor([(x2 - x1) / BINS[1], (y2 - y1) / BINS[0]]))[None, None, None]
            _, slopes, kept = oracle.linearized(surrounded, grid, jacobian, noise, sampling, align_corners=True)
            by_x, by_y = slopes[0].sum(0).unbind(-1)
            expected = [
                (by_x * (1 - share_x)).sum(),
                (by_y * (1 - share_y)[:, None]).sum(),
                (by_x * share_x).sum(),
                (by_y * share_y[:, None]).sum(),
            ]
            torch.testing.assert_close(found[0, 1:], torch.stack(expected).float(), rtol=1e-3, atol=1e-3)
            assert (kept.min() < sampling.num_samples - 1) == masked


class TestPrecision:
    def test_half_precision_is_computed_in_single(self):
        image = torch.randn(N, C, H, W)
        for dtype in (torch.float16, torch.bfloat16):
            noise = draw_noise(paper(), BINS)
            found = []
            for working in (dtype, torch.float32):
                boxes = INSIDE.to(dtype).to(working).requires_grad_()
                pooled = roi_align_linearized(image.to(dtype).to(working), boxes, BINS, sampling=paper(), noise=noise)
                found.append((pooled.to(dtype), *torch.autograd.grad(pooled.float().sum(), boxes)))
            half, single = found
            assert torch.equal(half[0], single[0])
            assert half[0].dtype == half[1].dtype == dtype
            torch.testing.assert_close(half[1].float(), single[1], rtol=1e-2, atol=1e-2)

    def test_half_precision_features_take_single_precision_boxes(self):
        image, boxes = torch.randn(N, C, H, W), INSIDE.clone().requires_grad_()
        pooled = roi_align_linearized(image.half(), boxes, BINS, sampling=EXACT)
        assert pooled.dtype == torch.float16
        expected = ops.roi_align(image.half().float(), boxes.detach(), BINS)
        torch.testing.assert_close(pooled.float(), expected, rtol=1e-3, atol=1e-3)
        with torch.autocast("cpu"):
            pooled = roi_align_linearized(image, boxes, BINS, sampling=EXACT)
        torch.testing.assert_close(pooled, ops.roi_align(image, boxes.detach(), BINS))


class TestBoxes:
    def test_a_list_is_a_tensor_with_the_images_number_in_front(self):
        image, noise = torch.randn(3, C, H, W), draw_noise(EXACT, BINS)
        numbered = torch.cat((INSIDE[[0, 3]], INSIDE[[1, 2]]))
        numbered[2:, 0] = 2
        listed = [numbered[:2, 1:], torch.empty(0, 4), numbered[2:, 1:]]
        ours = [roi_align_linearized(image, boxes, BINS, sampling=paper(), noise=noise) for boxes in (numbered, listed)]
        assert torch.equal(*ours)

    def test_their_order_is_that_of_the_result(self):
        image, noise, order = torch.randn(N, C, H, W), draw_noise(EXACT, BINS), torch.randperm(len(BOXES))
        pooled = roi_align_linearized(image, BOXES, BINS, sampling=paper(), noise=noise)
        torch.testing.assert_close(
            roi_align_linearized(image, BOXES[order], BINS, sampling=paper(), noise=noise), pooled[order]
        )

    @pytest.mark.parametrize("boxes", [torch.empty(0, 5), [torch.empty(0, 4)] * N], ids=["tensor", "list"])
    def test_none_give_an_empty_result_with_a_gradient_of_zero(self, boxes):
        image = torch.randn(N, C, H, W, requires_grad=True)
        pooled = roi_align_linearized(image, boxes, BINS)
        assert pooled.shape == (0, C, *BINS)
        assert torch.autograd.grad(pooled.sum(), image)[0].count_nonzero() == 0

    @pytest.mark.parametrize("sampling", [None, EXACT], ids=["default", "exact"])
    def test_none_are_still_part_of_the_graph_that_predicted_them(self, sampling):
        predict = torch.nn.Linear(4, 4)
        boxes = [predict(torch.empty(0, 4)) for _ in range(N)]
        roi_align_linearized(torch.randn(N, C, H, W), boxes, BINS, sampling=sampling).sum().backward()
        assert predict.weight.grad.count_nonzero() == 0

    @conventions
    @samplings
    @pytest.mark.parametrize("far", [3e38, -3e38, 1e6, math.inf, -math.inf, math.nan])
    def test_any_give_finite_values_and_gradients(self, far, sampling_ratio, aligned):
        image = torch.randn(N, C, H, W, requires_grad=True)
        boxes = INSIDE[:1].repeat(5, 1)
        boxes[range(4), range(1, 5)] = far
        boxes.requires_grad_()
        pooled = roi_align_linearized(image, boxes, BINS, 1.0, sampling_ratio, aligned)
        pooled.sum().backward()
        for tensor in (pooled, image.grad, boxes.grad):
            assert tensor.isfinite().all()
        assert boxes.grad[range(4), range(1, 5)].count_nonzero() == 0
        assert boxes.grad[4].count_nonzero() == 4


class TestDraws:
    def test_of_one_seed_are_the_same_and_leave_the_global_generator_alone(self):
        image = torch.randn(N, C, H, W)
        state = torch.get_rng_state()
        generators = (torch.Generator().manual_seed(seed) for seed in (3, 3, 4))
        same, again, other = (
            roi_align_linearized(image, BOXES, BINS, sampling=paper(), generator=generator) for generator in generators
        )
        assert torch.equal(same, again)
        assert not torch.equal(same, other)
        assert torch.equal(torch.get_rng_state(), state)

    def test_are_shared_by_the_boxes_or_each_ones_own(self):
        image, sampling = torch.randn(N, C, H, W), paper(num_samples=5)
        own = drawn_for_each(BOXES, sampling, BINS)
        together = roi_align_linearized(image, BOXES, BINS, sampling=sampling, noise=own)
        for number, box in enumerate(BOXES):
            alone = roi_align_linearized(image, box[None], BINS, sampling=sampling, noise=own[number])
            torch.testing.assert_close(together[number], alone[0])


class TestMemory:
    def test_chunks_of_boxes_change_nothing(self, monkeypatch):
        image, boxes = torch.randn(N, C, H, W, requires_grad=True), BOXES.clone().requires_grad_()
        noise, weight = drawn_for_each(boxes, paper(), BINS), torch.randn(len(boxes), C, *BINS)
        found = []
        for chunk in (roi._CHUNK, 1, 3 * C * BINS[0] * W):
            monkeypatch.setattr(roi, "_CHUNK", chunk)
            pooled = roi_align_linearized(image, boxes, BINS, sampling=paper(), noise=noise)
            found.append((pooled, *torch.autograd.grad(pooled, (image, boxes), weight)))
        torch.testing.assert_close(found[1], found[0])
        torch.testing.assert_close(found[2], found[0])

    def test_in_use_at_once_is_that_of_a_chunk(self, monkeypatch):
        class Largest(TorchFunctionMode):
            numbers = 0

            def __torch_function__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor):
                    self.numbers = max(self.numbers, result.untyped_storage().nbytes() // 4)
                return result

        image, boxes = torch.randn(1, C, H, W), INSIDE[[0, 3]].repeat(100, 1).requires_grad_()
        rows_of_a_box = C * BINS[0] * W
        monkeypatch.setattr(roi, "_CHUNK", 20 * rows_of_a_box)
        with Largest() as largest:
            pooled = roi_align_linearized(image, boxes, BINS)
        assert largest.numbers <= max(20 * rows_of_a_box, pooled.numel()) < len(boxes) * rows_of_a_box

    @pytest.mark.parametrize("sampling_ratio", [-1, 1, 9])
    def test_kept_for_the_backward_pass_is_twice_the_output(self, sampling_ratio):
        image = torch.randn(1, 64, H, W, requires_grad=True)
        boxes = INSIDE[[0, 3]].repeat(20, 1).requires_grad_()
        kept = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            pooled = roi_align_linearized(image, boxes, (7, 7), 1.0, sampling_ratio)
        assert sum(kept.values()) < 2.2 * pooled.nbytes


class TestModule:
    def test_equals_the_function_and_takes_torchvisions_arguments(self):
        image, noise = torch.randn(N, C, H, W), draw_noise(EXACT, BINS)
        arguments = (BINS, 0.5, 2, True)
        theirs, ours = ops.RoIAlign(*arguments), LinearizedRoIAlign(*arguments, sampling=EXACT)
        torch.testing.assert_close(ours(image, INSIDE, noise=noise), theirs(image, INSIDE))
        assert repr(ours).startswith(repr(theirs)[:-1].replace("RoIAlign", "LinearizedRoIAlign"))

    def test_is_copied_and_pickled(self):
        image, module = torch.randn(N, C, H, W), LinearizedRoIAlign(4, 1.0, -1, sampling=EXACT)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(image, INSIDE), module(image, INSIDE))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"input": torch.rand(C, H, W)}, ValueError, r"input must have shape \(N, C, H, W\), got \(3, 17, 23\)"),
        ({"input": torch.rand(N, C, 0, W)}, ValueError, "input must have at least one texel"),
        ({"boxes": INSIDE[:, 1:]}, ValueError, r"boxes must have shape \(R, 5\), got \(4, 4\)"),
        ({"boxes": INSIDE.long()}, TypeError, "boxes must have a floating dtype"),
        ({"boxes": 7}, TypeError, "boxes must be a tensor"),
        ({"boxes": [INSIDE[:, 1:]]}, ValueError, "boxes must hold a tensor for each of the 2 images, got 1"),
        ({"boxes": [INSIDE, INSIDE]}, ValueError, r"boxes\[0\] must have shape \(R, 4\), got \(4, 5\)"),
        ({"boxes": INSIDE + 1}, ValueError, r"boxes\[:, 0\] must be the number of an image, 0 to 1, got 2.0"),
        ({"boxes": INSIDE * math.nan}, ValueError, r"boxes\[:, 0\] must be the number of an image"),
        ({"boxes": INSIDE.to("meta")}, ValueError, "boxes must be on input's device"),
        ({"noise": 3}, TypeError, "noise must be a tensor, got int"),
        ({"output_size": (3, 0)}, ValueError, "output_size must be at least 1"),
        ({"output_size": (3, 4, 5)}, ValueError, "output_size must be"),
        ({"boxes": [INSIDE[:, 1:], INSIDE[:, 1:].to("meta")]}, ValueError, r"boxes\[1\] must be on input's device cpu"),
        ({"spatial_scale": "1"}, ValueError, "spatial_scale must be a finite number above 0, got '1'"),
        ({"spatial_scale": 0.0}, ValueError, "spatial_scale must be a finite number above 0, got 0.0"),
        ({"sampling_ratio": 2.0}, TypeError, "sampling_ratio must be an int, got 2.0"),
        ({"sampling": 8}, TypeError, "sampling must be a LinearizedSampling or None, got int"),
        ({"noise": torch.rand(7, 5, 3, 2)}, ValueError, r"noise must have shape \(7, 3, 5, 2\), got \(7, 5, 3, 2\)"),
        ({"noise": torch.rand(3, 7, 3, 5, 2)}, ValueError, r"noise must have shape \(4, 7, 3, 5, 2\)"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    arguments = {"input": torch.rand(N, C, H, W), "boxes": INSIDE, "output_size": BINS} | changed
    if "noise" in changed:
        arguments = {"sampling": paper()} | arguments
    with pytest.raises(error, match=message):
        roi_align_linearized(**arguments)
