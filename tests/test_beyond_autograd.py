"""Where PyTorch has no second derivative, the accelerated model has the one of the formula."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import CE, Body, Objective, data, ids
from oracle import assert_equal, observe
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import datagrad_ext


class Row(NamedTuple):
    """A function that PyTorch differentiates once, and its formula; `rtol` for constants that PyTorch rounds."""

    name: str
    call: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    shape: tuple[int, ...]
    rtol: float = 1e-10


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


ROWS = [
    Row("hardsigmoid", F.hardsigmoid, lambda h: F.relu6(h + 3) / 6, (4, 6), 1e-6),
    Row("hardsigmoid_module", nn.Hardsigmoid(), lambda h: F.relu6(h + 3) / 6, (4, 6), 1e-6),
    Row(
        "flash_attention",
        lambda h: F.scaled_dot_product_attention(h, h.sin(), h.cos()),
        lambda h: _attention(h, h.sin(), h.cos()),
        (2, 2, 3, 6),
    ),
]
OBJECTIVES = [Objective(CE, ((CE, "l2_squared"),)), Objective(None, (("logsumexp", "centred"),), "non_leaf")]


def _network(function: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Body(lambda m, x: m.b(m.f(3 * m.a(x))), f=function, a=nn.Linear(6, 6), b=nn.Linear(6, 5)).double()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_second_derivative_of_the_formula(row: Row, objective: Objective, device: str) -> None:
    x = [data(*row.shape).to(device)]
    expected = observe(_network(row.formula).to(device), x, objective)
    actual = observe(datagrad_ext.accelerate(_network(row.call).to(device)), x, objective)
    assert_equal(actual, expected, row.rtol)


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_pytorch_still_has_none(row: Row) -> None:
    """The day it has one, the row belongs in cases.py."""
    with pytest.raises(RuntimeError, match=r"derivative for aten::.* is not implemented"):
        observe(_network(row.call), [data(*row.shape)], OBJECTIVES[0])


class _Causal(nn.Module):
    """An opaque module that attends: torch's encoder layer with a hint that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.mask = nn.Buffer(nn.Transformer.generate_square_subsequent_mask(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, src_mask=self.mask, is_causal=True)


def test_opaque_attention_is_by_the_formula(device: str) -> None:
    torch.manual_seed(0)
    model, x = _Causal().double().to(device), [data(2, 3, 6).to(device)]
    with sdpa_kernel(SDPBackend.MATH):
        expected = observe(copy.deepcopy(model), x, OBJECTIVES[0])
    model = datagrad_ext.accelerate(model)
    assert_equal(observe(model, x, OBJECTIVES[0]), expected)
    assert [row.kind for row in datagrad_ext.program(model).rows] == ["opaque"]
