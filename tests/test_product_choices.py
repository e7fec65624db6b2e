"""Marked products of chains: right and faster, chosen once, never while a graph records. No GPU is needed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import difference
from torch import Tensor, nn
from training_code import penalised

import datagrad_ext
from datagrad_ext import nodes
from datagrad_ext.choices import Choice, Choices
from datagrad_ext.layers import marked, product_choices
from datagrad_ext.layers.marked import ROWS, Case, Row, Wanted
from datagrad_ext.ops import product
from datagrad_ext.ops.chain import parse

FLOAT16 = Wanted("forward", 40, 384, 256, torch.float16, torch.device("cpu"))


class Fake:
    """A GPU on which the passes one by one take a second, and the ways of a row, in turn, as long as it is told."""

    def __init__(self) -> None:
        self.times: Sequence[float] = (0.5, 0.6)
        self.capturing, self.asked, self.uses_tf32 = False, 0, True
        self._turn = 0

    def covers(self, x: Tensor) -> bool:
        return True

    def tf32(self) -> bool:
        return self.uses_tf32

    def may_choose(self) -> bool:
        return not self.capturing

    def seconds(self, run: Callable[[], Any], device: torch.device) -> float:
        run()
        self.asked += 1
        if run.func.__name__ == "one_by_one":  # type: ignore[attr-defined]
            self._turn = 0
            return 1.0
        self._turn += 1
        return self.times[self._turn - 1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setattr(product_choices, "gpu", found)
    monkeypatch.setattr(product_choices, "LEAST", 0)
    monkeypatch.setattr(nodes, "nodes", None)  # they are for the CPU, and know no marks
    _new_table(monkeypatch)
    return found


def _new_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Choices("products of chains", Choice("any other", "one by one", ""))
    monkeypatch.setattr(product_choices, "CHOICES", table)


SOFTPLUS: dict[str, Any] = dict(kind="softplus", constants=(1.0, 20.0))
# What is asked, and the marks of its ways.
ASKED: dict[str, tuple[Wanted, list[str]]] = {
    **{row: (replace(FLOAT16, row=row), list(ways)) for row, ways in dict(forward="fm", vjp="b", jvp="t").items()},
    "reverse": (replace(FLOAT16, row="reverse"), ["z"]),
    "forward, few columns": (replace(FLOAT16, fan_out=40), ["m"]),
    "forward, float32": (replace(FLOAT16, dtype=torch.float32), ["m"]),
    "forward, tf32": (replace(FLOAT16, dtype=torch.float32, tf32=True), ["mx"]),
    "reverse, float32": (replace(FLOAT16, row="reverse", dtype=torch.float32), ["z"]),
    "reverse, tf32": (replace(FLOAT16, row="reverse", dtype=torch.float32, tf32=True), ["zx"]),
}
TF32 = dict(dtype=torch.float32, tf32=True)
ASKED |= {
    "reverse and copy": (replace(FLOAT16, row="reverse", copied=True, **TF32), ["zx"]),
    "weight": (replace(FLOAT16, row="weight", **TF32), ["w"]),
    **{
        f"{row}, {name}": (replace(FLOAT16, row=row, fan_in=256, **TF32, **kind), [mark])
        for row, mark in dict(gate="g", **{"pass": "r"}).items()
        for name, kind in {"relu": {}, "no bias": dict(bias=False), "softplus": SOFTPLUS}.items()
    },
}


def test_every_row_is_tried() -> None:
    assert {wanted.row for wanted, _ in ASKED.values()} == set(ROWS)


@pytest.mark.parametrize("name", ASKED)
def test_what_is_right_and_faster_is_chosen(name: str, fake: Fake) -> None:
    wanted, ways = ASKED[name]
    assert list(wanted.case().ways) == ways
    found = product_choices.choose(wanted)
    assert found.value == ways[0], found
    assert "500.000 ms" in found.note
    assert found.note.endswith("one by one 1000.000 ms")


def test_the_fastest_way_is_taken(fake: Fake) -> None:
    fake.times = (0.6, 0.5)
    found = product_choices.choose(FLOAT16)
    assert found.value == "m"
    assert str(found) == (
        "forward with relu, 40 rows, 384 to 256, float16 on cpu: in one, then bits (in one 600.000 ms,"
        " in one, then bits 500.000 ms, one by one 1000.000 ms)"
    )


def test_what_is_slower_is_not(fake: Fake) -> None:
    fake.times = (0.99, 1.5)
    assert product_choices.choose(FLOAT16).value == ""


def _loses_nan(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands, "")
    return y.nan_to_num(nan=0.0, posinf=math.inf), bits


def _wrong_bits(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands, "")
    return y, bits.flip(0)


def _one_element(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands, "")
    return y.index_put((torch.tensor(y.shape[0] - 1), y[-1].argmax()), y.new_zeros(())), bits


def _wrong_shape(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands, "")
    return y.t(), bits


def _fails(*operands: Tensor) -> Any:
    raise RuntimeError("cuBLASLt: no algorithm for this product")


WRONG = {
    "loses NaN": (_loses_nan, "NaN is not where it belongs"),
    "wrong bits": (_wrong_bits, "the bits are not those of its result"),
    "one element": (_one_element, "it differs from the passes one by one"),
    "wrong shape": (_wrong_shape, "it has shape [256, 40] and not [40, 256]"),
    "fails": (_fails, "cuBLASLt: no algorithm for this product"),
}


def _with_ways(monkeypatch: pytest.MonkeyPatch, ways: dict[str, Callable[..., Any]]) -> None:
    case = replace(FLOAT16.case(), ways=ways)
    monkeypatch.setattr(Wanted, "case", lambda self: case)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run, note = WRONG[name]
    _with_ways(monkeypatch, {"f": run})
    found = product_choices.choose(FLOAT16)
    assert found.value == ""
    assert found.note == f"in one refused: {note}"
    assert fake.asked == 0


def test_another_way_is_taken_where_one_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_ways(monkeypatch, {"f": _loses_nan, "m": FLOAT16.case().ways["m"]})
    found = product_choices.choose(FLOAT16)
    assert found.value == "m"
    assert found.note.startswith("in one refused: NaN is not where it belongs, in one, then bits 500.000 ms")


def test_without_memory_nothing_is_compared(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*operands: Tensor) -> Any:
        raise torch.OutOfMemoryError

    _with_ways(monkeypatch, {"f": no_memory})
    assert product_choices.choose(FLOAT16).note == "no memory for a comparison"


LINKS = "linear relu+b:0.0 linear+b relu:0.1 linear relu+b:0.0 linear+b"
WEIGHTS = [(384, 40), (256, 384), (257, 256), (10, 257)]


def _marks(dtype: torch.dtype, rows: int = 8, links: str = LINKS) -> Any:
    weights = [torch.zeros(shape, dtype=dtype) for shape in WEIGHTS]
    return product_choices.marks(parse(links), weights, torch.zeros(rows, 40, dtype=dtype))


def test_which_products_are_asked_about(fake: Fake) -> None:
    """Rectifiers with a slope, and widths whose bits lie otherwise, are not."""
    assert _marks(torch.float16) == ("", "ftbz", "", "", "", "", "")
    assert _marks(torch.float32) == ("w", "mxgzx", "w", "gr", "w", "", "w")
    fake.uses_tf32 = False
    assert _marks(torch.float32) == ("", "mz", "", "", "", "", "")
    assert set(_marks(torch.float64)) == {""}


def test_a_pass_writes_the_copy_where_no_epilogue_does_its_work(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {**ROWS, "reverse": Row("reverse", lambda wanted, numbers: _slow(wanted))}
    monkeypatch.setattr(marked, "ROWS", rows)
    assert _marks(torch.float32)[1] == "mxgr"


def _slow(wanted: Wanted) -> Case:
    """A way of sweep 4 that is refused; what it is compared with has the transposed copy."""
    assert wanted.copied
    return Case((torch.ones(2, 2),), lambda a: a, {"zx": lambda a: a + 1})


def test_smooth_links_are_asked_about_copies_alone(fake: Fake) -> None:
    links = "linear softplus+b:1.0:20.0 linear+b silu linear+b tanh linear+b"
    assert _marks(torch.float32, links=links) == ("w", "gr", "w", "gr", "w", "", "w")
    assert set(_marks(torch.float16, links=links)) == {""}


def test_a_product_is_asked_about_once(fake: Fake) -> None:
    for rows in (8, 8, 9, 8):
        _marks(torch.float16, rows)
    assert fake.asked == 2 * (4 + 5)  # two numbers of rows; four rows, five ways
    assert len(product_choices.CHOICES) == 8


def test_small_products_are_not_asked_about(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_choices, "LEAST", 1 << 28)
    assert set(_marks(torch.float16)) == {""}
    assert fake.asked == 0


def _step(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    penalised(model, x).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_model_takes_the_marks_once_no_graph_records(fake: Fake) -> None:
    """Gradients are the same with and without; while a stream is recorded the words stay plain."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 3))
    plain, x = [p.detach().clone() for p in model.parameters()], torch.randn(9, 6, requires_grad=True)
    expected = _step(model, x)
    model = datagrad_ext.accelerate(model)
    fake.capturing = True
    for ours, truth in zip(_step(model, x), expected, strict=True):
        assert difference(ours, truth).norm <= 1e-5
    assert fake.asked == 0
    fake.capturing = False
    for ours, truth in zip(_step(model, x), expected, strict=True):
        assert difference(ours, truth).norm <= 1e-5
    asked = dict.fromkeys(choice.what.partition(",")[0] for choice in product_choices.CHOICES)
    assert list(asked) == [
        "weight gradient",
        "gate and transposed copy of relu",
        "reverse pass and transposed copy of relu",
    ]
    assert all(torch.equal(a, b) for a, b in zip(plain, model.parameters(), strict=True))
    assert "chosen for products of chains: weight gradient, 9 rows, 6 to 300, tf32 on cpu: in one" in str(
        datagrad_ext.backends()
    )


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_gpu_chooses(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it chooses, gradients are those of float64 as far as the dtype goes, and the choices are listed."""
    monkeypatch.setattr(product_choices, "LEAST", 0)
    _new_table(monkeypatch)
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 384), nn.ReLU(), nn.Linear(384, 512), nn.ReLU(), nn.Linear(512, 8))
    x = torch.randn(1000, 64, dtype=torch.float64)
    expected = _step(copy.deepcopy(model).double(), x.clone().requires_grad_())
    model = datagrad_ext.accelerate(model.to("cuda", dtype))
    torch.use_deterministic_algorithms(False)
    try:
        found = _step(model, x.to("cuda", dtype).requires_grad_())
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
    for ours, truth in zip(found, expected, strict=True):
        assert difference(ours, truth).norm <= 0.2
    asked = [choice.what for choice in product_choices.CHOICES]
    for row in ["forward", "reverse with", *(["weight"] if dtype == torch.float32 else ["vjp", "jvp"])]:
        assert any(what.startswith(row) for what in asked), (row, asked)
    assert all(choice.note for choice in product_choices.CHOICES)
