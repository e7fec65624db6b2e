"""Products that a GPU does together with what is behind them, and the marks that ask chains for them.

The ops equal their references on CUDA, where cuBLASLt takes them. The sweeps with marks equal those without: on CUDA
the kernels, elsewhere `emulate_epilogues.cpp`, which fails where a mark is not followed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_ops_chain as ops_chain
import torch
from kernels import assert_native
from oracle import difference
from test_ops_chain import CHAINS, NAMES, example, sweeps
from torch import Tensor

import datagrad_ext
from build_support.plan import STABLE_ABI
from datagrad_ext.layers import product_choices
from datagrad_ext.layers.product_choices import Product
from datagrad_ext.ops.chain import parse, with_marks

ROOT = Path(__file__).parent.parent
MARKED = {
    "rectifiers": ("linear relu+b:0.0@fbt linear relu+b:0.0@fbt linear+b", [40, 384, 128, 10]),
    "all marks": ("linear@w relu+b:0.0@fbt linear@w relu+b:0.0@fbt linear+b@w", [40, 384, 128, 96]),
    "at the end": ("linear@w relu+b:0.0@fbt", [24, 384]),
}
CALLS = [(1, 1, True), (33, 0, True), (64, 1, False), (65, 2, True)]  # rows, data gradients, with ζ


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mark", "fbtw")
@pytest.mark.parametrize(("rows", "fan_in", "fan_out"), [(1, 128, 128), (130, 384, 256), (1000, 512, 640)])
def test_in_one_and_one_by_one(mark: str, rows: int, fan_in: int, fan_out: int, dtype: torch.dtype) -> None:
    """Each op with ordinary operands; with NaN and infinity only where it claims to keep them."""
    if (mark == "w") != (dtype == torch.float32):
        return
    wanted = Product(mark, rows, fan_in, fan_out, dtype, torch.device("cuda"))
    in_one, one_by_one = wanted.calls
    wrong = product_choices.refusal(in_one, one_by_one, wanted.examples())
    assert wrong is None or (mark == "f" and "NaN is not where it belongs" in wrong)


def _without(links: str) -> str:
    return " ".join(text.partition("@")[0] for text in links.split())


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MARKED)
def test_chains_with_marks(
    name: str, dtype: torch.dtype, implementation: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks change nothing but the order of sums, and where they cannot be followed, nothing."""
    monkeypatch.setitem(CHAINS, name, MARKED[name])
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
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    library, package = tmp_path_factory.mktemp("marked") / "emulate_epilogues.so", Path(torch.__file__).parent
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", *STABLE_ABI]
    includes = [f"-I{ROOT / 'csrc'}", f"-isystem{package / 'include'}"]
    source = ROOT / "tests" / "emulate_epilogues.cpp"
    links = [f"-L{package / 'lib'}", "-ltorch_cpu"]
    subprocess.run(["c++", *flags, *includes, source, "-o", library, *links], check=True)
    definitions = torch.library.Library("datagrad_marked", "DEF")
    for name in NAMES:
        schema = str(getattr(torch.ops.datagrad, name).default._schema)
        definitions.define(schema.removeprefix("datagrad::"))
    torch.ops.load_library(library)
    with pytest.MonkeyPatch.context() as patch:
        implementation = {name: getattr(torch.ops.datagrad_marked, name).default for name in NAMES}
        patch.setitem(ops_chain.IMPLEMENTATIONS, "marked", implementation)
        yield "marked"


def test_the_sweeps_follow_marks(marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAINS, "all marks", MARKED["all marks"])
    for rows, pairs, with_zeta in CALLS:
        for want_y in (True, False):
            e = example("all marks", rows, pairs).map(Tensor.float)
            found = sweeps(marked, e, with_zeta=with_zeta, want_y=want_y)
            expected = sweeps("reference", e, with_zeta=with_zeta, want_y=want_y)
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
@pytest.mark.parametrize("name", ["product_relu", "product_gate", "product_turned"])
def test_native_kernels_are_in_use(name: str) -> None:
    assert_native(name, "cuda")


@pytest.mark.cuda
def test_operands_that_are_not_taken_are_told_in_a_sentence() -> None:
    a = torch.zeros(4, 8, device="cuda", dtype=torch.float16)
    with pytest.raises(RuntimeError, match="product_relu: needs dense matrices aligned to 16 bytes"):
        torch.ops.datagrad.product_relu(a, torch.zeros_like(a), a[0, :4])


def test_the_package_names_the_ops() -> None:
    assert {"product_relu", "product_gate", "product_turned"} <= {op.name for op in datagrad_ext.backends().ops}
