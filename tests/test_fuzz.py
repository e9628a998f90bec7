from collections import Counter

import pytest
import torch
from fuzz import CallError, Case, beyond, check, fuzz

from lms_geometry.backends import cpu, eager


def test_some_hundred_calls_show_no_difference_no_raw_error_and_nothing_that_is_not_finite():
    failures, counts = fuzz(600)
    assert not failures, "\n".join(failures)
    assert counts["calls"] >= 600
    assert min(counts[kind] for kind in ("numbers", "ties", "arguments")) > 10


def test_a_case_is_the_same_each_time():
    for seed in range(20):
        first, second = (Case(seed) for _ in "ab")
        assert (first.name, first.sampling) == (second.name, second.sampling)
        for one, other in zip(first.tensors().values(), second.tensors().values(), strict=True):
            assert (one is None and other is None) or torch.equal(one.nan_to_num(), other.nan_to_num())


def test_a_kernel_that_is_off_in_the_fifth_digit_is_found(monkeypatch):
    sample = cpu.sample
    monkeypatch.setattr(cpu, "sample", lambda *arguments: tuple(t * (1 + 3e-5) for t in sample(*arguments)))
    failures, _ = fuzz(600, stop_at=1)
    assert len(failures) == 1
    assert "the kernel differs" in failures[0]


def test_a_result_that_is_not_finite_and_a_raw_error_are_found(monkeypatch):
    sample = eager.sample
    monkeypatch.setattr(eager, "sample", lambda *arguments: tuple(t / 0 for t in sample(*arguments)))
    assert "not finite" in fuzz(600, stop_at=1)[0][0]
    monkeypatch.setattr(eager, "sample", lambda *arguments: [][0])
    assert "raw error IndexError" in fuzz(600, stop_at=1)[0][0]


def test_what_float32_costs_is_allowed_eight_times():
    one = torch.ones(3)
    assert beyond([one * (1 + 7e-4)], [one], [one * (1 - 1e-4)], [1.0]) == ""
    assert "by 0.0009" in beyond([one * (1 + 9e-4)], [one], [one * (1 - 1e-4)], [1.0])


def test_a_case_that_fails_names_its_number(monkeypatch):
    monkeypatch.setattr("fuzz.check_numbers", lambda *_: 1 / 0)
    monkeypatch.setattr("fuzz.check_arguments", lambda *_: 1 / 0)
    with pytest.raises(CallError, match=r"case 7 \(.*\): raw error ZeroDivisionError"):
        check(7, Counter())
