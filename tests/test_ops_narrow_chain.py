"""Narrow chains in 16 bits: what CUDA runs as one kernel a sweep (`csrc/cuda/narrow_chain.cuh`).

The ops equal the reference in the same dtype, with the same arguments, buffers and places. That the reference equals
autograd is shown in `test_ops_chain.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import test_ops_chain as ops_chain
import torch
from oracle import difference
from test_ops_chain import CHAINS, Results, example, sweeps
from torch import Tensor

DEVICES = ("cuda", "emulated")
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
CALLS = [(1, 1, True), (15, 0, True), (70, 1, False), (70, 2, True), (16, 2, False)]  # rows, data gradients, with ζ


def same(actual: Results, expected: Results) -> None:
    """Equal but for the order of sums, by norm and by direction; rounding may turn a rectifier's bit for it."""
    for name, ours in actual.items():
        truth = expected[name]
        if ours is None or truth is None:
            assert ours is truth, name
            continue
        assert (ours.shape, ours.dtype) == (truth.shape, truth.dtype), name
        assert ours.isfinite().all(), name
        error, tolerance = difference(ours, truth), TOLERANCES[ours.dtype]
        vanishes = float(truth.double().norm()) <= 1e-3 * tolerance
        assert vanishes or (error.norm <= tolerance and error.cosine <= tolerance**2), (name, error)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_sweeps(name: str, dtype: torch.dtype, device: str) -> None:
    """With and without ζ, for no, one and two data gradients, and three, which the kernel leaves to others."""
    for rows, pairs, with_zeta in [*CALLS, (9, 3, True)]:
        e = example(name, rows, pairs).map(lambda t: t.to(device, dtype))
        found, expected = (sweeps(i, e, with_zeta=with_zeta) for i in ("op", "reference"))
        same(found, expected)


@pytest.mark.parametrize("name", CHAINS)
def test_only_what_is_wanted(name: str, device: str) -> None:
    e = example(name, 20).map(lambda t: t.to(device, torch.float16))
    n = len(e.params)
    subsets = [[False] * n, [i == 0 for i in range(n)], [i == n - 1 for i in range(n)], [i % 2 == 1 for i in range(n)]]
    for wanted, with_zeta in itertools.product(subsets, (True, False)):
        for want_x, want_y in ((True, False), (False, True), (False, False)):
            asked: dict[str, Any] = dict(with_zeta=with_zeta, wanted=wanted, want_x=want_x, want_y=want_y)
            same(sweeps("op", e, **asked), sweeps("reference", e, **asked))


SHAPES: dict[str, tuple[str, list[int]]] = {
    **{
        f"{width} wide": ("linear softplus+b:1.0:20.0 linear relu+b:0.0 linear+b", [3, width, width, 1])
        for width in (1, 2, 8, 17, 63, 64, 100, 127)
    },
    "sixteen layers": ("linear softplus+b:1.0:20.0 " * 15 + "linear+b", [3, *[20] * 15, 1]),
    "240 wide": ("linear+b relu:0.0 linear+b", [240, 100, 233]),
    "weights loaded before use": ("linear relu+b:0.0 linear+b", [256, 100, 250]),
    "128 wide, deep": ("linear silu+b linear relu+b:0.0 " * 2 + "linear+b", [100, *[128] * 4, 10]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_depths_and_widths(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAINS, name, SHAPES[name])
    e = example(name, 40).map(lambda t: t.to(device, torch.bfloat16))
    same(sweeps("op", e), sweeps("reference", e))


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [4096, 65537])
def test_many_rows_twice_the_same(rows: int) -> None:
    """More tiles than blocks, the last of them with one row."""
    e = example("curved below", rows).map(lambda t: t.to("cuda", torch.float16))
    first, second = (sweeps("op", e) for _ in range(2))
    same(first, sweeps("reference", e))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ops_chain.LAYOUTS)
def test_layouts(layout: str, device: str) -> None:
    """x and ζ of any stride and alignment."""
    change: Callable[[Tensor], Tensor] = ops_chain.LAYOUTS[layout]
    e = example("curved below", 40).map(lambda t: t.to(device, torch.float16))
    e = ops_chain.Example(e.links, e.params, change(e.x), change(e.zeta), e.g, e.v)
    same(sweeps("op", e), sweeps("reference", e))


def test_an_infinity_stays_where_it_is(device: str) -> None:
    """tanh makes it finite again: no padding has met it."""
    e = example("tanh", 5).map(lambda t: t.to(device, torch.float16))
    e.x[2, 0] = torch.inf
    found, expected = (sweeps(i, e)["y"] for i in ("op", "reference"))
    assert found is not None
    assert expected is not None
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=4e-3, atol=4e-3)
