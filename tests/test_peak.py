"""Peak memory of a penalty step at the benchmark's full sizes, traced on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import cases, contestants, peaks

OBJECTIVE = contestants.find(["objective"])[0]
ROWS = [case for case in cases.CUDA_CASES if case.precision == "bf16" and OBJECTIVE.enters(case)]


def peak(case: cases.Case, name: str) -> int:
    """Of a contestant's second step."""
    step = contestants.find([name])[0].make(replace(case, device="meta")).step
    step()
    return peaks.traced_peak(step)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_an_objective_takes_no_more_than_the_step_written_out_and_than_eager(case: cases.Case) -> None:
    """What sweep 3 has read is gone before sweep 4."""
    objective = peak(case, "objective")
    assert objective <= 1.01 * peak(case, "ours")
    assert objective < peak(case, "eager")
