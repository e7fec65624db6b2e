"""How much work a step does: layer-sized products, counted for each weight layer in two ways.

One unit is one product (or convolution) of the size of the layer: forward, vjp, jvp, and one for each pair of cotangent
and feature in the weight gradient. `maps` counts the calls of the layers' maps, with every sweep composed of them.
`products` counts what reaches ATen, with no hook in the package, so that what merges maps is counted rightly; an op of
the project that shows ATen nothing is replaced by its reference there (tests/test_ops_*.py compare the two).
Letter: N batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_code import data_gradient, loss_of, penalised, potential, weights

import datagrad_ext
from datagrad_ext import CentralDifference, DataGrad, FiniteDifference, Term, fusion, lower, penalties, presets
from datagrad_ext.fusion.chains import collect_chains
from datagrad_ext.fusion.rectified_convolutions import rectify_convolutions
from datagrad_ext.layers import Layer
from datagrad_ext.layers.convolution import Convolution
from datagrad_ext.layers.linear import Linear
from datagrad_ext.ops import chain, convolution, fused_convolution, image_chain, penalty_step

N = 4
aten = torch.ops.aten
MERGING = (collect_chains, rectify_convolutions)  # passes whose steps merge the maps of several layers
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.mm.out, aten.addmm.out}
REFERENCES = {
    getattr(torch.ops.datagrad, name).default: getattr(family, name)
    for family, name in (
        (chain, "chain_forward"),
        (chain, "chain_data_vjp"),
        (chain, "chain_data_jvp"),
        (chain, "chain_reverse"),
        (convolution, "convolution_forward"),
        (convolution, "convolution_reverse"),
        (convolution, "convolution_relu_forward"),
        (convolution, "convolution_relu_vjp"),
        (convolution, "convolution_relu_jvp"),
        (convolution, "convolution_relu_reverse"),
        (fused_convolution, "fused_convolution_forward"),
        (fused_convolution, "fused_convolution_vjp"),
        (fused_convolution, "fused_convolution_jvp"),
        (image_chain, "image_chain_forward"),
        (image_chain, "image_chain_data_vjp"),
        (image_chain, "image_chain_data_jvp"),
        (image_chain, "image_chain_reverse"),
        (penalty_step, "chain_penalty_step"),
    )
}


class Units(TorchDispatchMode):
    """Counts products by layer: a linear one by its two widths, a convolution by the shape of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            a, b = args[-2:]
            self.count[frozenset({*a.shape, *b.shape} - {N})] += 1
        elif func is aten.convolution.default:
            self.count[tuple(args[1].shape)] += 1
        elif func is aten.convolution_backward.default:
            self.count[tuple(args[2].shape)] += sum(args[-1][:2])
        elif func in REFERENCES:
            with self:
                return REFERENCES[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def linear_net(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8),
        activation(),
        nn.Linear(8, 9),
        activation(),
        nn.Linear(9, 7),
        activation(),
        nn.Linear(7, 5),
    )


def conv_net(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1),
        activation(),
        nn.Conv2d(3, 8, 3, padding=1),
        activation(),
        nn.Conv2d(8, 9, 2),
        activation(),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


NETS: dict[str, tuple[Callable[[Callable], nn.Module], tuple[int, ...]]] = {
    "linear": (linear_net, (N, 6)),
    "conv": (conv_net, (N, 2, 6, 6)),
}


def _key(layer: nn.Module) -> object:
    shape = tuple(layer.weight.shape)
    return frozenset(shape) if len(shape) == 2 else shape


@contextmanager
def products(model: nn.Module) -> Iterator[list[int]]:
    """Fills the list with the products of each weight layer, in order, when the block ends."""
    found: list[int] = []
    with Units() as mode:
        yield found
    found += [mode.count[_key(layer)] for layer in model if hasattr(layer, "weight")]


@contextmanager
def maps(model: nn.Module) -> Iterator[list[int]]:
    """Fills the list with the calls of the maps of each weight layer, in the order of their first forward."""
    found: list[int] = []
    count: dict[Layer, int] = {}

    def counted(name: str, original: Callable) -> Callable:
        def call(self: Layer, *args: object) -> object:
            only_bias = name == "param_vjp" and not args[4][0]  # type: ignore[index]
            count[self] = count.get(self, 0) + (not only_bias)
            return original(self, *args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "PASSES", [p for p in fusion.PASSES if p not in MERGING])
        patch.setattr(lower, "as_image_chain", lambda program: None)
        patch.setattr(Convolution, "reverse", Layer.reverse)
        for layer in (Linear, Convolution):
            for name in ("forward", "vjp", "jvp", "param_vjp"):
                patch.setattr(layer, name, counted(name, getattr(layer, name)))
        yield found
    found += count.values()


COUNTERS = [products, maps]


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return loss_of(model(x))


def _critic(model: nn.Module, x: Tensor) -> Tensor:
    return data_gradient(model(x).sum(), x).square().sum()


def _critic_and_loss(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y.mean() + data_gradient(y.sum(), x).square().sum()


def _penalty(model: nn.Module, x: Tensor) -> Tensor:
    return data_gradient(potential(model(x)), x).square().sum()


def _two_critics(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return (data_gradient(y[:, 0].sum(), x) * data_gradient(y[:, 1].sum(), x)).sum()


def _loss_and_two_penalties(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    loss = loss_of(y)
    return loss + data_gradient(loss, x).abs().sum() + data_gradient(potential(y), x).square().sum()


def _objective(*terms: Term, estimator: Any = None) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: DataGrad(F.cross_entropy, terms, estimator)(model, x, torch.arange(N)).total


def _objective_at_data(*terms: Term) -> Callable[[nn.Module, Tensor], Tensor]:
    """x requires no gradient, as data in a training loop: a step in one op knows then that none is asked for."""
    return lambda model, x: _objective(*terms)(model, x.detach())


def _critic_objective(model: nn.Module, x: Tensor) -> Tensor:
    return presets.r1()(model, x).total


# total, activation, also x̄?, units of [first, …, head]. A linear head needs no tangent: one unit less.
ROWS = [
    pytest.param(_loss, nn.ReLU, False, [2, 3, 3, 3], id="plain_step"),
    pytest.param(_loss, nn.ReLU, True, [3, 3, 3, 3], id="plain_step_with_input"),
    pytest.param(_critic, nn.ReLU, False, [4, 4, 4, 3], id="penalty_alone_linear_head"),
    pytest.param(_critic, nn.LeakyReLU, True, [4, 4, 4, 3], id="penalty_alone_linear_head_with_input"),
    pytest.param(_critic_and_loss, nn.ReLU, False, [5, 6, 6, 5], id="linear_loss_and_penalty"),
    pytest.param(_critic, nn.Softplus, False, [5, 6, 6, 3], id="penalty_alone_linear_head_smooth"),
    pytest.param(_penalty, nn.ReLU, False, [5, 6, 6, 6], id="penalty_alone_curved_loss"),
    pytest.param(penalised, nn.ReLU, False, [5, 6, 6, 6], id="loss_and_penalty"),
    pytest.param(penalised, nn.ReLU, True, [6, 6, 6, 6], id="loss_and_penalty_with_input"),
    pytest.param(penalised, nn.Softplus, False, [5, 6, 6, 6], id="loss_and_penalty_smooth"),
    pytest.param(_two_critics, nn.ReLU, False, [7, 7, 7, 5], id="two_data_gradients_linear_head"),
    pytest.param(_loss_and_two_penalties, nn.ReLU, False, [8, 9, 9, 9], id="loss_and_two_penalties"),
    pytest.param(_objective_at_data(Term(0.1)), nn.ReLU, False, [5, 6, 6, 6], id="objective"),
    pytest.param(
        _objective_at_data(Term(0.1), Term(0.1, penalties.l2)), nn.ReLU, False, [5, 6, 6, 6], id="objective_one_J"
    ),
    pytest.param(_objective(Term(0.1)), nn.Softplus, True, [6, 6, 6, 6], id="objective_smooth_with_input"),
    pytest.param(_critic_objective, nn.ReLU, False, [4, 4, 4, 3], id="objective_critic"),
]


@pytest.mark.parametrize("units_of", COUNTERS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("total", "activation", "with_input", "expected"), ROWS)
def test_units(
    total: Callable, activation: Callable, with_input: bool, expected: list[int], net: str, units_of: Callable
) -> None:
    make, shape = NETS[net]
    model = datagrad_ext.accelerate(make(activation).double())
    for _ in range(2):  # the first call also traces; it must not compute more either
        x = data(*shape).requires_grad_()
        with units_of(model) as found:
            total(model, x).backward(inputs=[*weights(model), *([x] if with_input else [])])
        assert found == expected


@pytest.mark.parametrize("units_of", COUNTERS)
@pytest.mark.parametrize("net", NETS)
def test_only_what_is_asked_for_is_computed(net: str, units_of: Callable) -> None:
    """One gradient of the head: no sweep goes below it."""
    make, shape = NETS[net]
    model, x = datagrad_ext.accelerate(make(nn.ReLU).double()), data(*shape).requires_grad_()
    with units_of(model) as found:
        torch.autograd.grad(loss_of(model(x)), weights(model)[-2])
    assert found == [1, 1, 1, 2]
    with units_of(model) as found:
        torch.autograd.grad(loss_of(model(x)), x)
    assert found == [2, 2, 2, 2]


@pytest.mark.parametrize("units_of", COUNTERS)
@pytest.mark.parametrize("net", NETS)
def test_frozen_layers_cost_less(net: str, units_of: Callable) -> None:
    make, shape = NETS[net]
    model, x = datagrad_ext.accelerate(make(nn.ReLU).double()), data(*shape).requires_grad_()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    with units_of(model) as found:
        penalised(model, x).backward(inputs=[p for p in model.parameters() if p.requires_grad])
    assert found == [3, 3, 5, 6]  # forward, data gradient and tangent; no ζ below the third


def test_autograd_itself_needs_more() -> None:
    """The counter counts: PyTorch's double backward of the same step."""
    model, x = linear_net(nn.ReLU).double(), data(N, 6).requires_grad_()
    with products(model) as found:
        _critic(model, x).backward()
    assert all(unit >= 5 for unit in found[1:-1]), found


ESTIMATORS = [
    pytest.param(0.1, FiniteDifference(0.5), [5, 7, 7, 7], id="forward"),
    pytest.param(0.5, FiniteDifference(0.5), [4, 5, 5, 5], id="forward_without_the_clean_loss"),
    pytest.param(0.1, CentralDifference(0.5), [7, 10, 10, 10], id="central"),
]


@pytest.mark.parametrize(("weight", "estimator", "expected"), ESTIMATORS)
def test_units_of_difference_estimators(weight: float, estimator: Any, expected: list[int]) -> None:
    model, x = datagrad_ext.accelerate(conv_net(nn.Tanh).double()), data(N, 2, 6, 6).requires_grad_()
    with products(model) as found:
        _objective(Term(weight), estimator=estimator)(model, x).backward(inputs=weights(model))
    assert found == expected
