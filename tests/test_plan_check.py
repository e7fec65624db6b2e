"""The guard of fused convolutions: what it takes for right and what it refuses, on results made wrong on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from datagrad_ext.layers import fused_passes, plan_check
from datagrad_ext.layers.fused_passes import FORWARD, JVP, VJP, Call, examples
from datagrad_ext.layers.plan_check import Errors, Expected
from datagrad_ext.ops import fused_convolution

NUMBERS = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
SWEEPS = {"forward": FORWARD, "vjp": VJP, "jvp": JVP}
X, W = (6, 8, 7, 7), (8, 8, 3, 3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def call_of(sweep: str, dtype: torch.dtype, slope: float = 0.0, bias: bool = True) -> Call:
    x, weight = torch.zeros(X, dtype=dtype), torch.zeros(W, dtype=dtype)
    other = torch.zeros(W[0] if sweep == "forward" else X, dtype=dtype)
    return Call(SWEEPS[sweep], (x, weight, other if bias or sweep != "forward" else None), NUMBERS, slope)


def expected_of(call: Call) -> Expected:
    return Expected.of(call.right, examples(call), None if call.sweep is FORWARD else 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sweep", SWEEPS)
def test_what_is_right_is_taken(sweep: str, dtype: torch.dtype, slope: float, bias: bool) -> None:
    """The reference itself, and what a fused kernel gives: the result in float64, rounded once."""
    call = call_of(sweep, dtype, slope, bias)
    expected = expected_of(call)
    assert expected.refusal(call.right) is None
    assert expected.refusal(lambda operands: _in(torch.float64, call, operands).to(dtype)) is None


def _in(dtype: torch.dtype, call: Call, operands: tuple) -> Tensor:
    return call.right([None if t is None else t.to(dtype) for t in operands])


def _one_element(y: Tensor) -> Tensor:
    place = y.abs().flatten().argmax()
    y.view(-1)[place] *= 1.5
    return y


def _last_sample(y: Tensor) -> Tensor:
    y[-1].mul_(1.1)
    return y


def _unwritten(y: Tensor) -> Tensor:
    y[-1, -1, -1, -1] = math.nan
    return y


def _clipped(y: Tensor) -> Tensor:
    return y.clamp(-torch.finfo(y.dtype).max, torch.finfo(y.dtype).max)


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "scaled": (lambda y: y * 1.02, "from float64"),
    "zero": (torch.zeros_like, "from float64"),
    "one element": (_one_element, "from float64|beyond the first samples"),
    "last sample": (_last_sample, "beyond the first samples"),
    "an element never written": (_unwritten, "beyond the first samples"),
    "NaN lost": (lambda y: y.nan_to_num(0, math.inf, -math.inf), "NaN is not where"),
    "infinity clipped": (_clipped, "infinity is not where"),
    "NaN everywhere": (lambda y: y + 0 * y.sum(), "NaN is not where"),
    "another shape": (lambda y: y[:-1], "another shape or dtype"),
    "another dtype": (lambda y: y.double(), "another shape or dtype"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name: str, sweep: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where float64 sees the first samples alone."""
    monkeypatch.setattr(plan_check, "TRUTH", 3 * math.prod(X[1:]))
    wrong, sentence = WRONG[name]
    call = call_of(sweep, dtype)
    refusal = expected_of(call).refusal(lambda operands: wrong(call.right(operands)))
    assert refusal is not None
    assert any(part in refusal for part in sentence.split("|")), refusal


@pytest.mark.parametrize("sweep", SWEEPS)
def test_tf32_is_no_float32(sweep: str) -> None:
    """Operands with ten bits of mantissa: what tensor cores read of float32."""
    call = call_of(sweep, torch.float32)

    def run(operands: tuple) -> Tensor:
        a, weight, other = operands
        return call.right([_ten_bits(a), _ten_bits(weight), other])

    refusal = expected_of(call).refusal(run)
    assert refusal is not None
    assert "from float64" in refusal


def _ten_bits(t: Tensor) -> Tensor:
    return ((t.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32).where(t.isfinite(), t)


@pytest.mark.parametrize("sweep", ["vjp", "jvp"])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_a_gate_that_takes_nan_for_open_or_closed_the_other_way_is_refused(sweep: str, slope: float) -> None:
    call = call_of(sweep, torch.float32, slope)

    def run(operands: tuple) -> Tensor:
        a, weight, gate = operands
        return call.right([a, weight, gate.nan_to_num(-1.0 if slope == 0 else 1.0)])

    assert "differs beside" in str(expected_of(call).refusal(run))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_operands_of_the_guard_say_something(sweep: str) -> None:
    """No result is zero or infinite, and a gate is open and closed; a slope makes gates by value."""
    for dtype in DTYPES:
        call = call_of(sweep, dtype)
        _, _, other = examples(call)
        expected = expected_of(call)
        assert 0.1 < float(expected.truth.norm()) / math.sqrt(expected.truth.numel()) < 10
        assert expected.aten.isfinite().all()
        assert expected.unusual_results[0].isnan().any()
        assert expected.unusual_results[0].isinf().any()
        if sweep != "forward":
            assert other is not None
            assert 0.3 < float((other == 0).double().mean()) < 0.7


def test_errors_are_relative_to_norm_and_to_the_largest_element() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    errors = Errors.of(torch.tensor([3.0, 4.5]), truth)
    assert (errors.norm, errors.largest) == (0.1, 0.125)
    assert Errors(1e-3, 1e-3).allow(Errors(2e-3, 4e-3), 2)
    assert not Errors(1e-3, 1e-3).allow(Errors(2.1e-3, 1e-3), 2)
    assert not Errors(1e-3, 1e-3).allow(Errors(1e-3, 4.1e-3), 2)
    assert not Errors(1e-3, 1e-3).allow(Errors(math.nan, math.nan), 2)


def test_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    examples(call_of("vjp", torch.float32))
    assert torch.equal(before, torch.get_rng_state())


def test_the_references_of_the_sweeps_are_those_of_the_ops() -> None:
    for name, sweep in SWEEPS.items():
        assert sweep.reference is getattr(fused_convolution, f"fused_convolution_{name}")
        assert sweep.op is getattr(torch.ops.datagrad, f"fused_convolution_{name}").default
    assert fused_passes.DTYPES == DTYPES
