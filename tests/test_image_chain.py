"""Plain convolutional networks as one step each: gradients of both orders, and which inputs are run so.

What autograd sees of them is tested with nodes in C++ ("cpu") and without ("functions").
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from cases import CE, OBJECTIVES, Body, Case, Objective, data, frozen, ids, network
from oracle import as_pytorch, by_formula, check, difference, observe
from test_native import needs_native
from threads import run_threads
from torch import Tensor, nn
from training_code import data_gradient, potential

import datagrad_ext
from datagrad_ext.layers.image_chain import ImageChain

pytestmark = needs_native
DEVICES = ("cpu", "functions")
_PHOTO = ((3, 3, 8, 8),)


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, dilation=2, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(150, 7),
        nn.ReLU(),
        nn.Linear(7, 5),
    )


def curved() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, (4, 3), (2, 1), (1, 0)),
        nn.Softplus(beta=3),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def deep_and_few() -> nn.Module:
    """Of one sample: pairs are smaller than the gradients, and sweep 4 takes both products."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 4), nn.LeakyReLU(0.1), nn.Conv2d(24, 30, 4), nn.Softplus(), nn.Conv2d(30, 5, 2), nn.Flatten()
    )


def normalised() -> nn.Module:
    """Norms of every sort: counted by themselves, without parameters, without running statistics, of groups."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.BatchNorm2d(6, affine=False, eps=0.3),
        nn.Softplus(),
        nn.Conv2d(6, 4, 3, stride=2, bias=False),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 6, bias=False),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(6, 5),
    )


class Residual(nn.Module):
    """A block of a residual network, its sum in place."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.way = nn.Identity() if stride == 1 else nn.Conv2d(inputs, width, 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.way(x)
        return nn.functional.relu_(y)


def evaluated() -> nn.Module:
    """Norms for whose folding a convolution has a bias, or a linear layer, with and without a rectifier behind."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, affine=False),
        nn.LeakyReLU(0.1),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(80, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 5),
    )


def _trained(model: nn.Module) -> nn.Module:
    """With running statistics that are not those of a new norm."""
    for seed in range(3):
        model(data(*_PHOTO[0], seed=seed).float())
    return model


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        Residual(4, 4, 1),
        Residual(4, 6, 2),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def twice_of_x() -> nn.Module:
    """Two convolutions of x that leave pairs."""
    return Body(
        lambda m, x: m.head(nn.functional.softplus(m.first(x) + m.second(x))),
        first=nn.Conv2d(3, 30, 4),
        second=nn.Conv2d(3, 30, 4, bias=False),
        head=nn.Sequential(nn.Conv2d(30, 5, 4), nn.Flatten()),
    )


def without_norms() -> nn.Module:
    """Branches of x and of values, values that many read, sums of sums."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.first(x), m.second(x)
        c = torch.relu(a + b)
        d = m.third(c) + c + a
        return torch.flatten(nn.functional.softplus(d) + (d + d).relu(), 1)

    return Body(
        forward,
        first=nn.Conv2d(3, 4, 3),
        second=nn.Conv2d(3, 4, 3, bias=False),
        third=nn.Conv2d(4, 4, 3, padding=1),
    )


CASES = [
    network("conv_critic"),
    Case("pooled", pooled, _PHOTO),
    Case("curved", curved, _PHOTO),
    Case("images_out", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), _PHOTO),
    Case("ends_in_a_rectifier", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU()), _PHOTO),
    Case("deep_and_few", deep_and_few, ((1, 3, 8, 8),)),
    Case("twice_of_x", twice_of_x, ((1, 3, 7, 7),)),
    Case("one_channel", lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)), ((2, 1, 7, 7),)),
    Case("normalised", normalised, _PHOTO),
    Case("residual", residual, _PHOTO),
    Case("without_norms", without_norms, _PHOTO),
    Case("evaluated", lambda: _trained(residual()), _PHOTO, train=False),
    Case("evaluated_head", lambda: _trained(evaluated()), _PHOTO, train=False),
    Case("frozen_norm", lambda: frozen(normalised(), "1"), _PHOTO),
    Case("frozen_stem", lambda: frozen(residual(), "0"), _PHOTO),
    Case("frozen_first", lambda: frozen(pooled(), "0"), _PHOTO),
    Case("frozen_weight", lambda: frozen(curved(), "2.weight"), _PHOTO),
    Case("frozen_head", lambda: frozen(pooled(), "9"), _PHOTO),
]


def _rows(model: nn.Module) -> list[str]:
    return [row.layer for row in datagrad_ext.program(model).rows]


def _is_chain(model: nn.Module) -> bool:
    """Whether the latest first run was one step."""
    rows = _rows(model)
    return len(rows) == 1 and "→" in rows[0]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_every_network(case: Case, layout: Any, objective: Objective, device: str) -> None:
    inputs = [x.contiguous(memory_format=layout) for x in case.inputs()]
    models = []

    def accelerate(model: nn.Module) -> nn.Module:
        models.append(datagrad_ext.accelerate(model))
        return models[0]

    check(case.build(), inputs, objective, accelerate)
    assert _is_chain(models[0])


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_layer_by_layer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same networks as they run where the chain is not for the input."""
    monkeypatch.setattr(ImageChain, "covers", lambda *_: False)
    objective = Objective(CE, ((CE, "l2_squared"),))
    model = datagrad_ext.accelerate(copy.deepcopy(case.build()))
    observe(model, case.inputs(), objective)
    assert not _is_chain(model)
    check(case.build(), case.inputs(), objective, datagrad_ext.accelerate)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_float32(case: Case, device: str) -> None:
    """In channels_last inside where that pays; what enters and leaves keeps its layout."""
    exact, x = case.build(), case.inputs()[0]
    model = datagrad_ext.accelerate(copy.deepcopy(exact).float())

    def run(model: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        y = model(x)
        J = data_gradient(potential(y), x)
        (J.square().sum() + y.square().sum()).backward()
        return [y, J, x.grad, *[p.grad for p in model.parameters() if p.requires_grad]]  # type: ignore[list-item]

    found, expected = run(model, x.float()), run(exact, x)
    assert _is_chain(model)
    for ours, truth in zip(found, expected, strict=True):
        assert difference(ours, truth).norm < 1e-5
        assert ours.is_contiguous()


@pytest.mark.parametrize("make", [pooled, curved, normalised, residual, without_norms])
def test_several_data_gradients_and_third_order(make: Any, device: str) -> None:
    def code(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = model(x)
        first, second = data_gradient(y[:, 0].sum(), x), data_gradient(potential(y), x)
        gradients = torch.autograd.grad((first * second).sum(), [*model.parameters(), x], create_graph=True)
        third = sum(g.square().sum() for g in gradients)
        third.backward()
        return {"y": y, "third": third}

    model = by_formula(make().double())
    with pytest.warns(datagrad_ext.ReferencePathWarning):
        check(model, [data(*_PHOTO[0])], code, lambda m: datagrad_ext.accelerate(as_pytorch(m)))


@pytest.mark.parametrize("make", [pooled, curved, normalised, residual, without_norms])
def test_a_retained_graph_gives_the_same_twice(make: Any, device: str) -> None:
    model = datagrad_ext.accelerate(make().double())
    x = data(*_PHOTO[0]).requires_grad_()
    y = model(x)
    total = y.square().sum() + data_gradient(potential(y), x).square().sum()
    found = [torch.autograd.grad(total, [x, *model.parameters()], retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_running_statistics(device: str) -> None:
    """They are updated once a forward, whatever follows, by each norm's own momentum; none in evaluation mode."""
    plain = normalised().double()
    model = datagrad_ext.accelerate(copy.deepcopy(plain))

    def buffers(of: nn.Module) -> list[Tensor]:
        return list(of.buffers())

    for seed in range(3):
        x = data(*_PHOTO[0], seed=seed).requires_grad_()
        plain(x)
        y = model(x)
        for _ in range(2):
            J = data_gradient(potential(y), x)
            J.square().sum().backward(retain_graph=True)
        y.square().sum().backward()
        assert _is_chain(model)
        for ours, truth in zip(buffers(model), buffers(plain), strict=True):
            assert difference(ours.double(), truth.double()).norm < 1e-12
    before = [t.clone() for t in buffers(model)]
    model.eval()(x).sum().backward()
    assert all(map(torch.equal, before, buffers(model)))


@pytest.mark.parametrize("shape", [(1, 3, 3, 3), (2, 3, 3, 3)], ids=str)
def test_a_norm_of_one_value_is_refused(shape: tuple[int, ...]) -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.ones(shape, requires_grad=True)
    if shape[0] > 1:
        model(x)
        return
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(x)


def _two(join: Any, channels: int) -> nn.Module:
    """Two convolutions of x, joined."""
    return Body(lambda m, x: join(m.f(x), m.g(x)), f=nn.Conv2d(3, 6, 3), g=nn.Conv2d(3, channels, 3))


_SMALL, _LARGE = (2, 3, 16, 16), (3, 3, 90, 90)
# the module in front of a ReLU and a Linear-free end, shape, whether one step runs it
INPUTS = [
    pytest.param(lambda: nn.Conv2d(3, 8, 3), _SMALL, True, id="small"),
    pytest.param(lambda: nn.Conv2d(3, 256, 9), _LARGE, False, id="large"),
    pytest.param(lambda: nn.Conv2d(3, 8, 1), _SMALL, False, id="one by one"),
    pytest.param(lambda: nn.Conv2d(3, 6, 3, groups=3), _SMALL, False, id="groups"),
    pytest.param(lambda: nn.Conv2d(3, 6, 3, padding="same"), _SMALL, False, id="same"),
    pytest.param(lambda: nn.Conv2d(3, 6, 3), _SMALL[1:], False, id="unbatched"),
    pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2, ceil_mode=True)), _SMALL, False, id="ceil"),
    pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), _SMALL, True, id="norm"),
    pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6)), _SMALL, False, id="instance norm"),
    pytest.param(lambda: Body(lambda m, x: m.f(x) + x, f=nn.Conv2d(3, 3, 1)), _SMALL, False, id="x in a sum"),
    pytest.param(lambda: _two(lambda f, g: f + g, 6), _SMALL, True, id="sum"),
    pytest.param(lambda: _two(lambda f, g: f - g, 6), _SMALL, False, id="difference"),
    pytest.param(lambda: _two(lambda f, g: f + g, 1), _SMALL, False, id="a sum that broadcasts"),
    pytest.param(lambda: _two(lambda f, g: f, 6), _SMALL, False, id="a value that nobody reads"),
]


@pytest.mark.parametrize(("make", "shape", "expected"), INPUTS)
def test_which_inputs_are_run_so(make: Any, shape: tuple[int, ...], expected: bool) -> None:
    model = datagrad_ext.accelerate(nn.Sequential(make(), nn.ReLU()))
    x = data(*shape).float().requires_grad_()
    data_gradient(model(x).sum(), x)
    assert _is_chain(model) is expected


def test_one_model_runs_both_ways() -> None:
    """Which way a call runs is its input's matter, through all of its sweeps, whatever ran before or in between."""
    model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 4, 5))
    small, large = data(1, 3, 12, 12).float(), data(4, 3, 70, 70, seed=2).float()

    def code(model: nn.Module, *xs: Tensor) -> dict[str, Tensor]:
        ys = [model(x) for x in xs]
        Js = [data_gradient(potential(y.mean((2, 3))), x) for y, x in zip(ys, xs, strict=True)]
        (sum(J.square().sum() for J in Js) + sum(y.square().mean() for y in ys)).backward()  # type: ignore[union-attr]
        return {f"J {k}": J for k, J in enumerate(Js)}

    for inputs in ([small, large], [large, small], [small, large, small]):
        check(model, inputs, code, datagrad_ext.accelerate, rtol=1e-4)


def test_an_error_arrives_with_its_sentence() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    y = model(x)
    with pytest.raises(RuntimeError, match=r"mul|size|shape|expand"):
        torch.autograd.grad(y, x, torch.ones(2, 5, 4, 3))
    with pytest.raises(RuntimeError, match=r"4 channels|3 channels"):
        model(torch.ones(2, 4, 8, 8, requires_grad=True))
    for pool in (nn.MaxPool2d(2, padding=2), nn.AvgPool2d(2, padding=2)):
        model = datagrad_ext.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool))
        with pytest.raises(RuntimeError, match="pad should be at most half"):
            model(x)


def test_two_threads_train_at_once(device: str) -> None:
    """Two models of one trace's kind, and one model in both."""
    shared = datagrad_ext.accelerate(pooled().double())
    models = [shared, shared, datagrad_ext.accelerate(pooled().double())]
    x, results = data(*_PHOTO[0]), dict[int, list[tuple[Tensor, ...]]]()

    def gradients(model: nn.Module) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        total = y.square().sum() + data_gradient(potential(y), leaf).square().sum()
        return torch.autograd.grad(total, [leaf, *model.parameters()])

    expected = [gradients(model) for model in models]

    def work(k: int) -> None:
        results[k] = [gradients(models[k]) for _ in range(20)]

    run_threads([partial(work, k) for k in range(3)])
    for k, found in results.items():
        assert len(found) == 20
        assert all(torch.equal(a, b) for each in found for a, b in zip(each, expected[k], strict=True))


def test_code_between_layers_is_followed() -> None:
    """Functions in the place of modules."""
    make = lambda: Body(  # noqa: E731
        lambda m, x: m.head(torch.flatten(nn.functional.max_pool2d(m.conv(x).relu(), 2), 1)),
        conv=nn.Conv2d(3, 4, 3),
        head=nn.Linear(36, 5),
    )
    model = datagrad_ext.accelerate(make().double())
    observe(model, [data(*_PHOTO[0])], Objective(CE, ((CE, "l2_squared"),)))
    assert _is_chain(model)
