"""Nothing is kept: no reference cycles, no growth, and after the backward only what the user holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cases import Case, ids, network
from torch import Tensor, nn
from training_code import data_gradient, loss_of, penalised, potential

import datagrad_ext

NETWORKS = [
    network(name)
    for name in (
        "mlp_relu",
        "mlp_gelu",
        "conv_vgg",
        "dag_dense",
        "mlp_batch_norm",
        "opaque_scaled_weights",
        "untraceable",
    )
]


def _tensors() -> list[Tensor]:
    """Tensors alive, asked by type(): some objects of torch answer isinstance() with a warning."""
    return [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _loss_and_penalty(model: nn.Module, x: Tensor) -> None:
    penalised(model, x).backward()


def _penalty_alone(model: nn.Module, x: Tensor) -> None:
    data_gradient(potential(model(x)), x).abs().sum().backward()


def _graph_dropped(model: nn.Module, x: Tensor) -> None:
    """Forward and data gradient that no backward ever follows."""
    y = model(x)
    data_gradient(loss_of(y), x)


def _retained(model: nn.Module, x: Tensor) -> None:
    total = penalised(model, x)
    total.backward(retain_graph=True)
    total.backward(retain_graph=True)


def _failed(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    total = loss_of(y) + data_gradient(potential(y), x).square().sum()

    def fail(gradient: Tensor) -> None:
        raise ArithmeticError

    y.register_hook(fail)
    with pytest.raises(ArithmeticError):
        total.backward()


def _input_gradient_only(model: nn.Module, x: Tensor) -> None:
    torch.autograd.grad(penalised(model, x), x)


def _two_data_gradients(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    (data_gradient(loss_of(y), x) * data_gradient(potential(y), x)).sum().backward()


def _no_grad(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


STEPS = [
    _loss_and_penalty,
    _penalty_alone,
    _graph_dropped,
    _retained,
    _failed,
    _input_gradient_only,
    _two_data_gradients,
    _no_grad,
]


def _ready(case: Case, device: str = "cpu") -> tuple[nn.Module, Tensor]:
    """An accelerated model that has made its programs and its gradients."""
    model = datagrad_ext.accelerate(case.build().to(device))
    x = case.inputs()[0].to(device).requires_grad_()
    _loss_and_penalty(model, x)
    return model, x


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__.strip("_"))
@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_no_reference_cycles(case: Case, step: Callable, device: str) -> None:
    """With the garbage collector off, ten steps leave not one tensor behind."""
    model, x = _ready(case, device)
    step(model, x)
    with no_collector():
        before = len(_tensors())
        for _ in range(10):
            step(model, x)
        assert len(_tensors()) <= before


@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_everything_is_freed_while_the_loss_is_alive(case: Case, device: str) -> None:
    """After a backward the user may keep loss, y and J: what the sweeps kept is gone."""
    model, x = _ready(case, device)

    def saved_during(hold: list) -> list[weakref.ref]:
        """Weak references to everything packed for the backward, minus what the user or the model holds."""
        kept: list[weakref.ref] = []

        class Box:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor

        def pack(tensor: Tensor) -> Box:
            box = Box(tensor.detach())
            kept.append(weakref.ref(box))
            return box

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            y = model(x)
            loss = loss_of(y)
            J = data_gradient(loss, x)
            total = loss + J.square().sum()
        hold += [y, loss, J, total]
        return kept

    with no_collector():
        hold: list[Tensor] = []
        kept = saved_during(hold)
        assert sum(ref() is not None for ref in kept) > 0
        hold[-1].backward()
        assert sum(ref() is not None for ref in kept) == 0


@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_bytes_alive_after_backward_are_no_more_than_in_autograd(case: Case, device: str) -> None:
    def alive(model: nn.Module) -> int:
        x = case.inputs()[0].to(device).requires_grad_()
        penalised(model, x).backward()
        with no_collector():
            before = {id(o) for o in gc.get_objects()}
            y = model(x)
            J = data_gradient(loss_of(y), x)
            total = loss_of(y) + J.square().sum()
            total.backward()
            return sum(t.untyped_storage().nbytes() for t in _tensors() if id(t) not in before)

    ours, plain = datagrad_ext.accelerate(case.build().to(device)), case.build().to(device)
    assert alive(ours) <= alive(plain)


@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_model_dies_with_its_last_name(case: Case) -> None:
    model, _ = _ready(case)
    with no_collector():
        parameter, whole = weakref.ref(next(iter(model.parameters()))), weakref.ref(model)
        for p in model.parameters():
            p.grad = None
        del model, p
        assert whole() is None
        assert parameter() is None


def test_no_growth_over_200_steps(device: str) -> None:
    """Live tensors and programs after 200 training steps with changing batch sizes are those after 20."""
    model, _ = _ready(network("dag_dense"), device)
    optimizer = torch.optim.Adam(model.parameters())

    def train(steps: int) -> int:
        for k in range(steps):
            x = torch.ones(2 + k % 3, 6, dtype=torch.float64, device=device).requires_grad_()
            optimizer.zero_grad()
            penalised(model, x).backward()
            optimizer.step()
        del x
        gc.collect()
        return len(gc.get_objects())

    with no_collector():
        after_20 = train(20)
        after_200 = train(180)
    assert after_200 <= after_20 + 20, f"{after_200 - after_20} objects more"


def test_resident_memory_does_not_grow() -> None:
    """Leaks that Python cannot see: 200 steps of a network of 1 MiB activations."""
    model = datagrad_ext.accelerate(
        nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64), nn.Softplus())
    )

    def train(steps: int) -> int:
        for _ in range(steps):
            x = torch.randn(512, 64, requires_grad=True)
            (J,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            J.square().sum().backward()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = train(20)
    assert train(180) - before < 64 * 2**20
