"""Penalties with parameters against plain PyTorch: values, first derivatives, J = 0, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import data
from oracle import difference
from torch import Tensor

from datagrad_ext import penalties as p

SHAPE = (3, 2, 4, 6)
TARGET, DIRECTIONS, OWN = data(*SHAPE, seed=2), data(5, *SHAPE[1:], seed=3), data(3, 5, *SHAPE[1:], seed=4)


def _norm(J: Tensor, order: float = 2) -> Tensor:
    return torch.linalg.vector_norm(J.flatten(1), ord=order, dim=1)


def _patches(J: Tensor, a: int, b: int) -> Tensor:
    total: Any = 0.0
    for i in range(0, 4, a):
        for j in range(0, 6, b):
            total = total + _norm(J[:, :, i : i + a, j : j + b])
    return total


def _along_each(J: Tensor, v: Tensor) -> Tensor:
    return torch.stack([sum((v[n, k] * J[n]).sum() ** 2 for k in range(5)) for n in range(3)])  # type: ignore[misc]


ROWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "Lp(1.5)": (p.Lp(1.5), lambda J: _norm(J, 1.5)),
    "Lp(3)": (p.Lp(3), lambda J: _norm(J, 3)),
    "Lp(1)": (p.Lp(1), lambda J: _norm(J, 1)),
    "Lp(inf)": (p.Lp(float("inf")), lambda J: J.flatten(1).abs().amax(1)),
    "Centred": (p.Centred(), lambda J: (_norm(J) - 1) ** 2),
    "Centred(l1)": (p.Centred(2.0, p.l1), lambda J: (_norm(J, 1) - 2) ** 2),
    "OneSided below": (p.OneSided(100.0), lambda J: 0 * _norm(J)),
    "OneSided above": (p.OneSided(1.0), lambda J: (_norm(J) - 1) ** 2),
    "Match": (p.Match(TARGET), lambda J: (J - TARGET).square().flatten(1).sum(1)),
    "Match(l1)": (p.Match(TARGET[0], p.l1), lambda J: (J - TARGET[0]).abs().flatten(1).sum(1)),
    "Directional": (p.Directional(DIRECTIONS), lambda J: _along_each(J, DIRECTIONS.expand(3, *DIRECTIONS.shape))),
    "Directional own": (p.Directional(OWN), lambda J: _along_each(J, OWN)),
    "Along": (p.Along(TARGET), lambda J: (J * TARGET).flatten(1).sum(1)),
    "Group channels": (p.Group(), lambda J: _norm(J[:, 0]) + _norm(J[:, 1])),
    "Group patch": (p.Group(2), lambda J: _patches(J, 2, 2)),
    "Group patches": (p.Group((4, 3)), lambda J: _patches(J, 4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_equal_to_plain_pytorch(name: str) -> None:
    J = data(*SHAPE).requires_grad_()
    results = []
    for penalty in ROWS[name]:
        value = penalty(J)
        results.append((value, torch.autograd.grad(value.pow(2).sum(), J)[0]))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        assert difference(ours, theirs).elementwise <= 1e-12


@pytest.mark.parametrize("name", ROWS)
def test_first_derivative_is_finite_at_zero(name: str) -> None:
    J = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(ROWS[name][0](J).sum(), J)[0].isfinite().all()


@pytest.mark.parametrize("name", ["Lp(1.5)", "Lp(3)", "Centred", "OneSided above", "Group patch"])
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(ROWS[name][0], data(*SHAPE).requires_grad_())


def test_lp_neither_overflows_nor_underflows() -> None:
    for size in (1e200, 1e-200):
        J = torch.full((2, 4), size, dtype=torch.float64, requires_grad=True)
        value = p.Lp(3)(J)
        assert difference(value, torch.full((2,), size * 4 ** (1 / 3), dtype=torch.float64)).elementwise <= 1e-12
        assert torch.autograd.grad(value.sum(), J)[0].isfinite().all()


def test_empty_samples() -> None:
    assert torch.equal(p.Lp(3)(torch.zeros(2, 0)), torch.zeros(2))


ERRORS: dict[str, tuple[str, Callable[[], Any]]] = {
    "p below 1": ("p must be from 1 to infinity, got 0.5", lambda: p.Lp(0.5)),
    "target": (r"target has shape \[5\], the data gradient \[3, 2, 4, 6\]", lambda: p.Match(torch.ones(5))(TARGET)),
    "directions": (r"\[K, \*\[2, 4, 6\]\]", lambda: p.Directional(torch.ones(2, 3))(TARGET)),
    "direction": ("shape of the data gradient", lambda: p.Along(torch.ones(2, 3))(TARGET)),
    "no channels": (r"\(N, C, ...\), got \[3\]", lambda: p.Group()(torch.ones(3))),
    "patch": ("a patch of 5 does not divide", lambda: p.Group(5)(TARGET)),
    "patch of other dimensions": (r"a patch of \(2,\) does not divide", lambda: p.Group((2,))(TARGET)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_in_a_sentence(name: str) -> None:
    message, code = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        code()
