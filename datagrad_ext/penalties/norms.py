"""Norms as penalties; the table of their values and derivatives is `ops.penalty.NORMS`.

    J (N, ...) data gradient  ->  R(J) (N,), in float32 for bfloat16 and float16, else in J's dtype

Equivalent to plain PyTorch on `J.flatten(1)`, in one pass each way: the value, and the seed ∂R/∂J that starts
the tangent sweep. First derivatives are finite wherever J is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops._plain import needs_plain
from ..ops.penalty import penalty_seed, penalty_value

_ops = torch.ops.datagrad


def l1(J: Tensor) -> Tensor:
    """Σ |J|; derivative sign J, 0 at 0. Equivalent to: J.flatten(1).abs().sum(1)."""
    return _norm(J, "l1")


def l2(J: Tensor) -> Tensor:
    """√(Σ J²); derivative J / ‖J‖, 0 at J = 0. Equivalent to: J.flatten(1).norm(dim=1), without overflow."""
    return _norm(J, "l2")


def l2_squared(J: Tensor) -> Tensor:
    """Σ J², with no factor ½; derivative 2 J. Equivalent to: J.flatten(1).square().sum(1)."""
    return _norm(J, "l2_squared")


def linf(J: Tensor) -> Tensor:
    """max |J|; derivative sign J at the maximum, ties share it. Equivalent to: J.flatten(1).abs().amax(1)."""
    return _norm(J, "linf")


def _norm(J: Tensor, kind: str) -> Tensor:
    return penalty_value(J, kind) if needs_plain(J) else _Norm.apply(J, kind)


class _Norm(torch.autograd.Function):
    """R(J) by the op; its backward is the seed."""

    @staticmethod
    def forward(ctx: Any, J: Tensor, kind: str) -> Tensor:
        value = _ops.penalty_value.default(J, kind)
        ctx.kind = kind
        ctx.save_for_backward(J, value)
        return value

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        J, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: an op is invisible to autograd, its reference is not
            return penalty_seed(J, penalty_value(J, ctx.kind), weight, ctx.kind), None
        return _ops.penalty_seed.default(J, value, weight, ctx.kind), None
