"""Penalties of a norm as seeds of sweep 3: the value R(J) and weight · ∂R/∂J, by the ops of `ops.penalty`.

    R = f(‖J‖)      ∂R/∂J = f′(‖J‖) ∂‖J‖/∂J

`word` is how the op `chain_penalty_step` is told of a penalty: "norm" or "norm:function".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ._library import require
from .penalty import FUNCTIONS, NORMS

_ops = torch.ops.datagrad


@dataclass(frozen=True)
class Seed:
    """A norm by its name in `ops.penalty.NORMS`, and f by its name in `ops.penalty.FUNCTIONS` with its constant."""

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

    def seed(self, J: Tensor, norms: Tensor, c: Tensor, share: float) -> Tensor:
        """c share ∂R/∂J_n, in the shape of J; c is one number."""
        found: Tensor = _ops.penalty_handover.default(J, norms, c, share, self.kind, self.function, self.constant)
        return found


def total(
    losses: Tensor | None, loss_weight: float, seeds: Sequence[Seed], norms: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Sequence[Tensor]]:
    """loss_weight · mean(losses) + Σ weights[i] mean(R_i), and the means, that of the losses first."""
    functions, constants = [seed.function for seed in seeds], [seed.constant for seed in seeds]
    found, means = _ops.penalty_total.default(losses, loss_weight, norms, functions, constants, weights)
    return found, means.unbind()


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
            kind in NORMS and function in FUNCTIONS,
            f"{op_name}: a penalty must be l1, l2, l2_squared or linf, with :centred or :one_sided or nothing, "
            f"got '{word}'",
        )
        found.append(Seed(kind, function, number))
    return found
