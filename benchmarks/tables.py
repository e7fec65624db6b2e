"""Markdown tables of results: what the run prints, and what README and docs/performance.md carry."""

from collections.abc import Sequence
from typing import Any

from .results import CaseResult, OperationResult, Results, Row
from .timing import Times

NOTHING = "–"


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, a dash for None."""
    if value is None:
        return NOTHING
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}{unit}"


def mebibytes(size: int | None) -> str:
    """Bytes as MiB."""
    return number(None if size is None else size / 2**20)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads as plain text; all columns but the first are right-aligned."""
    lines = [list(titles), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    justified = [
        [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [justified[0], rule, *justified[1:]])


def environment_line(environment: dict[str, Any]) -> str:
    """One line: device, threads, versions, date, revision."""
    parts = [str(environment["device"])]
    if environment["device_type"] == "cpu":
        parts.append(f"{environment['threads']} threads")
    else:
        parts.append(f"CUDA {environment['cuda']}, cuDNN {environment['cudnn']}")
    parts += [f"PyTorch {environment['torch']}", f"Python {environment['python']}", environment["system"]]
    return ", ".join([*parts, str(environment["date"]), f"revision {environment['revision']}"])


def _setting(case: CaseResult) -> str:
    return ", ".join([case.objective, case.dtype, *([case.layout] if case.layout != "contiguous" else [])])


def heading(case: CaseResult) -> str:
    """Name, network, objective, dtype, layout of a case."""
    return f"{case.name}: {case.title}; {_setting(case)}"


def _spread(times: Times | None) -> str:
    return NOTHING if times is None else f"{number(times.p20_ms)}–{number(times.p80_ms)}"


def _error(row: Row) -> str:
    return NOTHING if row.accuracy is None else f"{row.accuracy.relative_error:.1e}"


def case_table(case: CaseResult) -> str:
    """All contestants of a case, then a line for each failure and note."""
    titles = ["contestant", "× plain", "× fastest peer", "median, ms", "p20–p80, ms", "peak, MiB", "error"]
    rows = [
        [
            row.title,
            number(row.ratio_to_plain),
            number(row.ratio_to_fastest_peer) if row.role != "plain" else NOTHING,
            "failed" if row.times is None else number(row.times.median_ms),
            _spread(row.times),
            mebibytes(row.peak_bytes),
            _error(row),
        ]
        for row in case.rows
    ]
    remarks = [f"- {row.title} failed: {row.reason}" for row in case.rows if row.reason]
    remarks += [f"- {row.title}: {note}" for row in case.rows for note in row.notes]
    return "\n".join([f"**{heading(case)}**", "", table(titles, rows), *([""] if remarks else []), *remarks])


def operation_table(operations: Sequence[OperationResult]) -> str:
    """All operations: PyTorch's time over ours first."""
    titles = ["operation", "shape", "torch / ours", "ours, ms", "torch, ms", "error"]
    rows = [
        [
            result.title,
            "×".join(map(str, result.shape)),
            number(result.ratio),
            number(result.ours.median_ms) if result.ours else "failed",
            number(result.torch.median_ms if result.torch else None),
            NOTHING if result.accuracy is None else f"{result.accuracy.relative_error:.1e}",
        ]
        for result in operations
    ]
    remarks = [f"- {result.title} failed: {result.reason}" for result in operations if result.reason]
    return "\n".join([table(titles, rows), *([""] if remarks else []), *remarks])


FAMILIES = {
    "eager": "eager",
    "fixed_conv": "fixed conv",
    "compile": "torch.compile",
    "ours": "**ours**",
}


def _fastest(case: CaseResult, contestant: str) -> Row:
    """The faster of a contestant and its CUDA-graph form; an empty row when neither was timed."""
    timed = [(row.times.median_ms, row) for row in case.rows if row.times and _family(row) == contestant]
    return min(timed, key=lambda pair: pair[0])[1] if timed else Row(contestant, "", "")


def _family(row: Row) -> str:
    return row.contestant.removesuffix("_graph")


def _quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _summary(case: CaseResult) -> list[str]:
    plain, eager, ours = (_fastest(case, name) for name in ("plain", "eager", "ours"))
    peer = case.fastest("peer") or eager
    ratios = [number(_fastest(case, name).ratio_to_plain) for name in FAMILIES]
    return [
        case.title,
        _setting(case),
        number(plain.times.median_ms if plain.times else None),
        *ratios[:-1],
        ratios[-1] if ratios[-1] == NOTHING else f"**{ratios[-1]}**",
        number(_quotient(eager.ratio_to_plain, ours.ratio_to_plain)),
        number(_quotient(peer.ratio_to_plain, ours.ratio_to_plain)),
        number(_quotient(ours.peak_bytes, eager.peak_bytes)),
    ]


def summary_table(results: Results) -> str:
    """One line a case: times the plain step for each family, speed-up and memory against eager."""
    titles = ["case", "objective", "plain, ms", *(f"{title} / plain" for title in FAMILIES.values())]
    titles += ["eager / ours", "fastest peer / ours", "peak memory, ours / eager"]
    return table(titles, [_summary(case) for case in results.cases])
