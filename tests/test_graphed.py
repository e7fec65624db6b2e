"""GraphedStep has the numbers of the step it wraps, for every kind of input, and says what it cannot record."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import data, network
from oracle import assert_equal
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import GraphedStep

OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, capturable=next(iter(p)).is_cuda),
}


class Step:
    """Forward, data gradient, penalty, backward and optimiser; returns the loss and the penalty."""

    def __init__(self, model: nn.Module, make: Callable) -> None:
        self.model, self.optimizer = model, make(list(model.parameters()))

    def __call__(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        x = x.detach().requires_grad_()
        losses = F.cross_entropy(self.model(x).flatten(1), t, reduction="none")
        (J,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        penalty = J.flatten(1).square().sum(1).mean()
        (losses.mean() + 0.1 * penalty).backward()
        self.optimizer.step()
        return {"loss": losses.mean().detach(), "penalty": penalty.detach()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "name", ["mlp_relu", "mlp_gelu", "mlp_layer_norm", "conv_critic", "conv_resnet_batch_norm"]
)
def test_same_numbers(name: str, optimizer: str, device: str) -> None:
    """Two kinds of input in turn, recorded and replayed; a returned value does not change with the next call."""
    case, make = network(name), OPTIMIZERS[optimizer]
    plain = case.build().to(device)
    ours = datagrad_ext.accelerate(copy.deepcopy(plain))
    usual, graphed = Step(plain, make), GraphedStep(Step(ours, make), warmup=2)
    found, expected = {}, {}
    for step in range(12):
        x = case.inputs(seed=step)[0].to(device)[: 2 + step % 2]
        t = torch.arange(len(x), device=device)
        found |= {f"{key} {step}": value for key, value in graphed(x, t).items()}
        expected |= {f"{key} {step}": value for key, value in usual(x, t).items()}
    assert_equal(found, expected, rtol=1e-8)
    assert_equal(dict(ours.named_parameters()), dict(plain.named_parameters()), rtol=1e-8)


@pytest.mark.cuda
def test_dropout_draws_new_masks_in_every_replay() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 5))).cuda()
    step = GraphedStep(Step(model, lambda p: torch.optim.SGD(p, lr=0.0)), warmup=1)
    x, t = data(4, 6).float().cuda(), torch.arange(4, device="cuda")
    losses = [float(step(x, t)["loss"]) for _ in range(6)]
    assert len(set(losses)) == 6


@pytest.mark.cuda
def test_a_replay_allocates_nothing_but_the_copies_that_it_returns() -> None:
    case = network("conv_critic")
    step = GraphedStep(Step(datagrad_ext.accelerate(case.build()).cuda(), OPTIMIZERS["sgd"]), warmup=1)
    x, t = case.inputs()[0].cuda(), torch.arange(case.shapes[0][0], device="cuda")

    def allocations() -> int:
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    for _ in range(3):
        step(x, t)
    before = allocations()
    assert len(step(x, t)) == allocations() - before


def _reads_a_value(x: Tensor) -> Tensor:
    return x * x.sum().item()


def _returns_a_number(x: Tensor) -> tuple[Tensor, float]:
    return x * 2, 1.0


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (_reads_a_value, RuntimeError, "must not read values on the CPU"),
        (_returns_a_number, TypeError, "Return tensors"),
    ],
)
def test_what_cannot_be_recorded(step: Callable, error: type[Exception], match: str) -> None:
    graphed, x = GraphedStep(step, warmup=1), torch.ones(3, device="cuda")
    graphed(x)
    with pytest.raises(error, match=match):
        graphed(x)


REFUSED = [
    pytest.param(lambda: GraphedStep(abs, warmup=0), ValueError, "at least 1", id="warmup"),
    pytest.param(lambda: GraphedStep(abs)(3.0), TypeError, "got float as input 0.*functools.partial", id="number"),
    pytest.param(
        lambda: GraphedStep(torch.add)(torch.ones(2), torch.ones(2, device="meta")),
        ValueError,
        "Move them to one device",
        id="devices",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), REFUSED)
def test_refuses_in_a_sentence(call: Callable, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
