"""Attributes replaced by name, and put back by identity."""

import sys
import types

import pytest
import torch
from lms_geometry.integrations import Replacement, replace
from torch import nn


@pytest.fixture
def warp(monkeypatch):
    module = types.ModuleType("warp")
    module.sample = lambda image: image
    monkeypatch.setitem(sys.modules, "warp", module)
    return module


def double(image):
    return 2 * image


class Sampler:
    @staticmethod
    def still(image):
        return image

    @classmethod
    def of(cls, image):
        return cls, image

    def method(self, image):
        return image


class Child(Sampler):
    pass


def test_a_function_of_a_module_is_replaced_and_put_back(warp):
    original = warp.sample
    replacement = replace(warp, "sample", double)
    assert warp.sample(3) == 6
    replacement.remove()
    assert warp.sample is original


def test_a_block_puts_back_even_after_an_exception(warp):
    original = warp.sample
    with pytest.raises(ZeroDivisionError), replace(warp, "sample", lambda image: 1 / 0):
        warp.sample(3)
    assert warp.sample is original


@pytest.mark.parametrize("owner", [Sampler, Child, Child()])
@pytest.mark.parametrize("name", ["still", "of", "method"])
def test_what_a_class_holds_is_put_back_as_it_was(owner, name):
    before = [dict(vars(holder)) for holder in (owner, Sampler, Child)]
    with replace(owner, name, double):
        assert getattr(owner, name) is double
    after = [dict(vars(holder)) for holder in (owner, Sampler, Child)]
    assert all(a.keys() == b.keys() and all(a[k] is b[k] for k in a) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("owner", [Sampler, Child])
@pytest.mark.parametrize("name", ["still", "of"])
def test_what_takes_no_self_is_called_without(owner, name):
    with replace(owner, name, double):
        assert getattr(Child, name)(3) == getattr(Child(), name)(3) == 6


def test_a_submodule_is_put_back_in_its_place():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    before = list(model.named_children())
    with replace(model, "1", nn.Identity()):
        assert isinstance(model[1], nn.Identity)
    after = list(model.named_children())
    assert all(a == b and c is d for (a, c), (b, d) in zip(after, before, strict=True))
    assert "1" not in vars(model)


class Slotted:
    __slots__ = ("sample",)


class Stored:
    """Holds its sampler under another name, or another form, than it gives it out."""

    def __init__(self, convert=lambda sample: sample):
        self.inner, self.convert = types.SimpleNamespace(), convert

    @property
    def sample(self):
        return self.inner.sample

    @sample.setter
    def sample(self, value):
        self.inner.sample = self.convert(value)


class Proxy:
    def __init__(self, inner):
        vars(self)["inner"] = inner

    def __getattr__(self, name):
        return getattr(vars(self)["inner"], name)

    def __setattr__(self, name, value):
        setattr(self.inner, name, value)


def check_that_the_last_is_removed_first(owner):
    original = owner.sample
    first = replace(owner, "sample", lambda image: 3 * image)
    second = replace(owner, "sample", double)
    named = "warp" if isinstance(owner, types.ModuleType) else type(owner).__name__
    with pytest.raises(RuntimeError, match=rf"{named}\.sample was replaced again since"):
        first.remove()
    second.remove()
    first.remove()
    assert owner.sample is original


@pytest.mark.parametrize("make", [Slotted, Stored, lambda: Proxy(types.SimpleNamespace())])
def test_what_is_held_elsewhere_than_in_the_dictionary_is_put_back(warp, make):
    owner, original = make(), warp.sample
    owner.sample = original
    with replace(owner, "sample", double):
        assert owner.sample(3) == 6
    assert owner.sample is original
    check_that_the_last_is_removed_first(owner)


def test_what_does_not_give_back_what_it_was_given_is_refused(warp):
    def named(sample):
        return sample if hasattr(sample, "named") else types.SimpleNamespace(named=True, sample=sample)

    owner, original = Stored(named), warp.sample
    owner.sample = original
    before = owner.sample
    with pytest.raises(TypeError, match=r"Stored\.sample cannot be replaced: it does not give back what is assigned"):
        Replacement((warp, "sample", double), (owner, "sample", double))
    assert owner.sample is before
    assert warp.sample is original


def test_several_are_replaced_all_or_none(warp):
    original = warp.sample
    with pytest.raises(AttributeError, match="warp has no attribute 'sampel'; did you mean 'sample'"):
        Replacement((warp, "sample", double), (warp, "sampel", double))
    assert warp.sample is original


def test_replacements_of_one_name_are_removed_last_first(warp):
    check_that_the_last_is_removed_first(warp)


def test_a_name_bound_elsewhere_is_told(warp, monkeypatch):
    graph = types.ModuleType("graph")
    graph.sample_image = warp.sample
    monkeypatch.setitem(sys.modules, "graph", graph)
    original = warp.sample
    with pytest.warns(UserWarning, match=r"graph\.sample_image held the same as warp\.sample and was not") as told:
        replacement = replace(warp, "sample", double)
    assert graph.sample_image is original
    assert told[0].filename == __file__
    replacement.remove()


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_leaves_nothing_replaced(warp, monkeypatch):
    monkeypatch.setitem(sys.modules, "graph", types.ModuleType("graph"))
    sys.modules["graph"].sample = original = warp.sample
    with pytest.raises(UserWarning, match=r"graph\.sample held"):
        replace(warp, "sample", double)
    assert warp.sample is original


def test_a_refused_assignment_leaves_nothing_replaced(warp):
    original, model = warp.sample, nn.Sequential(nn.ReLU())
    with pytest.raises(TypeError, match="cannot assign"):
        Replacement((warp, "sample", double), (model, "0", double))
    assert warp.sample is original


def test_the_adapter_may_call_the_original_by_a_name_in_its_own_module(warp, monkeypatch):
    def adapter(image):
        return original_sample(image)  # noqa: F821

    monkeypatch.setattr(sys.modules[__name__], "original_sample", warp.sample, raising=False)
    replace(warp, "sample", adapter).remove()
    with pytest.warns(UserWarning, match=r"test_replacement\.original_sample held the same as warp\.sample"):
        replace(warp, "sample", double).remove()


def test_bad_input_is_told_what_to_do_instead(warp):
    with pytest.raises(TypeError, match="owner must be the object itself, got its name 'warp': import it"):
        replace("warp", "sample", double)
    with pytest.raises(TypeError, match="adapter must be callable, got Tensor"):
        replace(warp, "sample", torch.zeros(2))
    with pytest.raises(AttributeError, match=r"has no attribute 'pull'.*the name it calls it by"):
        replace(warp, "pull", double)
    replacement = replace(warp, "sample", double)
    replacement.remove()
    with pytest.raises(RuntimeError, match="removed already"):
        replacement.remove()
    with pytest.raises(RuntimeError, match="call replace"):
        replacement.__enter__()
