"""A patch on a module leaves the module as it was, and lets it be copied, saved and replicated."""

import copy
import inspect
import io
import pickle
import sys
from abc import ABCMeta

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from two_transformers import EXACT, IMAGE

REGISTER = []


class Registered(nn.Module):
    def __init_subclass__(cls):
        REGISTER.append(cls)


class STN(Registered):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[0.6, 0.1, 0.1], [-0.2, 0.5, 0.0]]))
        self.layers = "an attribute that any model may have"

    def forward(self, image, *, scale: float = 1.0):
        """What it does."""
        grid = F.affine_grid(self.theta.expand(2, 2, 3) * scale, (2, 3, 5, 7), align_corners=False)
        return F.grid_sample(image, grid, align_corners=False)


def model():
    return nn.Sequential(STN(), nn.Conv2d(3, 1, 3))


def gradient(stn):
    return torch.autograd.grad(stn(IMAGE).square().sum(), stn.theta)[0]


PLAIN = gradient(STN())


def is_patched(stn):
    return not torch.equal(gradient(stn), PLAIN)


def everything(net):
    """All that a module is made of, to be compared by identity."""
    return {
        (name, key): value
        for name, module in net.named_modules()
        for key, value in {**vars(module), "class": type(module), "forward": type(module).forward}.items()
    }


def test_removing_leaves_every_module_and_function_as_it_was():
    net = model()
    before = everything(net)
    contents = {key: dict(value) for key, value in before.items() if isinstance(value, dict)}
    functions = {place: dict(vars(place)) for place in (torch, F, nn.Module, STN, sys.modules[__name__])}
    patch = linearize(net)
    net(IMAGE).sum().backward()
    patch.report()
    patch.remove()
    after = everything(net)
    assert after.keys() == before.keys()
    assert all(after[key] is value for key, value in before.items())
    assert all(after[key].keys() == value.keys() for key, value in contents.items())
    assert all(after[key][name] is held for key, value in contents.items() for name, held in value.items())
    assert all(vars(place)[name] is held for place, names in functions.items() for name, held in names.items())
    assert torch.overrides._len_torch_function_stack() == 0


def test_a_patched_module_looks_like_itself():
    stn, plain = STN(), STN()
    with linearize(stn):
        assert isinstance(stn, STN)
        assert repr(stn) == repr(plain)
        assert type(stn).__name__ == "STN"
        assert inspect.signature(stn.forward) == inspect.signature(plain.forward)
        assert stn.forward.__doc__ == "What it does."
        assert stn.layers == plain.layers
        assert vars(stn).keys() == vars(plain).keys()
        assert list(stn.state_dict()) == ["theta"]
        plain.load_state_dict(stn.state_dict())


def test_a_register_of_subclasses_learns_nothing():
    known = list(REGISTER)
    with linearize(STN()):
        assert known == REGISTER


def test_layers_of_torch_keep_their_class():
    net = model()
    with linearize(net):
        assert type(net) is nn.Sequential
        assert type(net[1]) is nn.Conv2d


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.filterwarnings("ignore:a module in training was copied:UserWarning")
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved], ids=lambda f: f.__name__
)
def test_a_copy_is_a_plain_module_and_the_original_stays_patched(duplicate):
    stn = STN()
    patch = linearize(stn, sampling=EXACT)
    twin = duplicate(stn)
    assert type(twin) is STN
    assert not is_patched(twin)
    assert is_patched(stn)
    patch.remove()
    assert not is_patched(stn)


def test_a_copy_made_in_training_is_told_to_sample_plainly():
    """As the average of weights over the steps of a training is."""
    net = model()
    patch = linearize(net)
    with pytest.warns(UserWarning, match=r"samples plainly: linearize\(\) the copy too") as told:
        average = torch.optim.swa_utils.AveragedModel(net)
    assert [warning.filename for warning in told] == [__file__]
    assert not is_patched(average.module[0])
    copy.deepcopy(net.eval())
    saved(net.train())
    patch.remove()
    copy.deepcopy(net)


@pytest.mark.filterwarnings("ignore:a module in training was copied:UserWarning")
def test_a_module_with_a_copy_protocol_of_its_own_keeps_it():
    class Tagged(STN):
        def __reduce__(self):
            return make_tagged, ("tag",)

    tagged = Tagged()
    with linearize(tagged):
        assert copy.deepcopy(tagged) == "made from tag"


def make_tagged(tag):
    return f"made from {tag}"


def test_a_saved_file_needs_no_integration():
    with linearize(stn := STN()):
        assert b"lms_geometry" not in pickle.dumps(stn)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_patches_are_removed_in_any_order(order):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stn = STN()

        def forward(self, image):
            return self.stn(image)

    outer = Outer()
    holder = nn.ModuleList([outer])
    patches = [linearize(target, sampling=EXACT) for target in (outer.stn, outer, holder)]
    for n in order:
        assert is_patched(outer.stn)
        patches[n].remove()
    assert type(outer.stn) is STN
    assert not is_patched(outer.stn)


def test_a_submodule_that_left_the_model_is_put_right_too():
    net = model()
    stn = net[0]
    patch = linearize(net, sampling=EXACT)
    net[0] = nn.Identity()
    patch.remove()
    assert type(stn) is STN


def test_a_metaclass_learns_nothing():
    made = []

    class Final(ABCMeta):
        def __init__(cls, name, bases, body):
            super().__init__(name, bases, body)
            made.append(cls)
            if any(isinstance(base, Final) for base in bases):
                raise TypeError("final")

    class Sealed(STN, metaclass=Final):
        pass

    with linearize(stn := Sealed(), sampling=EXACT):
        assert is_patched(stn)
        assert isinstance(stn, Sealed)
    assert made == [Sealed]
    assert type(stn) is Sealed


def test_a_forward_that_takes_no_module_is_patched():
    class Static(nn.Module):
        @staticmethod
        def forward(image, grid):
            return F.grid_sample(image, grid, align_corners=False)

    with linearize(static := Static()) as patch:
        static(IMAGE, torch.zeros(2, 5, 7, 2, requires_grad=True))
    assert "swapped" in patch.report()


def test_a_module_with_a_parametrized_parameter_is_patched():
    stn = STN()
    parametrize.register_parametrization(stn, "theta", nn.Identity())
    kind = type(stn)
    whole = linearize(nn.ModuleList([stn]), exclude=["0"])
    with linearize(stn) as patch:
        stn(IMAGE)
    assert "swapped" in patch.report()
    stn(IMAGE)
    assert "left: excluded by '0'" in whole.report()
    whole.remove()
    assert type(stn) is kind


def test_a_method_that_the_forward_of_torch_calls_is_seen():
    class Deformed(nn.Conv2d):
        def _conv_forward(self, image, weight, bias):
            return F.grid_sample(image, weight.reshape(2, 5, 7, 2), align_corners=False)

    with linearize(deformed := Deformed(2, 70, 1)) as patch:
        deformed(IMAGE)
    assert "swapped" in patch.report()


def test_a_layer_of_torch_with_a_parametrized_parameter_keeps_its_class():
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    kind = type(layer)
    with linearize(nn.ModuleList([layer])):
        assert type(layer) is kind


def test_a_direct_call_of_forward_is_seen():
    stn = STN()
    with linearize(stn) as patch:
        stn.forward(IMAGE, scale=0.5)
    assert "swapped" in patch.report()


def test_a_method_other_than_forward_is_seen_through_the_submodules_it_runs():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.stn = STN()

        def predict(self, image):
            return self.stn(image)

    detector = Detector()
    with linearize(detector) as patch:
        detector.predict(IMAGE)
    assert "in 'stn'" in patch.report()


def test_a_wrapper_of_torch_around_the_model_is_patched_inside():
    wrapped = nn.DataParallel(STN())
    with linearize(wrapped, sampling=EXACT) as patch:
        assert is_patched(wrapped.module)
        wrapped(IMAGE)
    assert "in 'module'" in patch.report()
    assert type(wrapped) is nn.DataParallel


def test_a_class_changed_on_top_of_the_patch_is_left_and_does_no_harm():
    stn = STN()
    patch = linearize(stn, sampling=EXACT)
    stn.__class__ = sharded = type("Sharded", (type(stn),), {})
    assert is_patched(stn)
    patch.remove()
    assert type(stn) is sharded
    assert not is_patched(stn)
