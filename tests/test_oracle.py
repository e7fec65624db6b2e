"""The oracle and its comparers notice what they are there to notice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import CE, Objective, data, network
from oracle import assert_equal, assert_similar, check, difference, observe
from torch import nn

OBJECTIVE = Objective(CE, ((CE, "l2_squared"),))


def test_difference_of_equal_tensors_is_zero() -> None:
    a = data(3, 4)
    found = difference(a, a.clone())
    assert (found.elementwise, found.norm, found.bias) == (0, 0, 0)
    assert abs(found.cosine) < 1e-15
    assert difference(torch.zeros(3), torch.zeros(3)).elementwise == 0
    assert difference(torch.zeros(0, 3), torch.zeros(0, 3)).norm == 0


def test_difference_separates_factor_from_direction() -> None:
    a = data(50)
    scaled, other = difference(1.01 * a, a), difference(a + 0.01 * a.norm() * data(50, seed=2) / 7, a)
    assert scaled.bias == pytest.approx(0.01)
    assert scaled.cosine == pytest.approx(0, abs=1e-12)
    assert scaled.norm == pytest.approx(0.01)
    assert other.cosine > 1e-6
    assert difference(-a, a).cosine == pytest.approx(2)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), -float("inf")])
def test_difference_sees_what_is_not_finite(spoilt: float) -> None:
    a, b = data(5), data(5)
    a[2] = spoilt
    assert difference(a, b).norm == difference(b, a).norm == float("inf")
    b[2] = spoilt
    assert difference(a, b).norm == 0
    b[2] = float("inf") if spoilt != float("inf") else -float("inf")
    assert difference(a, b).norm == float("inf")


WRONG = {
    "relative error of 1e-9": lambda t: t * (1 + 1e-9),
    "one element": lambda t: t + 1e-9 * torch.eye(t.numel(), dtype=t.dtype)[0].view_as(t),
    "sign": lambda t: -t,
    "zero": torch.zeros_like,
    "flipped": lambda t: t.flip(0),
    "NaN": lambda t: t * float("nan"),
    "float32": lambda t: t.float(),
    "another shape": lambda t: t[None],
    "none": lambda t: None,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_assert_equal_refuses(wrong: str) -> None:
    expected = {"grad w": data(3, 4), "grad b": data(3)}
    assert_equal({k: v.clone() for k, v in expected.items()}, expected)
    for name in expected:
        with pytest.raises(AssertionError):
            assert_equal(expected | {name: WRONG[wrong](expected[name])}, expected)


def test_assert_equal_accepts_zeros_for_no_gradient_and_not_the_reverse() -> None:
    assert_equal({"grad w": torch.zeros(3)}, {"grad w": None})
    with pytest.raises(AssertionError):
        assert_equal({"grad w": torch.ones(3)}, {"grad w": None})
    with pytest.raises(AssertionError):
        assert_equal({"grad w": None}, {"grad w": torch.zeros(3)})


def test_assert_equal_forgives_only_rounding_of_what_cancels() -> None:
    expected = {"grad w": data(3), "grad b": torch.full((2,), 1e-17, dtype=torch.float64)}
    assert_equal(expected | {"grad b": -expected["grad b"]}, expected)
    with pytest.raises(AssertionError):
        assert_equal(expected | {"grad b": expected["grad b"] + 1e-12}, expected)


def test_assert_similar_refuses_factor_direction_and_size() -> None:
    b = data(100)
    assert_similar({"a": b * 1.001}, {"a": b}, norm=0.01, cosine=1e-6, bias=0.01)
    for a in (b * 1.02, b + 0.02 * data(100, seed=5), -b):
        with pytest.raises(AssertionError):
            assert_similar({"a": a}, {"a": b}, norm=0.01, cosine=1e-6, bias=0.01)


def test_observe_leaves_the_model_and_the_inputs_alone() -> None:
    model, x = network("mlp_batch_norm").build(), data(4, 6)
    state, before = copy.deepcopy(model.state_dict()), x.clone()
    results = observe(copy.deepcopy(model), [x], OBJECTIVE)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {
        "value y",
        "value J0.0",
        "grad 0.weight",
        "grad input 0",
        "buffer 1.running_mean",
    } <= results.keys()
    assert_equal(observe(model, [x], OBJECTIVE), results)


def _hooked(change: Callable) -> Callable[[nn.Module], nn.Module]:
    def accelerate(model: nn.Module) -> nn.Module:
        model.register_forward_hook(change)
        return model

    return accelerate


class _FirstOrderOnly(torch.autograd.Function):
    """The identity whose data gradient does not know that it depends on the cotangent."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return g.detach()


def _twice(model: nn.Module) -> nn.Module:
    model.register_forward_pre_hook(lambda m, inputs: m[1].num_batches_tracked.add_(1) and None)
    return model


def _frozen(model: nn.Module) -> nn.Module:
    model[1].bias.requires_grad_(False)
    return model


def _draws(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda m, inputs, y: torch.rand(1) and None)
    return model


MUTANTS = {
    "output": _hooked(lambda m, inputs, y: y * (1 + 1e-8)),
    "first_order_dropped": _hooked(lambda m, inputs, y: y.detach() + 0 * y),
    "second_order_dropped": _hooked(lambda m, inputs, y: _FirstOrderOnly.apply(y)),
    "input_detached": _hooked(lambda m, inputs, y: y + 0 * inputs[0].sum() + inputs[0].sum() * 1e-8),
    "statistics_twice": _twice,
    "parameter_frozen": _frozen,
    "random_numbers_drawn": _draws,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_check_catches(mutant: str) -> None:
    case = network("mlp_batch_norm")
    check(case.build(), case.inputs(), OBJECTIVE, lambda model: model)
    with pytest.raises(AssertionError):
        check(case.build(), case.inputs(), OBJECTIVE, MUTANTS[mutant])
