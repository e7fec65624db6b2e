"""One case, one operation: gate, then times in turns, then peak memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import gate, memory, timing
from .cases import Case
from .contestants import Contestant, quietly
from .op_cases import Operation
from .results import CaseResult, OperationResult, Row

Step = Callable[[], object]
OPERATION_DTYPE = "float32"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _sentence(error: Exception) -> str:
    return _first_line(f"{type(error).__name__}: {error}")


def _enter(
    case: Case, contestant: Contestant, oracle: gate.Oracle, eager: gate.Accuracy | None
) -> tuple[Row, Step | None]:
    """A contestant's row with its accuracy, and its step if the gate lets it pass."""
    row = Row(contestant.name, contestant.title, contestant.role)
    row.allowed_error = gate.limit(case.precision, eager, oracle.penalty_share)
    try:
        prepared = contestant.prepare(case)
        gradients, row.notes = quietly(prepared)
        row.accuracy = gate.compare(gradients, oracle.expected(contestant.role))
        row.reason = gate.objection(row.accuracy, row.allowed_error)
    except Exception as error:
        row.reason = _sentence(error)
    if row.reason:
        row.status = "failed"
        return row, None
    return row, prepared.step


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


def _gate_all(case: Case, contestants: Sequence[Contestant]) -> tuple[CaseResult, dict[str, Step]]:
    """The rows of those that enter, and the steps of those that passed."""
    oracle = gate.oracle(case)
    result = _described(case, oracle.penalty_share)
    steps: dict[str, Step] = {}
    eager = None
    for contestant in contestants:
        if not contestant.enters(case):
            continue
        row, step = _enter(case, contestant, oracle, eager)
        result.rows.append(row)
        if contestant.name == "eager":
            eager = row.accuracy
        if step is not None:
            steps[contestant.name] = step
    return result, steps


def _fill_memory(case: Case, row: Row) -> None:
    try:
        row.peak_bytes = memory.peak_bytes(case.device, case.name, row.contestant)
    except RuntimeError as error:
        row.notes.append(_first_line(str(error)))


def run_case(case: Case, contestants: Sequence[Contestant], repeats: int, with_memory: bool) -> CaseResult:
    """Measure the contestants that enter `case`."""
    with case.settings():
        result, steps = _gate_all(case, contestants)
        times = timing.alternate(steps, case.device, repeats)
    for row in result.rows:
        row.times = times.get(row.contestant)
        if with_memory and row.times:
            _fill_memory(case, row)
    result.set_ratios()
    return result


def _inputs(operation: Operation, device: str, dtype: torch.dtype) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = operation.inputs(operation.shape)
    ready = [t.to(device, dtype if t.is_floating_point() else t.dtype) for t in tensors]
    if operation.channels_last:
        ready = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in ready]
    return ready


def run_operation(operation: Operation, device: str, repeats: int) -> OperationResult:
    """Compare both sides with PyTorch in float64, then time them in turns."""
    title = operation.title + (", channels_last" if operation.channels_last else "")
    result = OperationResult(operation.name, title, list(operation.shape), OPERATION_DTYPE)
    try:
        expected = operation.torch(*_inputs(operation, device, torch.float64))()
        calls = {
            side: build(*_inputs(operation, device, torch.float32))
            for side, build in (("ours", operation.ours), ("torch", operation.torch))
        }
        result.accuracy = gate.compare(calls["ours"](), expected)
        result.reason = gate.objection(result.accuracy, gate.TOLERANCES[OPERATION_DTYPE])
    except Exception as error:
        result.reason = _sentence(error)
    if result.reason:
        result.status = "failed"
        return result
    times = timing.alternate(calls, device, repeats)
    result.ours, result.torch = times["ours"], times["torch"]
    result.ratio = times["torch"].median_ms / times["ours"].median_ms
    return result
