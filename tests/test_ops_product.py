"""Products and passes that a GPU does together with what is behind them, and the marks that ask chains for them.

The ops equal the passes one by one on CUDA, in every row of `layers/marked.py`. The sweeps with marks equal those
without: the kernels, and `emulate_epilogues.cpp`, which fails where a mark is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import emulation
import pytest
import test_ops_chain as ops_chain
import torch
from kernels import assert_native
from oracle import difference
from test_ops_chain import CHAINS, NAMES, example, sweeps
from torch import Tensor

import datagrad_ext
from datagrad_ext.layers import product_choices
from datagrad_ext.layers.marked import Wanted
from datagrad_ext.ops.chain import parse, with_marks

DEVICES = ("cpu", "cuda", "emulated")
MARKED = {
    "rectifiers": ("linear relu+b:0.0@fbtz linear relu+b:0.0@fbtz linear+b", [40, 384, 128, 10]),
    "bits from results": ("linear relu+b:0.0@mz linear relu+b:0.0@mz linear+b", [40, 384, 128, 10]),
    "all epilogues": ("linear@w relu+b:0.0@fbtzx linear@w relu+b:0.0@mbtzx linear+b@w", [40, 384, 128, 96]),
    "copies": ("linear@w relu+b:0.0@mbgr linear@w softplus+b:2.0:5.0@gr linear+b@w", [24, 136, 72, 40]),
    "copies of odd widths": ("linear@w relu:0.1@gr linear+b@w tanh@gr linear+b@w relu+b:0.0@r", [24, 33, 70, 40]),
    "at the end": ("linear@w relu+b:0.0@fbtr", [24, 384]),  # no product is above it in sweep 4
}
FOLLOWED = ("all epilogues", "copies")  # by what is emulated, which fails where nothing is
CALLS = [(1, 1, True), (33, 0, True), (64, 1, False), (65, 2, True)]  # rows, data gradients, with ζ
NAMES_OF_OPS = ("product_gate", "product_relu", "product_reverse", "product_turned")
CUDA = torch.device("cuda")
SIZES = [(1, 128, 128), (130, 384, 256), (1000, 512, 640)]
SOFTPLUS: dict[str, Any] = dict(kind="softplus", constants=(2.0, 5.0))
LEAKY: dict[str, Any] = dict(constants=(0.1,))
ROWS_ON_CUDA = [
    *[(row, dtype, {}) for row in ("forward", "vjp", "jvp", "reverse") for dtype in (torch.float16, torch.bfloat16)],
    *[(row, torch.float32, dict(tf32=tf32)) for row in ("forward", "reverse") for tf32 in (False, True)],
    ("reverse", torch.float32, dict(tf32=True, copied=True)),
    ("weight", torch.float32, dict(tf32=True)),
    *[(row, torch.float32, more) for row in ("gate", "pass") for more in ({}, dict(bias=False), LEAKY, SOFTPLUS)],
]


@pytest.mark.cuda
@pytest.mark.parametrize(("row", "dtype", "more"), ROWS_ON_CUDA, ids=str)
@pytest.mark.parametrize(("rows", "fan_in", "fan_out"), SIZES)
def test_in_one_and_one_by_one(
    row: str,
    dtype: torch.dtype,
    more: dict[str, Any],
    rows: int,
    fan_in: int,
    fan_out: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way with ordinary operands; with NaN and infinity, only a library's relu may lose NaN."""
    tf32 = more.get("tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32" if tf32 else "ieee")
    wanted = Wanted(row, rows, fan_out if row in ("gate", "pass") else fan_in, fan_out, dtype, CUDA, **more)
    case = wanted.case()
    for run in case.ways.values():
        wrong = product_choices.refusal(run, case, tf32)
        assert wrong is None or (row == "forward" and wrong == "NaN is not where it belongs")


def _without(links: str) -> str:
    return " ".join(text.partition("@")[0] for text in links.split())


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MARKED)
def test_chains_with_marks(
    name: str, dtype: torch.dtype, implementation: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks change nothing but the order of sums, and where they cannot be followed, nothing."""
    links, widths = MARKED[name]
    monkeypatch.setitem(CHAINS, name, (links.replace("x", ""), widths))  # what x allows is less than float32
    for rows, pairs, with_zeta in CALLS:
        e = example(name, rows, pairs).map(lambda t: t.to(device, dtype))
        found = sweeps(implementation, e, with_zeta=with_zeta)
        e.links = _without(e.links)
        expected = sweeps("reference", e, with_zeta=with_zeta)
        for key, ours in found.items():
            truth = expected[key]
            if ours is None or truth is None:
                assert ours is truth, key
            else:
                assert difference(ours, truth).norm <= ops_chain.TOLERANCES[dtype], key


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the implementation that does what marks ask for, on the host."""
    library = tmp_path_factory.mktemp("marked") / "libdatagrad_marked.so"
    emulation.compile_library(library, [emulation.ROOT / "tests" / "emulate_epilogues.cpp"])
    with emulation.loaded("datagrad_marked", library), pytest.MonkeyPatch.context() as patch:
        implementation = {name: getattr(torch.ops.datagrad_marked, name).default for name in NAMES}
        patch.setitem(ops_chain.IMPLEMENTATIONS, "marked", implementation)
        yield "marked"


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_sweeps_follow_marks(name: str, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAINS, name, MARKED[name])
    for rows, pairs, with_zeta in CALLS:
        for want_y in (True, False):
            e = example(name, rows, pairs).map(Tensor.float)
            _alike(*(sweeps(each, e, with_zeta=with_zeta, want_y=want_y) for each in (marked, "reference")))


@pytest.mark.parametrize("name", FOLLOWED)
def test_marks_of_what_is_not_wanted(name: str, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bias gradient of an epilogue, or the gradient that a copy is for, passes are plain."""
    monkeypatch.setenv("DATAGRAD_UNMARKED", "1")
    monkeypatch.setitem(CHAINS, name, MARKED[name])
    e = example(name, 33, 1).map(Tensor.float)
    for left_out in range(len(e.params)):
        wanted = [i != left_out for i in range(len(e.params))]
        for want_x in (True, False):
            _alike(*(sweeps(each, e, wanted=wanted, want_x=want_x) for each in (marked, "reference")))


def _alike(found: ops_chain.Results, expected: ops_chain.Results) -> None:
    for key, ours in found.items():
        truth = expected[key]
        if ours is None or truth is None:
            assert ours is truth, key
        else:
            assert difference(ours, truth, floor=1e-6).norm <= 2e-5, key


def test_a_relu_at_the_end(marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps 1 and 3 end in it; in sweep 2 no product is before it."""
    monkeypatch.setitem(CHAINS, "at the end", MARKED["at the end"])
    ours, reference = (ops_chain.IMPLEMENTATIONS[name] for name in (marked, "reference"))
    e = example("at the end", 33).map(Tensor.float)
    found, expected = (run["chain_forward"](e.x, e.params, e.links) for run in (ours, reference))
    saved = found[1:]
    record = [e.g[0], *reference["chain_data_vjp"](e.g[0], e.params, saved, e.links)[1:]]
    for want_y in (True, False):
        last = (e.v[0], e.params, saved, record, e.links, [True, True], want_y, [])
        found += ours["chain_data_jvp"](*last)
        expected += reference["chain_data_jvp"](*last)
    for a, b in zip(found, expected, strict=True):
        if a.dtype == torch.uint8:
            size = e.g[0].numel() // 8  # what is behind the bits is not defined
            assert torch.equal(a[:size], b[:size])
        else:
            assert difference(a, b).norm <= 2e-5


def test_marks_are_words_of_the_same_links() -> None:
    links = "linear relu+b:0.0 linear+b"
    assert with_marks(links, ("w", "fb", "")) == "linear@w relu+b:0.0@fb linear+b"
    assert parse(with_marks(links, ("w", "fb", "t"))) == parse(links)


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES_OF_OPS)
def test_native_kernels_are_in_use(name: str) -> None:
    assert_native(name, "cuda")


@pytest.mark.cuda
def test_operands_that_are_not_taken_are_told_in_a_sentence() -> None:
    a = torch.zeros(4, 8, device="cuda", dtype=torch.float16)
    with pytest.raises(RuntimeError, match="product_relu: needs dense matrices aligned to 16 bytes"):
        torch.ops.datagrad.product_relu(a, torch.zeros_like(a), a[0, :4], "f")


def test_the_package_names_the_ops() -> None:
    assert set(NAMES_OF_OPS) <= {op.name for op in datagrad_ext.backends().ops}
