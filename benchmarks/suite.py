"""One case, one operation, one series: gate, then times in turns, then peak memory."""

import gc
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import ceilings, gate, memory, peaks, timing
from .cases import DTYPES, Case
from .contestants import Contestant, Prepared, quietly
from .jax_peer import Absent
from .op_cases import Operation
from .results import CaseResult, OperationResult, Row, SeriesResult
from .series import Series

BASELINE = "eager"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _sentence(error: Exception) -> str:
    return _first_line(f"{type(error).__name__}: {error}")


def _enter(
    case: Case, contestant: Contestant, oracle: gate.Oracle, eager: gate.Accuracy | None
) -> tuple[Row, Prepared | None]:
    """A contestant's row with its accuracy, and its step if the gate lets it pass."""
    row = Row(contestant.name, contestant.title, contestant.role)
    row.allowed_error = gate.limit(case.precision, eager, oracle.penalty_share)
    if contestant.role == "plain" or contestant.name == BASELINE:
        row.allowed_error = gate.baseline_limit(case.precision, oracle.penalty_share)
    try:
        prepared = contestant.make(case)
        gradients, row.notes = quietly(prepared)
        row.accuracy = gate.compare(gradients, oracle.expected(contestant.role))
        row.reason = gate.objection(row.accuracy, row.allowed_error)
        row.peak_bytes = prepared.peak_bytes
    except Absent as error:
        row.status, row.reason = "absent", _first_line(str(error))
        return row, None
    except Exception as error:
        row.reason = _sentence(error)
    if row.reason:
        row.status = "failed"
        return row, None
    return row, prepared


def _described(case: Case, penalty_share: float) -> CaseResult:
    return CaseResult(
        name=case.name,
        title=case.subject.title,
        objective=case.objective.formula,
        device=case.device,
        dtype=case.precision,
        layout=case.layout,
        input_shape=list(case.subject.input_shape),
        penalty_share=penalty_share,
        rows=[],
    )


def _gate_all(case: Case, contestants: Sequence[Contestant]) -> tuple[CaseResult, dict[str, Prepared]]:
    """The rows of those that enter, and the steps of those that passed."""
    oracle = gate.oracle(case)
    _release(case.device)
    result = _described(case, oracle.penalty_share)
    passed: dict[str, Prepared] = {}
    eager = None
    for contestant in contestants:
        if not contestant.enters(case):
            continue
        row, prepared = _enter(case, contestant, oracle, eager)
        result.rows.append(row)
        if contestant.name == BASELINE:
            eager = row.accuracy
        if prepared is not None:
            passed[contestant.name] = prepared
    return result, passed


def _fill_memory(case: Case, row: Row, prepared: Prepared) -> None:
    """The row's peak where the step did not tell it. CUDA's allocator counts bytes, so no fresh process is needed."""
    if row.peak_bytes is not None:
        return
    if case.device == "cuda":
        row.peak_bytes = peaks.cuda_peak(prepared.step)
        return
    try:
        row.peak_bytes = memory.peak_bytes(case.name, row.contestant)
    except RuntimeError as error:
        row.notes.append(_first_line(str(error)))


def _release(device: str) -> None:
    """Give back what is free, so that no contestant, and no other process, wants for memory."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def run_case(
    case: Case,
    contestants: Sequence[Contestant],
    repeats: int,
    with_memory: bool,
    rates: ceilings.Ceilings | None = None,
) -> CaseResult:
    """Measure the contestants that enter `case`; `rates` are what its limit is computed from."""
    with case.settings():
        result, passed = _gate_all(case, contestants)
        blocks = {name: p.block or timing.block_of(p.step, case.device) for name, p in passed.items()}
        times = timing.in_turns(blocks, repeats)
        for row in result.rows:
            row.times = times.get(row.contestant)
            if with_memory and row.times:
                _fill_memory(case, row, passed[row.contestant])
        passed.clear()
        blocks.clear()
        _release(case.device)
        needed = ceilings.work(case) if rates else None
    if needed and rates:
        result.limit_ms, result.limit_by = needed.limit(case.precision, rates)
    result.set_ratios()
    return result


def rehearse(case: Case, contestants: Sequence[Contestant]) -> list[Row]:
    """The gate's rows for the case on the CPU with few samples: shows that it builds and that its weight is right.

    The peak is that of all samples, traced on the meta device.
    """
    few, full = case.on_few(2 if case.has_convolutions else 32), replace(case, device="meta")
    with few.settings():
        rows = _gate_all(few, contestants)[0].rows
    of_name = {contestant.name: contestant for contestant in contestants}
    for row in rows:
        step = of_name[row.contestant].make(full).step
        step()
        row.peak_bytes = peaks.traced_peak(step)
    return rows


def run_series(series: Series, contestants: Sequence[Contestant], repeats: int) -> SeriesResult:
    """Measure a series; the contestants are those that series.py names for it."""
    entrants = [contestant for contestant in contestants if contestant.name in series.contestants]
    points = [run_case(case, entrants, repeats, with_memory=False) for case in series.cases()]
    return SeriesResult(series.name, series.title, series.variable, list(series.values), points)


def _inputs(operation: Operation, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The row's inputs, rounded to the precision that is measured."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        tensors = operation.inputs(operation.shape)
    rounded = DTYPES[operation.precision]
    ready = [t.to(rounded).to(dtype) if t.is_floating_point() else t for t in tensors]
    if operation.channels_last:
        ready = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in ready]
    return ready


def run_operation(
    operation: Operation, device: str, repeats: int, rates: ceilings.Ceilings | None = None
) -> OperationResult:
    """Compare both sides with PyTorch in float64, then time them in turns."""
    title = operation.title + (", channels_last" if operation.channels_last else "")
    precision = operation.precision
    result = OperationResult(operation.name, title, list(operation.shape), precision)
    try:
        expected = operation.torch(*_inputs(operation, device, torch.float64))()
        calls = {
            side: build(*_inputs(operation, device, DTYPES[precision]))
            for side, build in (("ours", operation.ours), ("torch", operation.torch))
        }
        result.accuracy = gate.compare(calls["ours"](), expected)
        result.reason = gate.objection(result.accuracy, gate.TOLERANCES[precision])
    except Exception as error:
        result.reason = _sentence(error)
    if result.reason:
        result.status = "failed"
        return result
    del expected
    times = timing.alternate(calls, device, repeats)
    result.ours, result.torch = times["ours"], times["torch"]
    result.ratio = times["torch"].median_ms / times["ours"].median_ms
    if rates and operation.bytes:
        result.copy_share = 1000 * operation.bytes / times["ours"].median_ms / rates.memory
    return result
