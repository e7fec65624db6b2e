"""Nodes in C++ for networks that are one chain: who runs when, and that nobody can tell.

That their gradients are right is shown by every test of a chain on the CPU, too; the contract with autograd and chains
of images (`test_image_chain.py`) are tested with them ("cpu") and without ("functions").
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from oracle import Results, assert_equal, observe
from test_direct import Seen, SeenFunctions
from test_native import needs_native
from threads import run_threads
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import datagrad_ext
from datagrad_ext import _native, nodes
from datagrad_ext.accelerate import network_of

pytestmark = [needs_native, pytest.mark.skipif(_native.nodes is None, reason=f"no nodes: {_native._why_functions}")]

NODES, FUNCTIONS = "DataGradForward", "ForwardBackward"


def mlp(activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 6), activation(), nn.Linear(6, 3)).to(dtype)


def normalised(
    activation: type[nn.Module] = nn.Tanh, affine: bool = True, bias: bool = True, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Batch norm in evaluation, which folds into the linear layer before it."""
    torch.manual_seed(0)
    layers = [[nn.Linear(5, 7, bias), nn.BatchNorm1d(7, affine=affine), activation()], [nn.Linear(7, 6), activation()]]
    model = nn.Sequential(*layers[0], *layers[1], nn.Linear(6, 3, bias), nn.BatchNorm1d(3, affine=affine)).to(dtype)
    for norm in (model[1], model[6]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def images(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A chain of images whose norms update running statistics and count calls."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    body = nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5, momentum=None), nn.Tanh()
    return nn.Sequential(*stem, *body, nn.Flatten(), nn.Linear(80, 3)).to(dtype)


def photos(n: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def rows(*leading: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*leading, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def penalised(model: Callable[[Tensor], Tensor], x: Tensor, powers: tuple[int, ...] = (3,)) -> Tensor:
    """A loss and a penalty for each data gradient."""
    y = model(x)
    total = y.square().sum()
    for power in powers:
        (J,) = torch.autograd.grad((y**power).sum(), x, create_graph=True)
        total = total + J.square().sum()
    return total


def step(powers: tuple[int, ...] = (3,)) -> Callable[[nn.Module, Tensor], Results]:
    def run(model: nn.Module, x: Tensor) -> Results:
        total = penalised(model, x, powers)
        total.backward()
        return {"total": total.detach()}

    return run


def name_of(y: Tensor) -> str:
    assert y.grad_fn is not None
    return y.grad_fn.name()


# ------------------------------------------------------------------------------------------ the right gradient


@pytest.mark.parametrize("leading", [(4,), (2, 3), (1,), (), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("powers", [(), (3,), (3, 4), (1, 2)], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Softplus])
def test_step(activation: type[nn.Module], powers: tuple[int, ...], leading: tuple[int, ...]) -> None:
    x = rows(*leading)
    expected = observe(mlp(activation), [x], step(powers))
    model = datagrad_ext.accelerate(mlp(activation))
    assert name_of(model(x)) == NODES
    assert_equal(observe(model, [x], step(powers)), expected)


@pytest.mark.parametrize("total", ["both", "loss", "penalty"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_step_with_folded_norms(activation: type[nn.Module], bias: bool, affine: bool, total: str) -> None:
    def code(model: nn.Module, x: Tensor) -> Results:
        y = model(x)
        (J,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        values = {"loss": y.square().sum(), "penalty": J.square().sum()}
        sum(values[name] for name in (["loss", "penalty"] if total == "both" else [total])).backward()
        return values

    x = rows(4)
    expected = observe(normalised(activation, affine, bias), [x], code)
    model = datagrad_ext.accelerate(normalised(activation, affine, bias))
    assert name_of(model(x)) == NODES
    assert_equal(observe(model, [x], code), expected)


@pytest.mark.parametrize("frozen", [("0.weight", "1.weight", "1.bias"), ("1.weight",), ("0.weight", "6.bias")])
def test_frozen_parameters_of_folded_norms(frozen: tuple[str, ...]) -> None:
    def build() -> nn.Module:
        model = normalised()
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        return model

    x = rows(4)
    assert_equal(observe(datagrad_ext.accelerate(build()), [x], step()), observe(build(), [x], step()))


@pytest.mark.filterwarnings("ignore::datagrad_ext.ReferencePathWarning")
@pytest.mark.parametrize("order", [0, 1, 2])
def test_statistics_are_those_of_the_forward(order: int) -> None:
    """They may change before the backward comes; what is beyond the fast path (order 2) reads the kept ones, too."""

    def code(at_once: bool) -> Callable[[nn.Module, Tensor], Results]:
        def run(model: nn.Module, x: Tensor) -> Results:
            y = model(x)
            if at_once:
                model[1].running_mean.add_(1)
            value = y.square().sum()
            for _ in range(order):
                (J,) = torch.autograd.grad(value, x, create_graph=True)
                value = J.square().sum()
            value.backward()
            if not at_once:
                model[1].running_mean.add_(1)
            return {"value": value.detach()}

        return run

    x = rows(4)
    expected = observe(normalised(), [x], code(at_once=False))
    assert_equal(observe(datagrad_ext.accelerate(normalised()), [x], code(at_once=True)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Nodes do what the Functions do."""
    x = rows(4, dtype=dtype)
    found = {}
    for name in (NODES, FUNCTIONS):
        model = datagrad_ext.accelerate(mlp(dtype=dtype))
        with pytest.MonkeyPatch.context() as patch:
            if name == FUNCTIONS:
                patch.setattr(nodes, "nodes", None)
            assert name_of(model(x)) == name
            found[name] = observe(model, [x], step())
    assert found[NODES].keys() == found[FUNCTIONS].keys()
    for key, value in found[NODES].items():
        assert value is None or torch.equal(value, found[FUNCTIONS][key]), key


def test_statistics_of_another_dtype_are_for_functions() -> None:
    def build() -> nn.Module:
        model = normalised(dtype=torch.float32)
        model[1].running_mean, model[1].running_var = (b.double() for b in list(model[1].buffers())[:2])
        return model

    x = rows(4, dtype=torch.float32)
    assert name_of(datagrad_ext.accelerate(build())(x)) == FUNCTIONS


@pytest.mark.parametrize("layout", [Tensor.t, lambda x: x.t().expand(3, 5, 5)[1], lambda x: x.t()[::2]])
def test_strides_of_the_input(layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).requires_grad_()
    expected = observe(mlp(), [x], step())
    assert_equal(observe(datagrad_ext.accelerate(mlp()), [x], step()), expected)


@pytest.mark.parametrize("frozen", [("0.weight",), ("0.bias", "4.weight"), ("0.weight", "2.weight", "4.weight")])
def test_frozen_parameters(frozen: tuple[str, ...]) -> None:
    def build() -> nn.Module:
        model = mlp(nn.ReLU)
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        return model

    x = rows(4)
    expected = observe(build(), [x], step())
    model = datagrad_ext.accelerate(build())
    assert name_of(model(x)) == NODES
    assert_equal(observe(model, [x], step()), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("powers", [(), (3,), (3, 4), (1, 2)], ids=str)
def test_step_of_images(powers: tuple[int, ...], training: bool) -> None:
    """In evaluation the norms are folded."""

    def accelerated() -> nn.Module:
        return datagrad_ext.accelerate(images().train(training))

    def code(model: nn.Module, x: Tensor) -> Results:
        return {**step(powers)(model, x), **{name: b.double() for name, b in model.named_buffers()}}

    x = photos()
    assert name_of(accelerated()(x)) == NODES
    assert_equal(observe(accelerated(), [x], code), observe(images().train(training), [x], code))


def test_layouts_of_images() -> None:
    """What is neither contiguous nor in channels_last is copied once; the gradient is the tensor's own."""
    x = photos(4).detach()[::2].transpose(2, 3).requires_grad_()
    model = datagrad_ext.accelerate(images())
    assert name_of(model(x)) == NODES
    assert_equal(observe(datagrad_ext.accelerate(images()), [x], step()), observe(images(), [x], step()))


# ------------------------------------------------------------------------------------------ who runs when


class Subclass(nn.Parameter):
    pass


def _with_subclass(model: nn.Module) -> nn.Module:
    model[0].weight = Subclass(model[0].weight.detach())
    return model


HANDED_OVER: dict[str, tuple[Callable[[], AbstractContextManager], Callable[[nn.Module], nn.Module]]] = {
    "dispatch mode": (Seen, lambda model: model),
    "function mode": (SeenFunctions, lambda model: model),
    "a parameter of another class": (nullcontext, _with_subclass),
}


@pytest.mark.parametrize("name", HANDED_OVER)
def test_functions_take_what_nodes_do_not(name: str) -> None:
    context, changed = HANDED_OVER[name]
    x, model = rows(4), datagrad_ext.accelerate(changed(mlp()))
    expected = observe(mlp(), [x], step())
    with context():
        assert name_of(model(x)) == FUNCTIONS
        actual = observe(model, [x], step())
    assert_equal(actual, expected)


def test_a_call_that_nodes_do_not_take_is_counted_once() -> None:
    """By norms, and in running statistics."""
    x, plain, model = photos(), images(), datagrad_ext.accelerate(images())
    for _ in range(2):
        plain(x)
        with SeenFunctions():
            assert name_of(model(x)) == FUNCTIONS
    assert_equal(dict(model.named_buffers()), dict(plain.named_buffers()))


def test_the_first_run_is_described_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of the table, with the bytes that are kept, whoever ran."""
    found = []
    for build, x in ((mlp, rows(4)), (images, photos()), (lambda: images().eval(), photos())):
        for available in (_native.nodes, None):
            monkeypatch.setattr(nodes, "nodes", available)
            model = datagrad_ext.accelerate(build())
            assert name_of(model(x)) == (FUNCTIONS if available is None else NODES)
            found.append(datagrad_ext.program(model).rows)
    for by_nodes, by_functions in zip(found[::2], found[1::2], strict=True):
        assert len(by_nodes) == 1
        assert by_nodes == by_functions


def test_a_network_of_more_than_a_chain_runs_by_functions() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)).double())
    assert name_of(model(rows(4))) == FUNCTIONS


def test_a_mode_around_the_backward_alone_sees_the_sweeps() -> None:
    x = rows(4)
    expected = observe(mlp(), [x], step())

    def watched(model: nn.Module, x: Tensor) -> Results:
        y = model(x)
        total = y.square().sum()
        with Seen() as mode:
            (J,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
            total = total + J.square().sum()
            total.backward()
        sweeps = [op._opname for op in mode.ops if op.namespace == "datagrad"]
        assert sweeps == ["chain_data_vjp", "chain_data_jvp", "chain_reverse"]
        return {"total": total.detach()}

    assert_equal(observe(datagrad_ext.accelerate(mlp()), [x], watched), expected)


@pytest.mark.parametrize(("build", "x", "kind"), [(mlp, rows(4), "chain"), (images, photos(), "image_chain")])
def test_the_profiler_sees_nodes_and_sweeps(build: Callable[[], nn.Module], x: Tensor, kind: str) -> None:
    model = datagrad_ext.accelerate(build())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        penalised(model, x).backward()
    names = {event.name for event in profiler.events()}
    sweeps = {f"datagrad::{kind}_{sweep}" for sweep in ("forward", "data_vjp", "data_jvp", "reverse")}
    assert {NODES, "DataGradDataGradient", *sweeps} <= names


def test_nodes_of_another_torch_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {**_native._compiled.build_info(), "torch": "2.99.0"}
    monkeypatch.setattr(_native, "_compiled", type("Compiled", (), {"build_info": staticmethod(lambda: record)}))
    found, why = _native._find_nodes()
    assert found is None
    assert "compiled for torch 2.99.0: install datagrad_ext again" in why


def test_nodes_that_do_not_load_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datagrad_ext._nodes", None)
    monkeypatch.delattr(datagrad_ext, "_nodes")
    with pytest.warns(RuntimeWarning, match="no nodes in C"):
        found, why = _native._find_nodes()
    assert found is None
    assert "the module did not load" in why


def test_the_listing_says_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_why_functions", "they were compiled for torch 2.99.0")
    assert "no nodes in C++: they were compiled for torch 2.99.0" in str(datagrad_ext.backends())


# ------------------------------------------------------------------------------------------ autograd around them


def test_hooks_see_every_tensor_that_is_saved() -> None:
    x = rows(4)
    expected = observe(mlp(), [x], step())
    packed: list[Tensor] = []

    def pack(t: Tensor) -> tuple[Tensor, int]:
        packed.append(t)
        return t.clone(), len(packed)

    model = datagrad_ext.accelerate(mlp())
    model(x)
    with saved_tensors_hooks(pack, lambda kept: kept[0]):
        y = model(x)
    assert len(packed) == 1 + len(list(model.parameters())) + 2  # x, the parameters, bits and values
    with saved_tensors_hooks(pack, lambda kept: kept[0]):
        assert_equal(observe(model, [x], step()), expected)
    with save_on_cpu():
        assert_equal(observe(model, [x], step()), expected)
    del y


def test_hooks_see_what_images_save() -> None:
    x, packed = photos(), list[Tensor]()
    expected = observe(images(), [x], step())
    model = datagrad_ext.accelerate(images())
    with saved_tensors_hooks(lambda t: (packed.append(t), t.clone())[1], lambda t: t):
        y = model(x)
        # x, the parameters; of norms μ and r, bits of the ReLU, and the input of each unit but the first
        assert len(packed) == 1 + len(list(model.parameters())) + 2 * 2 + 1 + 5
        packed.clear()
        torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        assert len(packed) == 1 + 5  # g, and the cotangents of the outputs of the units before the last
        assert_equal(observe(datagrad_ext.accelerate(images()), [x], step()), expected)


@pytest.mark.parametrize(
    ("value", "count"), [(lambda y: y.sum(), 1), (lambda y: y.pow(3).sum(), 2)], ids=["linear", "cubic"]
)
def test_hooks_of_the_output(value: Callable[[Tensor], Tensor], count: int) -> None:
    """A penalty alone of a loss linear in the output sends nothing to it: the node is reached, the hook not called."""

    def code(model: nn.Module, x: Tensor) -> Results:
        seen: list[Any] = []
        y = model(x)
        y.register_hook(lambda g: (seen.append(g), 2 * g)[1])
        y.retain_grad()
        (J,) = torch.autograd.grad(value(y), x, create_graph=True)
        J.square().sum().backward()
        assert [type(g) for g in seen] == [Tensor] * count
        return {"y": y.grad}

    x = rows(4)
    expected = observe(mlp(), [x], code)
    assert_equal(observe(datagrad_ext.accelerate(mlp()), [x], code), expected)


@pytest.mark.parametrize(("build", "x"), [(mlp, rows(4)), (images, photos()), (lambda: images().eval(), photos())])
def test_nothing_is_kept_behind_a_step(build: Callable[[], nn.Module], x: Tensor) -> None:
    """Neither memory of a step, nor, once its graphs are gone, the network."""
    model: nn.Module | None = datagrad_ext.accelerate(build())
    y = model(x)  # type: ignore[misc]
    (J,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    total = J.square().sum()
    y_, J_ = weakref.ref(y), weakref.ref(J)
    total.backward(retain_graph=True)
    total.backward()
    del y, J, total
    assert y_() is None
    assert J_() is None
    network = weakref.ref(network_of(model).latest)
    model = None
    gc.collect()
    assert network() is None


def test_a_backward_that_fails_on_its_way_leaves_nothing() -> None:
    """What sweep 3 left on the tape is that backward's own."""
    x = rows(4)
    expected = observe(mlp(), [x], step())
    fails = [True]

    def refuse(g: Tensor) -> None:
        if fails[0]:
            raise ValueError("not now")

    def code(model: nn.Module, x: Tensor) -> Results:
        y = model(x)
        (J,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        fails[0] = True
        y.register_hook(refuse)
        total = y.square().sum() + J.square().sum()
        with pytest.raises(ValueError, match="not now"):
            total.backward(retain_graph=True)
        fails[0] = False
        total.backward()
        return {"total": total.detach()}

    assert_equal(observe(datagrad_ext.accelerate(mlp()), [x], code), expected)


def test_two_backwards_of_one_graph_at_once() -> None:
    x = rows(64)
    model = datagrad_ext.accelerate(mlp())
    y = model(x)
    (J,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    total, params = y.square().sum() + J.square().sum(), list(model.parameters())
    expected = torch.autograd.grad(total, params, retain_graph=True)
    found: list[tuple[Tensor, ...]] = []

    def run() -> None:
        for _ in range(20):
            found.append(torch.autograd.grad(total, params, retain_graph=True))

    run_threads([run] * 3)
    assert len(found) == 60
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, expected, strict=True))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_names_the_node() -> None:
    x = rows(4)
    model = datagrad_ext.accelerate(mlp())
    with torch.autograd.detect_anomaly(check_nan=True):
        y = model(x)
        y.register_hook(lambda g: g * float("nan"))
        with pytest.raises(RuntimeError, match=f"'{NODES}' returned nan values"):
            y.sum().backward()


def test_a_node_called_by_hand() -> None:
    x, model = rows(4), datagrad_ext.accelerate(mlp())
    y = model(x)
    g = torch.ones_like(y)
    expected = torch.autograd.grad(mlp()(x), [x], g)
    with torch.no_grad():
        found = y.grad_fn(g, None)  # type: ignore[misc]
    assert_equal({"J": found[0]}, {"J": expected[0]})
    assert all(bar is not None for bar in found)


def test_compiled_autograd_takes_functions_or_says_why() -> None:
    compiler = pytest.importorskip("torch._dynamo.compiled_autograd")
    x, model = rows(4), datagrad_ext.accelerate(mlp())
    y = model(x)
    assert name_of(y) == NODES
    with compiler._enable(torch.compile(backend="eager")):
        assert name_of(model(x)) == FUNCTIONS
        with pytest.raises(NotImplementedError, match="Enable it before the forward too"):
            y.sum().backward()
