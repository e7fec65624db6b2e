"""What the marks of a chain's words ask a GPU for, as rows: operands made for it, passes one by one, other ways.

    row      marks  instead of the passes                    in one
    forward  f m    product, bias, relu and bits             all of it; or all but the bits, read off the result
    vjp      b      product, gate (sweep 2)                  both
    jvp      t      product, gate (sweep 3)                  both
    reverse  z      product, gate, bias gradient (sweep 4)   all of it
    weight   w      gradient of a weight                     from transposed copies of both operands
    gate     g      gate (sweep 3), its transposed copy      both
    pass     r      sweep 4 at an activation, the copy       both

`product_choices.py` decides among them. A way has the marks that ask for it; `x` behind them lets products use tf32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
_ops = torch.ops.datagrad
Call = Callable[..., Any]


@dataclass(frozen=True)
class Wanted:
    """A row at sizes, dtype and device. On the two sides of a weight flow (rows, fan_in) and (rows, fan_out); beside an
    activation both are its width. `copied`: sweep 4 wants the transposed copy too, and its pass writes it.
    """

    row: str
    rows: int
    fan_in: int
    fan_out: int
    dtype: torch.dtype
    device: torch.device
    tf32: bool = False
    kind: str = "relu"
    constants: tuple[float, ...] = (0.0,)
    bias: bool = True
    copied: bool = False

    def __str__(self) -> str:
        name = ROWS[self.row].name + f" of {self.kind}" * (self.row in ("gate", "pass"))
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return f"{name}, {self.rows} rows, {self.fan_in} to {self.fan_out}, {dtype} on {self.device}"

    def case(self) -> Case:
        """How to try it."""
        return ROWS[self.row].case(self, _Numbers(self))


@dataclass(frozen=True)
class Case:
    """Operands; calls of them with equal results, floating, or bits of the first of them. `ways`: by their marks."""

    operands: tuple[Any, ...]
    one_by_one: Call
    ways: Mapping[str, Call]


@dataclass(frozen=True)
class Row:
    """How a row reads, and its case."""

    name: str
    case: Callable[[Wanted, _Numbers], Case]


class _Numbers:
    """Normal numbers, of the weight so that results are near 1."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._generator = torch.Generator(wanted.device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        empty = torch.empty(shape, dtype=self._wanted.dtype, device=self._wanted.device)
        return empty.normal_(generator=self._generator)

    def inputs(self) -> Tensor:
        return self.normal(self._wanted.rows, self._wanted.fan_in)

    def outputs(self) -> Tensor:
        return self.normal(self._wanted.rows, self._wanted.fan_out)

    def weight(self) -> Tensor:
        return self.normal(self._wanted.fan_out, self._wanted.fan_in).mul_(1 / math.sqrt(self._wanted.fan_in))


def _forward(wanted: Wanted, numbers: _Numbers) -> Case:
    def one_by_one(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.relu_forward.default(torch.mm(x, weight.t()), bias, -1, 0.0)

    def way(marks: str) -> Call:
        return lambda x, weight, bias: _ops.product_relu.default(x, weight, bias, marks)

    marks = ["f"] * (wanted.dtype in HALF and wanted.fan_out % 128 == 0) + ["mx" if wanted.tf32 else "m"]
    operands = numbers.inputs(), numbers.weight(), numbers.normal(wanted.fan_out)
    return Case(operands, one_by_one, {each: way(each) for each in marks})


def _vjp(wanted: Wanted, numbers: _Numbers) -> Case:
    def one_by_one(g: Tensor, weight: Tensor, bits: Tensor) -> Tensor:
        return _ops.relu_gate.default(torch.mm(g, weight), bits, 0.0, False)

    operands = numbers.outputs(), numbers.weight(), bits_of(numbers.inputs())
    return Case(operands, one_by_one, {"b": lambda *given: _ops.product_gate.default(*given, False)})


def _jvp(wanted: Wanted, numbers: _Numbers) -> Case:
    def one_by_one(t: Tensor, weight: Tensor, bits: Tensor) -> Tensor:
        return _ops.relu_gate.default(torch.mm(t, weight.t()), bits, 0.0, False)

    operands = numbers.inputs(), numbers.weight(), bits_of(numbers.outputs())
    return Case(operands, one_by_one, {"t": lambda *given: _ops.product_gate.default(*given, True)})


def _reverse(wanted: Wanted, numbers: _Numbers) -> Case:
    marks = "zx" if wanted.tf32 else "z"

    def one_by_one(zeta: Tensor, weight: Tensor, bits: Tensor) -> tuple[Tensor, ...]:
        if wanted.copied:
            return _ops.relu_reverse_turned.default(torch.mm(zeta, weight), bits, 0.0, True)
        return _ops.relu_reverse.default(torch.mm(zeta, weight), bits, 0.0, False, -1)

    def in_one(zeta: Tensor, weight: Tensor, bits: Tensor) -> tuple[Tensor, ...]:
        gx, sums = _ops.product_reverse.default(zeta, weight, bits, marks)
        return (gx, sums, _ops.turned_copy.default(gx)) if wanted.copied else (gx, sums)

    return Case((numbers.outputs(), numbers.weight(), bits_of(numbers.inputs())), one_by_one, {marks: in_one})


def _weight(wanted: Wanted, numbers: _Numbers) -> Case:
    def one_by_one(g: Tensor, x: Tensor) -> Tensor:
        return torch.mm(g.t(), x)

    return Case((numbers.outputs(), numbers.inputs()), one_by_one, {"w": _ops.product_turned.default})


def _gate(wanted: Wanted, numbers: _Numbers) -> Case:
    if wanted.kind == "relu":
        return _rectify(wanted, numbers, "g", False)
    return _curve(wanted, numbers, "g", 0, False)


def _pass(wanted: Wanted, numbers: _Numbers) -> Case:
    if wanted.kind == "relu":
        return _rectify(wanted, numbers, "r", wanted.bias)
    return _curve(wanted, numbers, "r", 2, wanted.bias)


def _rectify(wanted: Wanted, numbers: _Numbers, mark: str, sums: bool) -> Case:
    slope = wanted.constants[0]

    def one_by_one(g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not sums:
            gx = _ops.relu_gate.default(g, bits, slope, False)
            return gx, g.new_empty(0), _ops.turned_copy.default(gx)
        gx, bias_bar = _ops.relu_reverse.default(g, bits, slope, False, -1)
        return gx, bias_bar, _ops.turned_copy.default(gx)

    def in_one(g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.relu_reverse_turned.default(g, bits, slope, sums)

    return Case((numbers.outputs(), bits_of(numbers.outputs())), one_by_one, {mark: in_one})


def _curve(wanted: Wanted, numbers: _Numbers, mark: str, operands_of_pairs: int, sums: bool) -> Case:
    bias = numbers.normal(wanted.fan_out) if wanted.bias else None
    kind, constants = wanted.kind, wanted.constants

    def one_by_one(zeta: Tensor, z: Tensor, *pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = (zeta, pairs[:1], pairs[1:], z, bias, -1, kind, constants, sums)
        gx, bias_bar = _ops.smooth_reverse.default(*given)
        return gx, bias_bar, _ops.turned_copy.default(gx)

    def in_one(zeta: Tensor, z: Tensor, *pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = (zeta, pairs[:1], pairs[1:], z, bias, kind, constants, sums)
        return _ops.smooth_reverse_turned.default(*given)

    operands = tuple(numbers.outputs() for _ in range(2 + operands_of_pairs))
    return Case(operands, one_by_one, {mark: in_one})


def bits_of(z: Tensor) -> Tensor:
    """The mask of a relu at z."""
    return _ops.relu_forward.default(z, None, -1, 0.0)[1]


ROWS: Mapping[str, Row] = {
    "forward": Row("forward with relu", _forward),
    "vjp": Row("vjp with gate", _vjp),
    "jvp": Row("jvp with gate", _jvp),
    "reverse": Row("reverse with gate and bias gradient", _reverse),
    "weight": Row("weight gradient", _weight),
    "gate": Row("gate and transposed copy", _gate),
    "pass": Row("reverse pass and transposed copy", _pass),
}
