"""Writes networks.md: for each network of tests/zoo.py its layers, and those that are opaque.

    python docs/write_networks.py            needs torchvision
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests")]

from cases import Case  # noqa: E402
from zoo import OWN, TORCHVISION  # noqa: E402

import datagrad_ext  # noqa: E402

HEAD = """# Networks

Written by `docs/write_networks.py` from the programs of the networks in `tests/zoo.py`, in training mode on the CPU. A
layer is a row of `print(datagrad_ext.program(model))`: fused layers are one. `native` layers have derivatives in closed
form, and run the project's kernels or a vendor library's; `reference` ones the formulas of kernels that are not built;
`opaque` ones are PyTorch's own double backward, confined to that layer: right, at autograd's price.

`tests/test_zoo.py` compares the gradients of loss and penalty with autograd's for every one of them, in float64.

"""
COLUMNS = ("network", "input", "layers", "native", "reference", "opaque", "which")


def main() -> None:
    rows = [list(cells(case)) for case in [*OWN, *TORCHVISION]]
    lines = ["| " + " | ".join(line) + " |" for line in [COLUMNS, ["---"] * len(COLUMNS), *rows]]
    (DOCS / "networks.md").write_text(HEAD + "\n".join(lines) + "\n")


def cells(case: Case) -> Iterator[str]:
    """The row of one network."""
    torch.manual_seed(0)
    model = case.make()
    inputs = [torch.randn(shape) for shape in case.shapes]
    table = datagrad_ext.program(datagrad_ext.accelerate(model), *inputs)
    kinds = Counter(row.kind for row in table.rows)
    opaque = Counter(row.layer for row in table.rows if row.kind == "opaque")
    yield case.name
    yield ", ".join("×".join(map(str, shape)) for shape in case.shapes)
    yield str(len(table.rows))
    yield from (str(kinds[kind]) for kind in ("native", "reference", "opaque"))
    assert not table.note, f"{case.name}: {table.note}"
    yield ", ".join(f"{name} ({count})" for name, count in opaque.most_common()) or "–"


if __name__ == "__main__":
    main()
