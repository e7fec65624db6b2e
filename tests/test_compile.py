"""torch.compile, export and make_fx, around and inside: a right gradient or torch's own error, never a wrong one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from cases import network
from oracle import assert_equal, observe
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from training_code import data_gradient, loss_of, numbered, penalised, weights

import datagrad_ext

# torch's compiler warns of what it cannot trace, and uses torch.jit, which torch deprecates
pytestmark = pytest.mark.filterwarnings("ignore")

Code = Callable[[nn.Module, Tensor], Mapping[str, "Tensor | None"]]
BACKENDS = ["eager", "aot_eager"]
REFUSED = "does not currently support double backward"


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _inference(model: nn.Module, x: Tensor):
    with torch.no_grad():
        y = model(x)
    return {"y": y.reshape(y.shape[0], -1)}


def _first_order(model: nn.Module, x: Tensor):
    loss = loss_of(model(x))
    loss.backward()
    return {"loss": loss}


def _input_without_gradient(model: nn.Module, x: Tensor):
    loss_of(model(x.detach())).backward()
    return {}


def _penalty(model: nn.Module, x: Tensor):
    penalised(model, x).backward()
    return {}


def _penalty_alone(model: nn.Module, x: Tensor):
    data_gradient(model(x).sum(), x).square().sum().backward()
    return {}


@pytest.mark.parametrize("code", [_inference, _first_order, _input_without_gradient, _penalty, _penalty_alone])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["mlp_relu", "dag_dense", "untraceable"])
def test_compiled_model(name: str, backend: str, code: Code) -> None:
    """The graph breaks at the model where a data gradient may be asked for: no code of it refuses double backward."""
    case = network(name)
    model = torch.compile(datagrad_ext.accelerate(case.build()), backend=backend)
    actual = observe(model, case.inputs(), code)
    actual = {key.replace("_orig_mod.", ""): value for key, value in actual.items()}
    assert_equal(actual, observe(case.build(), case.inputs(), code))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_step(backend: str) -> None:
    """Model, loss, data gradient and backward in one compiled function."""
    case = network("mlp_gelu")

    def compiled(model: nn.Module, x: Tensor):
        torch.compile(penalised, backend=backend)(model, x).backward()
        return {}

    model = datagrad_ext.accelerate(case.build())
    if backend == "eager":
        actual = observe(model, case.inputs(), compiled)
        assert_equal(actual, observe(case.build(), case.inputs(), _penalty))
    else:  # the loss, too, becomes code that refuses
        with pytest.raises(RuntimeError, match=REFUSED):
            observe(model, case.inputs(), compiled)


def test_compiled_function_that_takes_a_data_gradient() -> None:
    """The model ran outside: torch.compile meets its backward only."""
    case = network("dag_dense")

    def code(model: nn.Module, x: Tensor, compiled: bool):
        y = model(x)

        def penalty(value: Tensor, at: Tensor) -> Tensor:
            return data_gradient(loss_of(value), at).square().sum()

        (torch.compile(penalty, backend="eager") if compiled else penalty)(y, x).backward()
        return {}

    ours = observe(datagrad_ext.accelerate(case.build()), case.inputs(), lambda m, x: code(m, x, True))
    assert_equal(ours, observe(case.build(), case.inputs(), lambda m, x: code(m, x, False)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_func_grad_keeps_the_penalty(backend: str) -> None:
    """torch.compile over torch.func.grad drops the second order of an autograd.Function, silently."""
    case = network("mlp_gelu")
    (x,) = case.inputs()

    def gradients(model: nn.Module, compiled: bool):
        theta = {k: p.detach() for k, p in model.named_parameters()}

        def total(p, v):
            f = lambda u: loss_of(torch.func.functional_call(model, p, (u,)))  # noqa: E731
            return f(v) + torch.func.grad(f)(v).square().sum()

        function = torch.func.grad(total)
        return (torch.compile(function, backend=backend) if compiled else function)(theta, x)

    assert_equal(gradients(datagrad_ext.accelerate(case.build()), True), gradients(case.build(), False))


def test_compiled_functional() -> None:
    x, layer = network("mlp_relu").inputs(), nn.Linear(6, 5).double()

    def code(model: nn.Module, v: Tensor, compiled: bool):
        f = datagrad_ext.functional
        run = lambda u: f.softplus(f.linear(u, model.weight, model.bias))  # noqa: E731
        y = (torch.compile(run, backend="eager") if compiled else run)(v)
        data_gradient(loss_of(y), v).square().sum().backward()
        return {"y": y}

    assert_equal(observe(layer, x, lambda m, v: code(m, v, True)), observe(layer, x, lambda m, v: code(m, v, False)))


@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("name", ["mlp_relu", "conv_critic", "dag_dense"])
def test_export(name: str, wants_gradient: bool) -> None:
    case = network(name)
    x = tuple(t.requires_grad_(wants_gradient) for t in case.inputs())
    exported = torch.export.export(datagrad_ext.accelerate(case.build()), x).module()
    other = case.inputs(seed=5)
    assert_equal({"y": exported(*other)}, {"y": case.build()(*other)})


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_critic"])
def test_make_fx(name: str) -> None:
    """The graph of a whole step, sweeps and all, is right for other numbers, too."""
    case = network(name)

    def step(model: nn.Module) -> Callable[[Tensor], list[Tensor]]:
        return lambda x: list(torch.autograd.grad(penalised(model, x), weights(model), allow_unused=True))

    (x,), (other,) = case.inputs(), case.inputs(seed=5)
    graph = make_fx(step(datagrad_ext.accelerate(case.build())))(x.requires_grad_())
    actual, expected = graph(other.requires_grad_()), step(case.build())(other)
    assert_equal(numbered(actual), numbered(expected))


def test_make_fx_with_fake_tensors_says_once_that_it_takes_the_reference_path() -> None:
    case = network("mlp_gelu")
    model = datagrad_ext.accelerate(case.build())
    theta = {name: p.detach() for name, p in model.named_parameters()}

    def J(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return data_gradient(loss_of(torch.func.functional_call(model, p, (x,))), x)

    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always", datagrad_ext.ReferencePathWarning)
        graph = make_fx(J, tracing_mode="fake")(theta, case.inputs()[0].requires_grad_())
    said = [str(w.message) for w in recorded if issubclass(w.category, datagrad_ext.ReferencePathWarning)]
    assert len(said) == 1
    assert re.search("FakeTensor", said[0])
    x = case.inputs(seed=5)[0].requires_grad_()
    assert_equal({"J": graph(theta, x)}, {"J": data_gradient(loss_of(case.build()(x)), x)})
