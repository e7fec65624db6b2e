"""Functions of one value, element by element: y = f(x). The rows of one table, in plain PyTorch.

    vjp  f′(x) g      jvp  f′(x) t      curvature  f″(x) Σ t δ

A row is f and the gates f′(x) g and f″(x) p; the second is None for a piecewise-linear f. Where PyTorch has a kernel
for the gate it is that one; at kinks all are PyTorch's. Activations with kernels of the project are in
`activation.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FLOAT32_ON_CUDA, Pairs, Parameterless, Tensors
from .registry import Application, function_rule, module_rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class Row:
    """One function: its derivatives, its constants with their defaults, and how torch spells it."""

    name: str
    f: Callable[..., Tensor]
    gate: Callable[..., Tensor]
    """f′(x) g from (g, x, *constants)."""
    second: Callable[..., Tensor] | None
    """f″(x) p from (p, x, *constants)."""
    functions: tuple[Callable[..., Any], ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    """Their attributes of the constants' names are the constants."""
    constants: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    autocast: str | Mapping[str, str] = "same"


class Pointwise(Parameterless):
    """A row of the table with its constants; saves x."""

    follows_layout = True

    def __init__(self, row: Row, constants: tuple[Any, ...] = ()) -> None:
        self._row, self._constants = row, constants
        self.curved = self.paired = row.second is not None
        self.autocast = row.autocast

    @property
    def name(self) -> str:
        constants = ", ".join(f"{c:g}" if isinstance(c, float) else str(c) for c in self._constants)
        return f"{self._row.name}({constants})" if constants else self._row.name

    def apply(self, *inputs: Any) -> Tensor:
        return self._row.f(inputs[0], *self._constants)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(*inputs), (inputs[0],)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._gate(saved[0], g),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._gate(saved[0], tangents[0])

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        products = [t * delta for delta, (t,) in pairs]
        total = sum(products[1:], products[0])
        return (self._row.second(total, saved[0], *self._constants),)  # type: ignore[misc]

    def _gate(self, x: Tensor, g: Tensor) -> Tensor:
        return self._row.gate(g, x, *self._constants)


def _times(derivative: Callable[..., Any]) -> Callable[..., Tensor]:
    """The gate of a derivative, from the derivative."""
    return lambda g, x, *constants: g * derivative(x, *constants)


def _mask(passes: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gate of a function whose derivative is 1 where `passes`, else 0."""
    return lambda g, x, *constants: torch.where(passes(x, *constants), g, 0.0)


def _mish_second(x: Tensor) -> Tensor:
    s, w = torch.sigmoid(x), torch.tanh(F.softplus(x))
    return (1 - w * w) * s * (2 + x * (1 - s - 2 * w * s))


def _elu_gate(g: Tensor, x: Tensor, alpha: float, scale: float, rate: float) -> Tensor:
    return _aten.elu_backward.default(g, alpha, scale, rate, False, x)


def _elu_second(p: Tensor, x: Tensor, alpha: float, scale: float, rate: float) -> Tensor:
    """f″ p of scale · (x, or α (exp(rate x) − 1) below 0)."""
    return torch.where(x < 0, p * (scale * alpha * rate**2) * torch.exp(rate * x), 0.0)


_SELU = 1.6732632423543772, 1.0507009873554805, 1.0


def _celu(alpha: float) -> tuple[float, float, float]:
    """α, scale and rate; PyTorch's derivatives round α to float32 for the rate."""
    return alpha, 1.0, 1 / torch.tensor(alpha, dtype=torch.float32).item()


def _clamped(x: Tensor, low: Any, high: Any) -> Tensor:
    """Where x is not cut off."""
    kept = torch.ones_like(x, dtype=torch.bool) if low is None else x >= low
    return kept if high is None else kept & (x <= high)


def _power(x: Tensor, p: float) -> Tensor:
    """p xᵖ⁻¹."""
    return p * x ** (p - 1)


_ROWS = (
    # piecewise linear
    Row(
        "Hardtanh",
        F.hardtanh,
        _aten.hardtanh_backward.default,
        None,
        (F.hardtanh, F.hardtanh_),
        (nn.Hardtanh, nn.ReLU6),
        {"min_val": -1.0, "max_val": 1.0},
    ),
    Row("ReLU6", F.relu6, lambda g, x: _aten.hardtanh_backward.default(g, x, 0, 6), None, (F.relu6,)),
    Row("Hardsigmoid", F.hardsigmoid, _aten.hardsigmoid_backward.default, None, (F.hardsigmoid,), (nn.Hardsigmoid,)),
    Row("abs", torch.abs, _times(torch.sign), None, (torch.abs, torch.absolute), methods=("abs", "abs_", "absolute")),
    Row(
        "clamp",
        torch.clamp,
        _mask(_clamped),
        None,
        (torch.clamp, torch.clip),
        constants={"min": None, "max": None},
        methods=("clamp", "clamp_", "clip", "clip_"),
    ),
    Row(
        "clamp_min",
        torch.clamp_min,
        _mask(torch.ge),
        None,
        (torch.clamp_min,),
        constants={"min": None},
        methods=("clamp_min", "clamp_min_"),
    ),
    Row(
        "clamp_max",
        torch.clamp_max,
        _mask(torch.le),
        None,
        (torch.clamp_max,),
        constants={"max": None},
        methods=("clamp_max", "clamp_max_"),
    ),
    # activations
    Row(
        "Hardswish",
        F.hardswish,
        _aten.hardswish_backward.default,
        lambda p, x: torch.where((x > -3) & (x < 3), p / 3, 0.0),
        (F.hardswish,),
        (nn.Hardswish,),
    ),
    Row("Mish", F.mish, _aten.mish_backward.default, _times(_mish_second), (F.mish,), (nn.Mish,)),
    Row(
        "SELU",
        F.selu,
        lambda g, x: _elu_gate(g, x, *_SELU),
        lambda p, x: _elu_second(p, x, *_SELU),
        (F.selu, F.selu_),
        (nn.SELU,),
    ),
    Row(
        "CELU",
        F.celu,
        lambda g, x, alpha: _elu_gate(g, x, *_celu(alpha)),
        lambda p, x, alpha: _elu_second(p, x, *_celu(alpha)),
        (F.celu, F.celu_),
        (nn.CELU,),
        {"alpha": 1.0},
    ),
    Row(
        "LogSigmoid",
        F.logsigmoid,
        _times(lambda x: torch.sigmoid(-x)),
        _times(lambda x: -torch.sigmoid(x) * torch.sigmoid(-x)),
        (F.logsigmoid,),
        (nn.LogSigmoid,),
    ),
    Row(
        "Softsign",
        F.softsign,
        _times(lambda x: (1 + x.abs()) ** -2),
        _times(lambda x: -2 * x.sign() * (1 + x.abs()) ** -3),
        (F.softsign,),
        (nn.Softsign,),
    ),
    # elementary functions
    Row("sin", torch.sin, _times(torch.cos), _times(lambda x: -torch.sin(x)), (torch.sin,), methods=("sin", "sin_")),
    Row(
        "cos",
        torch.cos,
        _times(lambda x: -torch.sin(x)),
        _times(lambda x: -torch.cos(x)),
        (torch.cos,),
        methods=("cos", "cos_"),
    ),
    Row(
        "exp",
        torch.exp,
        _times(torch.exp),
        _times(torch.exp),
        (torch.exp,),
        methods=("exp", "exp_"),
        autocast=FLOAT32_ON_CUDA,
    ),
    Row(
        "expm1",
        torch.expm1,
        _times(torch.exp),
        _times(torch.exp),
        (torch.expm1,),
        methods=("expm1", "expm1_"),
        autocast=FLOAT32_ON_CUDA,
    ),
    Row(
        "log",
        torch.log,
        _times(lambda x: 1 / x),
        _times(lambda x: -(x**-2)),
        (torch.log,),
        methods=("log", "log_"),
        autocast=FLOAT32_ON_CUDA,
    ),
    Row(
        "log1p",
        torch.log1p,
        _times(lambda x: 1 / (1 + x)),
        _times(lambda x: -((1 + x) ** -2)),
        (torch.log1p,),
        methods=("log1p", "log1p_"),
        autocast=FLOAT32_ON_CUDA,
    ),
    Row(
        "sqrt",
        torch.sqrt,
        _times(lambda x: 0.5 / x.sqrt()),
        _times(lambda x: -0.25 * x**-1.5),
        (torch.sqrt,),
        methods=("sqrt", "sqrt_"),
    ),
    Row(
        "rsqrt",
        torch.rsqrt,
        _times(lambda x: -0.5 * x**-1.5),
        _times(lambda x: 0.75 * x**-2.5),
        (torch.rsqrt,),
        methods=("rsqrt", "rsqrt_"),
        autocast=FLOAT32_ON_CUDA,
    ),
    Row(
        "erf",
        torch.erf,
        _times(lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x)),
        _times(lambda x: -4 / math.sqrt(math.pi) * x * torch.exp(-x * x)),
        (torch.erf,),
        methods=("erf", "erf_"),
    ),
)
_SQUARE = Row("square", torch.square, _times(lambda x: 2 * x), _times(lambda x: 2.0), autocast=FLOAT32_ON_CUDA)
_POWER = Row("pow", torch.pow, _times(_power), _times(lambda x, p: p * _power(x, p - 1)), autocast=FLOAT32_ON_CUDA)
_INVERSE = Row(
    "reciprocal",
    lambda x, c: c / x,
    _times(lambda x, c: -c * x**-2),
    _times(lambda x, c: 2 * c * x**-3),
    autocast=FLOAT32_ON_CUDA,
)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _register(row: Row) -> None:
    """Rules of one row: its module class, its functions, and its tensor methods."""
    names = tuple(row.constants)

    @module_rule(*row.modules, config=names)
    def _(module: Any) -> Application:
        return Application(Pointwise(row, tuple(getattr(module, name) for name in names)))

    @function_rule(*row.functions, methods=row.methods)
    def _(input: Any, *constants: Any, inplace: bool = False, **named: Any) -> Application | None:
        values = row.constants | dict(zip(names, constants, strict=False)) | named
        if len(constants) > len(names) or values.keys() != row.constants.keys():
            return None
        if not all(_number(v) for v in values.values() if v is not None):
            return None
        return Application(Pointwise(row, tuple(values.values())), inputs=(input,))


for _row in _ROWS:
    _register(_row)


@function_rule(torch.square, methods=("square", "square_"))
def _square(input: Any) -> Application:
    return Application(Pointwise(_SQUARE), inputs=(input,))


@function_rule(operator.pow, operator.ipow, torch.pow, methods=("pow", "pow_"))
def _pow(input: Any, exponent: Any) -> Application | None:
    if not _number(exponent) or exponent in (0, 1):
        return None
    if exponent == 2:
        return _square(input)
    return Application(Pointwise(_POWER, (exponent,)), inputs=(input,))


@function_rule(torch.reciprocal, methods=("reciprocal", "reciprocal_"))
def _reciprocal(input: Any) -> Application:
    return Application(Pointwise(_INVERSE, (1,)), inputs=(input,))


@function_rule(operator.truediv, torch.div)
def _number_over(input: Any, other: Any) -> Application | None:
    return Application(Pointwise(_INVERSE, (input,)), inputs=(other,)) if _number(input) else None
