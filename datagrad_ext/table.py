"""program(model): the table of what an accelerated model runs, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .accelerate import is_accelerated, network_of
from .ops import is_native
from .program import Row
from .trace import Untraceable

_INTEGERS = (
    "Integer inputs have none: take the data gradient at what is computed from them (the output of an embedding), and "
    "accelerate the part that reads it."
)
_COLUMNS = ("name", "layer", "kind", "input_shape", "output_shape", "saved_bytes", "note")


@dataclass(frozen=True)
class TableRow:
    """One layer of a program.

    kind is 'native' (own kernels or a vendor library), 'reference' (the PyTorch formulae of the project's ops, because
    no kernel is loaded for the device) or 'opaque' (PyTorch's autograd, confined to this layer).
    """

    name: str
    layer: str
    kind: str
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    saved_bytes: int
    note: str


@dataclass(frozen=True)
class Table:
    """The rows of a program, printable; `note` says why there is no single program where there is none."""

    title: str
    rows: tuple[TableRow, ...]
    note: str = ""

    def __str__(self) -> str:
        cells = [_COLUMNS, *[tuple(_cell(getattr(row, name)) for name in _COLUMNS) for row in self.rows]]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        total = sum(row.saved_bytes for row in self.rows)
        return "\n".join(
            [self.title, *([self.note] if self.note else []), *lines, f"saved for the sweeps: {total:,} bytes"]
        )


def program(model: nn.Module, *inputs: Any) -> Table:
    """What an accelerated model runs: layers, shapes, native / reference / opaque, bytes saved.

    Args:
        model: a module from accelerate().
        inputs: example inputs; a copy of the model runs once on them. Without inputs, the table is of the latest trace,
            with the shapes of its first call.

    Raises:
        TypeError: the model is not accelerated.
        RuntimeError: no inputs were given and no call has been traced yet.
    """
    if inputs:
        return _table(_run_copy(model, inputs))
    network = network_of(model)
    if network.latest is None:
        raise RuntimeError(
            "this model has not been traced yet: a trace is made by the first call whose input requires a gradient. "
            "Call the model so, or pass example inputs: program(model, x)."
        )
    return _table(model)


def _run_copy(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """A copy of the model that has run on the inputs, the random state being left as it was."""
    network_of(model)
    twin = copy.deepcopy(model)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) if isinstance(t, Tensor) else t for t in inputs]
    with torch.random.fork_rng(), torch.enable_grad():
        twin(*leaves)
    return twin


def _table(model: nn.Module) -> Table:
    found = network_of(model).latest
    name = type(model).__name__
    if found is None:
        return Table(name, (), f"not called with an input that requires a gradient. {_INTEGERS}")
    if isinstance(found, Untraceable):
        rows = tuple(_rows_below(model, ""))
        return Table(name, rows, f"no single program: {found}. Its parts are networks of their own:")
    return Table(name, tuple(_row(row) for row in found.rows))


def _rows_below(module: nn.Module, path: str) -> Iterator[TableRow]:
    """Rows of the accelerated parts below a module that did not trace, and one row for every other part."""
    for name, child in module.named_children():
        place = f"{path}{name}"
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _rows_below(child, place + ".")
        elif not is_accelerated(child):
            yield TableRow(place, type(child).__name__, "opaque", None, None, 0, "plain PyTorch")
        else:
            for row in _table(child).rows:
                yield TableRow(f"{place}.{row.name}", *[getattr(row, column) for column in _COLUMNS[1:]])


def _row(row: Row) -> TableRow:
    layer = row.step.layer
    kind, note = "native", ""
    if layer.opaque:
        kind, note = "opaque", getattr(layer, "why", "")
    elif not all(is_native(op, row.device) for op in layer.ops):
        kind = "reference"
    return TableRow(row.step.name, layer.name, kind, row.input_shape, row.output_shape, row.saved_bytes, note)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "×".join(map(str, value)) or "scalar"
    return f"{value:,}" if isinstance(value, int) else str(value)
