import inspect
import sys
from collections import OrderedDict
from importlib import import_module
from types import ModuleType

import cpu_torchvision  # noqa: F401
import pytest
import torch
import torchvision
from lms_geometry.integrations.replacement import replace
from lms_geometry.integrations.roi_align import linearize_roi_align
from settings import needs_torch, paper
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from lms_geometry import roi_align_linearized

EXACT = paper(intercept=False)
BINDINGS = ["torchvision.ops", "torchvision.ops.roi_align", "torchvision.ops.poolers"]


def bound():
    return [import_module(name).roi_align for name in BINDINGS]


@pytest.fixture
def features():
    return torch.randn(2, 3, 17, 23)


@pytest.fixture
def boxes():
    return torch.tensor([[0, 2.0, 3.0, 18.0, 11.0], [1, 5.0, 1.0, 12.0, 15.0]], requires_grad=True)


def generator():
    return torch.Generator().manual_seed(3)


class TestRemoval:
    def test_leaves_every_name_as_it_was(self):
        before = bound()
        patch = linearize_roi_align()
        assert set(patch.replaced) == {f"{name}.roi_align" for name in BINDINGS}
        assert not any(new is old for new, old in zip(bound(), before, strict=True))
        patch.remove()
        assert all(new is old for new, old in zip(bound(), before, strict=True))

    def test_happens_after_an_exception(self):
        before = bound()
        with pytest.raises(KeyError), linearize_roi_align():
            raise KeyError
        assert all(new is old for new, old in zip(bound(), before, strict=True))

    def test_twice_says_so(self):
        patch = linearize_roi_align()
        patch.remove()
        with pytest.raises(RuntimeError, match="removed already"):
            patch.remove()

    def test_is_from_the_innermost_patch_outwards(self, features, boxes):
        before = bound()
        outer = linearize_roi_align(sampling=paper())
        with linearize_roi_align(sampling=EXACT, generator=generator()):
            with pytest.raises(RuntimeError, match="remove that one first"):
                outer.remove()
            inner = torchvision.ops.roi_align(features, boxes, 4)
        assert torch.equal(inner, roi_align_linearized(features, boxes, 4, sampling=EXACT))
        assert not torch.equal(torchvision.ops.roi_align(features, boxes, 4), inner)
        outer.remove()
        assert all(new is old for new, old in zip(bound(), before, strict=True))

    def test_also_turns_off_what_was_bound_meanwhile(self, features, boxes):
        with linearize_roi_align():
            kept = torchvision.ops.roi_align
        assert torch.equal(kept(features, boxes, 4), torchvision.ops.roi_align(features, boxes, 4))


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"generator": generator()}, ValueError, "generator must be None for a sampling with fixed points"),
            (
                {"sampling": paper(), "generator": 3},
                TypeError,
                r"generator must be a torch\.Generator or None, got int",
            ),
            ({"sampling": "paper"}, TypeError, "sampling must be a LinearizedSampling or None, got 'paper'"),
        ],
    )
    def test_that_no_call_could_take_are_refused_when_the_patch_is_made(self, settings, error, message):
        before = bound()
        with pytest.raises(error, match=message):
            linearize_roi_align(**settings)
        assert all(new is old for new, old in zip(bound(), before, strict=True))


class TestCalls:
    @pytest.mark.parametrize("listed", [False, True])
    def test_are_the_linearized_ones(self, features, boxes, listed):
        arguments = {"output_size": (4, 5), "spatial_scale": 0.5, "sampling_ratio": 2, "aligned": True}
        given = [boxes[:1, 1:], boxes[1:, 1:]] if listed else boxes
        with linearize_roi_align(sampling=paper(), generator=generator()):
            ours = torchvision.ops.roi_align(features, boxes=given, **arguments)
        assert torch.equal(
            ours, roi_align_linearized(features, given, **arguments, sampling=paper(), generator=generator())
        )

    def test_without_a_gradient_for_the_boxes_are_left_alone_and_a_warning_says_so(self, features, boxes):
        features.requires_grad_()
        plain = torchvision.ops.roi_align(features, boxes.detach(), 4)
        patch = linearize_roi_align()
        assert torch.equal(torchvision.ops.roi_align(features, boxes.detach(), 4), plain)
        with torch.no_grad():
            assert torch.equal(torchvision.ops.roi_align(features, boxes, 4), plain)
        with pytest.warns(UserWarning, match="none of 2 calls.*no boxes asked for a gradient"):
            patch.remove()

    def test_are_counted(self, features, boxes):
        with linearize_roi_align() as patch:
            for given in (boxes, boxes.detach(), boxes.detach()):
                torchvision.ops.roi_align(features, given, 4)
        torchvision.ops.roi_align(features, boxes, 4)
        assert (patch.linearized, patch.passed_on) == (1, 2)

    @needs_torch(2, 7, because="cannot run torchvision's own operator in forward mode")
    def test_in_forward_mode_have_the_derivative_of_reverse_mode(self, features, boxes):
        def loss(boxes):
            return torchvision.ops.roi_align(features, boxes, 4).square().sum()

        with linearize_roi_align(sampling=paper(), generator=generator()):
            _, forward = torch.func.jvp(loss, (boxes.detach(),), (torch.ones_like(boxes),))
        with linearize_roi_align(sampling=paper(), generator=generator()):
            torch.testing.assert_close(forward, torch.autograd.grad(loss(boxes), boxes)[0].sum())

    def test_of_an_empty_batch_are_torchvisions(self, features, boxes):
        with pytest.warns(UserWarning, match="none of 1 calls"), linearize_roi_align():
            pooled = torchvision.ops.roi_align(features[:0], boxes[:0], 4)
        assert torch.equal(pooled, torchvision.ops.roi_align(features[:0], boxes[:0], 4))

    def test_of_the_module_roialign_are_too(self, features, boxes):
        align = torchvision.ops.RoIAlign((4, 5), 1.0, 2, True)
        with linearize_roi_align(sampling=EXACT, generator=generator()):
            pooled = align(features, boxes)
        expected = roi_align_linearized(features, boxes, (4, 5), 1.0, 2, True, sampling=EXACT, generator=generator())
        ours, wanted = (torch.autograd.grad(value.square().sum(), boxes)[0] for value in (pooled, expected))
        assert torch.equal(ours, wanted)
        torch.testing.assert_close(pooled, align(features, boxes))

    def test_signature_is_torchvisions(self):
        plain = torchvision.ops.roi_align
        with linearize_roi_align():
            patched = torchvision.ops.roi_align
        assert "aligned" in patched.__code__.co_varnames  # as mmcv asks
        found, wanted = (inspect.signature(f, follow_wrapped=False).parameters for f in (patched, plain))
        assert [(p.name, p.default) for p in found.values()] == [(p.name, p.default) for p in wanted.values()]
        assert patched.__doc__ == plain.__doc__

    def test_under_a_name_bound_before_are_warned_of_and_can_be_handed_over(self, features, boxes, monkeypatch):
        user = ModuleType("user_model")
        user.roi_align = torchvision.ops.roi_align
        monkeypatch.setitem(sys.modules, "user_model", user)
        with pytest.warns(UserWarning, match="user_model.roi_align") as told:
            patch = linearize_roi_align(sampling=paper(), generator=generator())
        assert [warning.filename for warning in told] == [__file__]
        assert "roi_heads" not in str(told[0].message)  # crops of ground-truth masks
        with pytest.warns(UserWarning, match="user_model.roi_align"):
            handed_over = replace(user, "roi_align", torchvision.ops.roi_align)
        with patch, handed_over:
            ours = user.roi_align(features, boxes, 4)
        assert torch.equal(ours, roi_align_linearized(features, boxes, 4, sampling=paper(), generator=generator()))


def pyramid():
    return OrderedDict((name, torch.randn(2, 8, *size)) for name, size in {"0": (12, 16), "1": (6, 8)}.items())


def proposals():
    return [
        torch.tensor([[4.0, 5.0, 36.0, 28.0], [12.0, 8.0, 60.0, 46.0]], requires_grad=True),
        torch.tensor([[2.0, 12.0, 24.0, 40.0]], requires_grad=True),
    ]


LEVELS = {"featmap_names": ["0", "1"], "sampling_ratio": 2, "canonical_scale": 16, "canonical_level": 2}
SIZES = [(48, 64)] * 2


class TestModels:
    def test_multi_scale_roi_align_keeps_its_values_and_moves_the_boxes(self):
        features, boxes = pyramid(), proposals()
        pool = MultiScaleRoIAlign(output_size=(5, 7), **LEVELS)
        plain = pool(features, [some.detach() for some in boxes], SIZES)
        with linearize_roi_align(sampling=EXACT, generator=generator()):
            pooled = pool(features, boxes, SIZES)
        torch.testing.assert_close(pooled, plain, rtol=0, atol=1e-5)
        gradients = torch.autograd.grad(pooled.square().sum(), boxes)

        numbered = torch.cat([nn.functional.pad(some, (1, 0), value=number) for number, some in enumerate(boxes)])
        draws, large = generator(), torch.tensor([False, True, False])
        levels = [
            roi_align_linearized(features[name], numbered[rows], (5, 7), scale, 2, sampling=EXACT, generator=draws)
            for name, scale, rows in (("0", 1 / 4, ~large), ("1", 1 / 8, large))
        ]
        expected = torch.autograd.grad(sum(level.square().sum() for level in levels), boxes)
        torch.testing.assert_close(gradients, expected)

    def test_mask_rcnn_heads_move_the_proposals(self):
        backbone = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        backbone.out_channels = 8
        heads = MaskRCNN(
            backbone,
            rpn_anchor_generator=AnchorGenerator(((32,),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(output_size=5, **LEVELS),
            box_head=TwoMLPHead(8 * 5 * 5, 16),
            box_predictor=FastRCNNPredictor(16, 3),
            mask_roi_pool=MultiScaleRoIAlign(output_size=5, **LEVELS),
            mask_head=MaskRCNNHeads(8, (8,), 1),
            mask_predictor=MaskRCNNPredictor(8, 8, 3),
        ).roi_heads
        features, boxes = pyramid(), proposals()
        targets = [
            {
                "boxes": some.detach() + 2,
                "labels": torch.ones(len(some), dtype=torch.int64),
                "masks": torch.ones(len(some), 48, 64, dtype=torch.uint8),
            }
            for some in boxes
        ]
        gradients = []
        for seed in (3, 3, 4):
            torch.manual_seed(0)  # the heads choose among the proposals
            with linearize_roi_align(sampling=EXACT, generator=torch.Generator().manual_seed(seed)):
                _, losses = heads(features, boxes, SIZES, targets)
            of_losses = [
                torch.autograd.grad(losses[name], boxes, retain_graph=True) for name in ("loss_classifier", "loss_mask")
            ]
            gradients.append(torch.stack([torch.cat(some) for some in of_losses]))
        first, again, other = gradients
        assert first.isfinite().all()
        assert first.all()
        assert torch.equal(first, again)
        assert not torch.isclose(first, other).any()  # nothing but the linearized samples is random


class TestOtherPackages:
    """Stand-ins for detectron2 and mmcv, with the names that theirs have."""

    @pytest.fixture
    def stand_ins(self, monkeypatch):
        def mmcv_roi_align(*args):
            return args

        layers, mmcv_ops = ModuleType("detectron2.layers"), ModuleType("mmcv.ops")
        layers.roi_align, mmcv_ops.roi_align = torchvision.ops.roi_align, mmcv_roi_align
        detectron2_module, mmcv_module = ModuleType("detectron2.layers.roi_align"), ModuleType("mmcv.ops.roi_align")
        detectron2_module.tv_roi_align = detectron2_module.roi_align = torchvision.ops.roi_align
        mmcv_module.roi_align = mmcv_roi_align
        modules = (layers, detectron2_module, mmcv_ops, mmcv_module)
        for module in (ModuleType("detectron2"), ModuleType("mmcv"), *modules):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return modules

    def test_are_patched_where_installed_and_restored(self, stand_ins, features, boxes):
        before = [dict(vars(module)) for module in stand_ins]
        with linearize_roi_align(sampling=EXACT) as patch:
            assert len(patch.replaced) == len(BINDINGS) + 5
            expected = roi_align_linearized(features, boxes, (4, 5), 0.5, 2, True, sampling=EXACT)
            for module in stand_ins[:2]:
                assert torch.equal(module.roi_align(features, boxes, (4, 5), 0.5, 2, True), expected)
            for module in stand_ins[2:]:
                assert torch.equal(module.roi_align(features, boxes, (4, 5), 0.5, 2, "avg", True), expected)
        assert [dict(vars(module)) for module in stand_ins] == before

    def test_keep_mmcvs_maximum(self, stand_ins, features, boxes):
        with linearize_roi_align():
            args = features, boxes, (4, 5), 0.5, 2, "max", True
            assert stand_ins[3].roi_align(*args) == args

    def test_none_installed_is_refused(self, monkeypatch):
        for name in ("torchvision.ops", "detectron2", "mmcv", *BINDINGS):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ModuleNotFoundError, match=r"can be imported: torchvision\.ops: .*None in sys\.modules"):
            linearize_roi_align()

    def test_a_broken_one_does_not_stop_the_others(self, tmp_path, monkeypatch, features, boxes):
        (tmp_path / "detectron2.py").write_text("raise AttributeError('no LINEAR')")
        monkeypatch.syspath_prepend(tmp_path)
        with linearize_roi_align() as patch:
            torchvision.ops.roi_align(features, boxes, 4)
        assert patch.linearized == 1
