"""Marked products of chains: right and faster, chosen once, never while a graph records. No GPU is needed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import difference
from torch import Tensor, nn
from training_code import penalised

import datagrad_ext
from datagrad_ext.choices import Choice, Choices
from datagrad_ext.layers import product_choices
from datagrad_ext.layers.product_choices import Product
from datagrad_ext.ops import product
from datagrad_ext.ops.chain import parse

FLOAT16 = Product("f", 40, 384, 256, torch.float16, torch.device("cpu"))


class Fake:
    """A GPU whose ways in one take half the time, unless told."""

    def __init__(self, in_one: float = 0.5) -> None:
        self.times, self.capturing, self.asked = in_one, False, 0
        self.uses_tf32 = True

    def covers(self, x: Tensor) -> bool:
        return True

    def tf32(self) -> bool:
        return self.uses_tf32

    def may_choose(self) -> bool:
        return not self.capturing

    def seconds(self, run: Callable[[], Any], device: torch.device) -> float:
        run()
        self.asked += 1
        return self.times if self.asked % 2 else 1.0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setattr(product_choices, "gpu", found)
    monkeypatch.setattr(product_choices, "LEAST", 0)
    monkeypatch.setattr(product_choices, "CHOICES", Choices("products of chains", Choice("any other", "one by one")))
    return found


@pytest.mark.parametrize("mark", "fbtw")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_is_right_and_faster_is_chosen(mark: str, dtype: torch.dtype, fake: Fake) -> None:
    found = product_choices.choose(replace(FLOAT16, mark=mark, dtype=dtype))
    assert found.value, found
    assert "500.000 ms, one by one 1000.000 ms" in str(found)


def test_what_is_slower_is_not(fake: Fake) -> None:
    fake.times = 0.99
    assert not product_choices.choose(FLOAT16).value


def _loses_nan(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands)
    return y.nan_to_num(nan=0.0, posinf=math.inf), bits


def _wrong_bits(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands)
    return y, bits.flip(0)


def _one_element(*operands: Tensor) -> Any:
    y, bits = product.product_relu(*operands)
    return y.index_put((torch.tensor(y.shape[0] - 1), y[-1].argmax()), y.new_zeros(())), bits


def _fails(*operands: Tensor) -> Any:
    raise RuntimeError("cuBLASLt: no algorithm for this product")


def _no_memory(*operands: Tensor) -> Any:
    raise torch.OutOfMemoryError


WRONG = {
    "loses NaN": (_loses_nan, "refused, NaN is not where it belongs"),
    "wrong bits": (_wrong_bits, "refused, the bits are not those of its result"),
    "one element": (_one_element, "refused, it differs from the passes one by one"),
    "fails": (_fails, "cuBLASLt: no algorithm for this product"),
    "no memory": (_no_memory, "no memory for a comparison"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run, note = WRONG[name]
    monkeypatch.setattr(Product, "calls", property(lambda self: (run, product.product_relu)))
    found = product_choices.choose(FLOAT16)
    assert not found.value
    assert found.note == note


LINKS = "linear relu+b:0.0 linear+b relu:0.1 linear relu+b:0.0 linear+b"
WEIGHTS = [(384, 40), (256, 384), (257, 256), (10, 257)]


def _marks(dtype: torch.dtype, rows: int = 8) -> Any:
    weights = [torch.zeros(shape, dtype=dtype) for shape in WEIGHTS]
    return product_choices.marks(parse(LINKS), weights, torch.zeros(rows, 40, dtype=dtype))


def test_which_products_are_asked_about(fake: Fake) -> None:
    """Rectifiers with a slope, and widths whose bits lie otherwise, are not."""
    assert _marks(torch.float16) == ("", "tfb", "", "", "", "", "")
    assert _marks(torch.float32) == ("w", "", "w", "", "w", "", "w")
    fake.uses_tf32 = False
    assert set(_marks(torch.float32)) == set(_marks(torch.float64)) == {""}


def test_a_product_is_asked_about_once(fake: Fake) -> None:
    for rows in (8, 8, 9, 8):
        _marks(torch.float16, rows)
    assert fake.asked == 2 * 2 * 3  # two numbers of rows, three marks, two ways
    assert len(product_choices.CHOICES) == 6


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
    assert fake.asked == 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(plain, model.parameters(), strict=True))
    assert "chosen for products of chains: weight gradient, 9 rows, 6 to 300, float32 on cpu: in one" in str(
        datagrad_ext.backends()
    )


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_gpu_chooses(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it chooses, gradients are those of float64 as far as the dtype goes, and the choices are listed."""
    monkeypatch.setattr(product_choices, "LEAST", 0)
    monkeypatch.setattr(product_choices, "CHOICES", Choices("products of chains", Choice("any other", "one by one")))
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
    assert len(product_choices.CHOICES) == (3 if dtype == torch.float32 else 6)
    assert all(choice.note for choice in product_choices.CHOICES)
