"""Penalties that the native path knows: the value R(J) and the seed weight · ∂R/∂J, by the ops of `ops.penalty`.

    R = f(‖J‖)      ∂R/∂J = f′(‖J‖) ∂‖J‖/∂J

A new penalty of this form is a row in `_NORMS` (f is the identity) or in `_FUNCTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..penalties import Centred, OneSided, l1, l2, l2_squared, linf

_ops = torch.ops.datagrad


@dataclass(frozen=True)
class Function:
    """f of a norm and its derivative, as functions of (norm, constant)."""

    value: Callable[[Tensor, float], Tensor]
    first: Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Seed:
    """A norm by its name in `ops.penalty.NORMS`, and f with its constant; f None is the identity."""

    kind: str
    function: Function | None = None
    constant: float = 0.0

    def norms(self, J: Tensor) -> Tensor:
        """‖J_n‖, (N,)."""
        found: Tensor = _ops.penalty_value.default(J, self.kind)
        return found

    def values(self, norms: Tensor) -> Tensor:
        """R(J_n), (N,)."""
        return norms if self.function is None else self.function.value(norms, self.constant)

    def seed(self, J: Tensor, norms: Tensor, weight: Tensor) -> Tensor:
        """weight[n] ∂R/∂J, in the shape of J."""
        if self.function is not None:
            weight = weight * self.function.first(norms, self.constant)
        found: Tensor = _ops.penalty_seed.default(J, norms, weight, self.kind)
        return found


def constant(value: float, like: Tensor) -> Tensor:
    """(N,) full of `value`. Nobody may change it: on the CPU it is made once and used again."""
    if like.device.type == "cpu":  # elsewhere it might lie in the memory of a graph that is being captured
        return _full(value, like.shape[0], like.dtype)
    return torch.full_like(like, value)


def mean_of(values: Tensor) -> Tensor:
    """The mean of (N,), as a product with 1/N: a third of the time of `mean` where N is small."""
    return torch.dot(values, constant(1 / values.shape[0], values))


@lru_cache(maxsize=64)
def _full(value: float, n: int, dtype: torch.dtype) -> Tensor:
    return torch.full((n,), value, dtype=dtype)


_NORMS: dict[Any, Seed] = {l1: Seed("l1"), l2: Seed("l2"), l2_squared: Seed("l2_squared"), linf: Seed("linf")}
_FUNCTIONS: dict[type, Function] = {
    Centred: Function(lambda norms, c: (norms - c).square(), lambda norms, c: 2 * (norms - c)),
    OneSided: Function(
        lambda norms, c: (norms - c).clamp_min(0).square(), lambda norms, c: 2 * (norms - c).clamp_min(0)
    ),
}


def seed_of(penalty: Any) -> Seed | None:
    """The row of a penalty that is in the table, None for others."""
    if type(penalty) in _FUNCTIONS:
        norm = _norm_of(penalty.norm)
        return None if norm is None else Seed(norm.kind, _FUNCTIONS[type(penalty)], penalty.c)
    return _norm_of(penalty)


def _norm_of(penalty: Any) -> Seed | None:
    return _NORMS.get(penalty) if type(penalty) is FunctionType else None
