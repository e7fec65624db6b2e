"""Penalties of a norm as seeds of sweep 3: the value R(J) and weight · ∂R/∂J, by the ops of `ops.penalty`.

    R = f(‖J‖)      ∂R/∂J = f′(‖J‖) ∂‖J‖/∂J

`word` is how the op `chain_penalty_step` is told of a penalty: "norm" or "norm:function".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ._library import require
from .penalty import NORMS

_ops = torch.ops.datagrad


class Function(NamedTuple):
    """f of a norm and its derivative, as functions of (norm, constant)."""

    value: Callable[[Tensor, float], Tensor]
    first: Callable[[Tensor, float], Tensor]


FUNCTIONS = {
    "centred": Function(lambda norms, c: (norms - c).square(), lambda norms, c: 2 * (norms - c)),
    "one_sided": Function(
        lambda norms, c: (norms - c).clamp_min(0).square(), lambda norms, c: 2 * (norms - c).clamp_min(0)
    ),
}


@dataclass(frozen=True)
class Seed:
    """A norm by its name in `ops.penalty.NORMS`, and f by its name in `FUNCTIONS` with its constant; "": identity."""

    kind: str
    function: str = ""
    constant: float = 0.0

    @cached_property
    def word(self) -> str:
        """How the op spells it."""
        return f"{self.kind}:{self.function}" if self.function else self.kind

    def norms(self, J: Tensor) -> Tensor:
        """‖J_n‖, (N,)."""
        found: Tensor = _ops.penalty_value.default(J, self.kind)
        return found

    def values(self, norms: Tensor) -> Tensor:
        """R(J_n), (N,)."""
        return FUNCTIONS[self.function].value(norms, self.constant) if self.function else norms

    def seed(self, J: Tensor, norms: Tensor, weight: Tensor) -> Tensor:
        """weight[n] ∂R/∂J, in the shape of J."""
        if self.function:
            weight = weight * FUNCTIONS[self.function].first(norms, self.constant)
        found: Tensor = _ops.penalty_seed.default(J, norms, weight, self.kind)
        return found


def seeds_named(op_name: str, text: str, constants: Sequence[float]) -> list[Seed]:
    """The penalties that a text names, with a constant each."""
    words = text.split()
    require(
        len(words) == len(constants),
        f"{op_name}: needs a constant for every penalty, got {len(constants)}",
    )
    found = []
    for word, number in zip(words, constants, strict=True):
        kind, _, function = word.partition(":")
        require(
            kind in NORMS and function in ("", *FUNCTIONS),
            f"{op_name}: a penalty must be l1, l2, l2_squared or linf, with :centred or :one_sided or nothing, "
            f"got '{word}'",
        )
        found.append(Seed(kind, function, number))
    return found


def constant(value: float, like: Tensor) -> Tensor:
    """(N,) full of `value`. Nobody may change it: on the CPU it is made once and used again."""
    if like.device.type == "cpu":  # elsewhere it might lie in the memory of a graph that is being captured
        return _full(value, like.shape[0], like.dtype)
    return torch.full_like(like, value)


def mean_of(values: Tensor) -> Tensor:
    """The mean of (N,), as a product with 1/N: a third of the time of `mean` where N is small."""
    if values.shape[0] == 0:
        return values.mean()
    return torch.dot(values, constant(1 / values.shape[0], values))


@lru_cache(maxsize=64)
def _full(value: float, n: int, dtype: torch.dtype) -> Tensor:
    return torch.full((n,), value, dtype=dtype)
