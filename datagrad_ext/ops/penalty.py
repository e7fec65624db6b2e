"""Per-sample norms of a data gradient: the value R(J) and the seed ∂R/∂J of the tangent sweep.

    kind         R(J)          ∂R/∂J
    l1           Σ |J|         sign J            sign 0 = 0
    l2           √(Σ J²)       J / R             0 where R = 0; neither overflows nor underflows on the way
    l2_squared   Σ J²          2 J               no hidden ½
    linf         max |J|       sign J / ties     over the entries with |J| = R, spread evenly among them

Letters: `J` (N, ...) data gradient, N samples, any inner shape; `value` and `weight` (N,), one number a
sample. `value` and `weight` are float32 for the 16-bit formats, else of J's dtype. An empty inner shape has
R = 0. NaN propagates to R.

The references are differentiable PyTorch to every order: `penalty_seed` of `penalty_value` is the expression
to use where the seed itself is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ._library import (
    CHANNELS_LAST,
    accumulation_dtype,
    is_channels_last,
    op,
    require,
    require_alike,
    require_floating,
    require_shape,
)

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Norm:
    """One row of the table of norms, in plain PyTorch."""

    value: Callable[[Tensor, Dims], Tensor]
    """(J, inner dimensions) -> R."""
    direction: Callable[[Tensor, Tensor, Dims], Tensor]
    """(J, R with the inner dimensions kept as 1, inner dimensions) -> ∂R/∂J."""


def _l2(J: Tensor, dims: Dims) -> Tensor:
    """√(Σ J²), of J divided by its largest entry (a constant factor), so that no square leaves the range."""
    largest = J.detach().abs().amax(dims, keepdim=True)
    scale = torch.where((largest > 0) & (largest < math.inf), largest, 1.0)
    total, zero = (J / scale).square().sum(dims), (largest == 0).reshape(-1)
    return torch.where(zero, 0.0, torch.where(zero, 1.0, total).sqrt()) * scale.reshape(-1)


def _l2_direction(J: Tensor, value: Tensor, dims: Dims) -> Tensor:
    zero = value == 0
    return torch.where(zero, 0.0, J / torch.where(zero, 1.0, value))


def _linf_direction(J: Tensor, value: Tensor, dims: Dims) -> Tensor:
    largest = J.abs() == value
    return J.sign() * largest / largest.sum(dims, keepdim=True)


class Function(NamedTuple):
    """f of a norm and its derivative, as functions of (norm, constant)."""

    value: Callable[[Tensor, float], Tensor]
    first: Callable[[Tensor, float], Tensor]


FUNCTIONS = {
    "": Function(lambda norms, c: norms, lambda norms, c: torch.ones_like(norms)),
    "centred": Function(lambda norms, c: (norms - c).square(), lambda norms, c: 2 * (norms - c)),
    "one_sided": Function(
        lambda norms, c: (norms - c).clamp_min(0).square(), lambda norms, c: 2 * (norms - c).clamp_min(0)
    ),
}

NORMS = {
    "l1": Norm(lambda J, dims: J.abs().sum(dims), lambda J, value, dims: J.sign()),
    "l2": Norm(_l2, _l2_direction),
    "l2_squared": Norm(lambda J, dims: J.square().sum(dims), lambda J, value, dims: 2 * J),
    "linf": Norm(lambda J, dims: J.abs().amax(dims), _linf_direction),
}


@op("penalty_value(Tensor J, str kind) -> Tensor")
def penalty_value(J: Tensor, kind: str) -> Tensor:
    """R(J), (N,)."""
    norm = _checked("penalty_value", J, kind)
    rows, dims = _rows(J)
    return rows.sum(dims) if math.prod(rows.shape[1:]) == 0 else norm.value(rows, dims)


@op("penalty_seed(Tensor J, Tensor value, Tensor weight, str kind) -> Tensor")
def penalty_seed(J: Tensor, value: Tensor, weight: Tensor, kind: str) -> Tensor:
    """weight[n] ∂R/∂J at `value` = R(J), in J's shape, dtype and layout."""
    return _seed("penalty_seed", J, value, weight, kind)


def _seed(op_name: str, J: Tensor, value: Tensor, weight: Tensor, kind: str) -> Tensor:
    norm = _checked(op_name, J, kind)
    rows, dims = _rows(J)
    _require_per_sample(op_name, "value", value, rows)
    _require_per_sample(op_name, "weight", weight, rows)
    keep = (-1, *[1] * len(dims))
    layout = CHANNELS_LAST[J.dim()] if is_channels_last(J) else torch.contiguous_format
    seed = weight.reshape(keep) * norm.direction(rows, value.reshape(keep), dims)
    return seed.to(J.dtype).view(J.shape).contiguous(memory_format=layout)


@op(
    "penalty_handover(Tensor J, Tensor value, Tensor c, float share, str kind, str function, float constant) -> Tensor"
)
def penalty_handover(
    J: Tensor, value: Tensor, c: Tensor, share: float, kind: str, function: str, constant: float
) -> Tensor:
    """c share f′(R) ∂R/∂J at `value` = R(J): the seed of sweep 3 for c Σ share f(R_n), with f a row of `FUNCTIONS`.

    `c` is one number, (), of value's dtype.
    """
    op_name = "penalty_handover"
    _checked(op_name, J, kind)
    wide = accumulation_dtype(J.dtype)
    text = [str(dtype).removeprefix("torch.") for dtype in (wide, c.dtype)]
    require(c.dtype == wide, f"{op_name}: c must have dtype {text[0]}, got {text[1]}")
    require(c.device == J.device, f"{op_name}: c must be on J's device {J.device}, got {c.device}")
    require_shape(op_name, "c", c, ())
    weight = c * share * _function(op_name, function).first(value, constant)
    return _seed(op_name, J, value, weight.expand(value.shape), kind)


@op(
    "penalty_total(Tensor? loss, float loss_weight, Tensor[] norms, str[] functions, float[] constants,"
    " float[] weights) -> (Tensor total, Tensor means)"
)
def penalty_total(
    loss: Tensor | None,
    loss_weight: float,
    norms: Sequence[Tensor],
    functions: Sequence[str],
    constants: Sequence[float],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """loss_weight · mean(loss) + Σ weights[i] mean(f_i(norms[i])), (), and the means, that of the loss first.

    Lists of float32 or float64, one number a sample; up to 64 of them, a loss among them or not.
    """
    require(
        len(functions) == len(constants) == len(weights) == len(norms),
        f"penalty_total: needs a function, a constant and a weight for every penalty, got {len(functions)}, "
        f"{len(constants)} and {len(weights)} for {len(norms)}",
    )
    rows = [(_function("penalty_total", name), c) for name, c in zip(functions, constants, strict=True)]
    lists = [*([] if loss is None else [loss]), *norms]
    require(0 < len(lists) <= 64, f"penalty_total: takes from 1 to 64 means, got {len(lists)}")
    for name, t in zip([*["loss"] * (loss is not None), *["norms"] * len(norms)], lists, strict=True):
        dtype = str(t.dtype).removeprefix("torch.")
        require(
            t.dtype in (torch.float32, torch.float64), f"penalty_total: {name} must be float32 or float64, got {dtype}"
        )
        require_alike("penalty_total", name, t, "the first list", lists[0])
        require(t.dim() == 1, f"penalty_total: {name} must have one dimension, got shape {list(t.shape)}")
    means = [row.value(t, c).mean() for (row, c), t in zip(rows, norms, strict=True)]
    factors = list(weights)
    if loss is not None:
        means, factors = [loss.mean(), *means], [loss_weight, *factors]
    total = sum((w * mean for w, mean in zip(factors[1:], means[1:], strict=True)), factors[0] * means[0])
    return total, torch.stack(means)


def _function(op_name: str, name: str) -> Function:
    require(name in FUNCTIONS, f"{op_name}: function must be empty, centred or one_sided, got '{name}'")
    return FUNCTIONS[name]


def _checked(op_name: str, J: Tensor, kind: str) -> Norm:
    require(kind in NORMS, f"{op_name}: kind must be one of {', '.join(NORMS)}, got '{kind}'")
    require_floating(op_name, "J", J)
    require(J.dim() > 0, f"{op_name}: J must have a batch dimension, shape (N, ...), got a scalar")
    return NORMS[kind]


def _rows(J: Tensor) -> tuple[Tensor, Dims]:
    """J in the accumulation dtype with at least one inner dimension, and the inner dimensions."""
    rows = (J if J.dim() > 1 else J.unsqueeze(1)).to(accumulation_dtype(J.dtype))
    return rows, tuple(range(1, rows.dim()))


def _require_per_sample(op_name: str, name: str, t: Tensor, rows: Tensor) -> None:
    """`t` must hold one number of the accumulation dtype for every row."""
    text = [str(dtype).removeprefix("torch.") for dtype in (rows.dtype, t.dtype)]
    require(t.dtype == rows.dtype, f"{op_name}: {name} must have dtype {text[0]}, got {text[1]}")
    require(t.device == rows.device, f"{op_name}: {name} must be on J's device {rows.device}, got {t.device}")
    require_shape(op_name, name, t, (len(rows),))
