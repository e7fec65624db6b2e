"""Models that PyTorch cannot differentiate twice: difference estimators against the exact gradient of a twin.

`fully_shard`, the third of its kind, needs processes: it is in `test_distributed.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from oracle import difference
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import datagrad_ext
from datagrad_ext import CentralDifference, DataGrad, Exact, FiniteDifference, Term, penalties

N, LABELS = 5, torch.tensor([2, 0, 1, 1, 0])
PHI = 2e-3


class Attention(nn.Module):
    """Two heads of self-attention over four positions. Its code loops over parts of a tensor: it does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = [part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.into(x).chunk(3, 2)]
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).flatten(2).mean(1))


class Checkpointed(nn.Module):
    """Its first half, with dropout, is a reentrant checkpoint."""

    reentrant = True

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.Linear(8, 7), nn.Softplus(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.first, x, use_reentrant=self.reentrant))


class Plain(Checkpointed):
    reentrant = False


@dataclass(frozen=True)
class Row:
    """A model, its twin, and what the twin runs in; `says` is PyTorch's error in a double backward of the model."""

    name: str
    make: Callable[[], nn.Module]
    twin: Callable[[], nn.Module]
    inside: Callable[[], contextlib.AbstractContextManager[Any]]
    x: Tensor
    says: str


ROWS = [
    Row("fused attention", Attention, Attention, lambda: sdpa_kernel(SDPBackend.MATH), data(N, 4, 6),
        "flash_attention_for_cpu_backward is not implemented"),
    Row("reentrant checkpoint", Checkpointed, Plain, contextlib.nullcontext, data(N, 6), "use_reentrant=True"),
]  # fmt: skip
ascent = pytest.mark.filterwarnings("ignore::datagrad_ext.objective.AscentWarning")
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
accelerated = pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])


def build(make: Callable[[], nn.Module], accelerate: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    return datagrad_ext.accelerate(model) if accelerate else model


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.scale * output, target, reduction="none")


def gradient(model: nn.Module, x: Tensor, estimator: Any) -> Tensor:
    """Of every parameter, the loss's too, by a backward in full: a reentrant checkpoint allows no other."""
    loss = Scaled()
    parameters = [*model.parameters(), *loss.parameters()]
    torch.manual_seed(1)
    total = DataGrad(loss, Term(0.3, penalties.l2), estimator)(model, x, LABELS).total
    assert all(p.grad is None and p.requires_grad for p in parameters)
    total.backward()
    return torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]


@ascent
@rows
@accelerated
@pytest.mark.parametrize(("estimator", "order"), [(FiniteDifference, 1), (CentralDifference, 2)])
def test_differences_converge_to_the_exact_gradient(row: Row, accelerate: bool, estimator: Any, order: int) -> None:
    with row.inside():
        expected = gradient(build(row.twin), row.x, Exact())
    errors = [
        difference(gradient(build(row.make, accelerate), row.x, estimator(step)), expected).norm
        for step in (2 * PHI, PHI)
    ]
    assert errors[1] <= 1e-3
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@rows
@accelerated
def test_the_exact_estimator_raises_what_pytorch_raises(row: Row, accelerate: bool) -> None:
    with pytest.raises(RuntimeError, match=row.says):
        gradient(build(row.make, accelerate), row.x, Exact())


OUT_OF_REACH: dict[str, tuple[Callable[[nn.Module], Any], str | None]] = {
    "a function": (lambda model: lambda x: model(x), None),
    "an activation": (lambda model: nn.Sequential(nn.Linear(6, 6).double(), model), "0"),
}


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_what_a_backward_in_full_would_change_is_left_to_pytorch(name: str) -> None:
    """A function's parameters are not known: they would get gradients. An activation has parameters before it."""
    make, inputs = OUT_OF_REACH[name]
    objective = DataGrad(F.cross_entropy, Term(0.1, inputs=inputs), FiniteDifference(0.5))
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        objective(make(build(Checkpointed)), ROWS[1].x.clone().requires_grad_(), LABELS)
