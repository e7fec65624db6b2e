"""Markdown tables of results: what the run prints, and what README and docs/performance.md carry."""

from collections.abc import Sequence
from typing import Any

from .ceilings import Ceilings
from .results import CaseResult, OperationResult, Results, Row, SeriesResult
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


def device(environment: dict[str, Any]) -> str:
    """The device, and of a CPU how many threads."""
    if environment["device_type"] != "cpu":
        return str(environment["device"])
    threads = environment["threads"]
    return f"{environment['device']}, {threads} thread{'s' if threads > 1 else ''}"


def environment_line(environment: dict[str, Any]) -> str:
    """One line: device, threads, versions, date, revision."""
    parts = [device(environment)]
    if environment["device_type"] != "cpu":
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
    """All contestants of a case, then a line for its limit and for each failure, absence and note."""
    titles = ["contestant", "× plain", "× fastest peer", "median, ms", "p20–p80, ms", "peak, MiB", "error"]
    entered = [row for row in case.rows if row.status != "absent"]
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
        for row in entered
    ]
    if case.limit_ms:
        titles.insert(3, "× limit")
        for cells, row in zip(rows, entered, strict=True):
            cells.insert(3, number(row.ratio_to_limit) if row.role != "plain" else NOTHING)
    remarks = [f"- limit: {number(case.limit_ms)} ms, by {case.limit_by}"] if case.limit_ms else []
    remarks += [f"- {row.title} {_ending(row)}: {row.reason}" for row in case.rows if row.reason]
    remarks += [f"- {row.title}: {note}" for row in case.rows for note in row.notes]
    return "\n".join([f"**{heading(case)}**", "", table(titles, rows), *([""] if remarks else []), *remarks])


def _ending(row: Row) -> str:
    return "is absent" if row.status == "absent" else "failed"


def series_table(series: SeriesResult) -> str:
    """A line a value: milliseconds of each contestant, then ours over plain and eager over ours."""
    found = {row.contestant: row.title for point in series.points for row in point.rows}
    rows = []
    for value, point in zip(series.values, series.points, strict=True):
        eager, ours = (fastest_form(point, name) for name in ("eager", "ours"))
        rows.append(
            [
                str(value),
                *(number(row.times.median_ms if row and row.times else None) for row in map(point.row, found)),
                number(ours.ratio_to_plain),
                number(_quotient(eager.ratio_to_plain, ours.ratio_to_plain)),
            ]
        )
    first = series.points[0]
    titles = [series.variable, *(f"{title}, ms" for title in found.values()), "ours / plain", "eager / ours"]
    heading = f"**{series.name}: {series.title}; {_setting(first)}**"
    remarks = [
        f"- {row.title} {_ending(row)} at {value}: {row.reason}"
        for value, point in zip(series.values, series.points, strict=True)
        for row in point.rows
        if row.reason
    ]
    return "\n".join([heading, "", table(titles, rows), *([""] if remarks else []), *remarks])


def ceilings_line(rates: Ceilings) -> str:
    """The measured rates in a line."""
    products = [f"{rate / 1e12:.3g} TFLOP/s in {precision}" for precision, rate in rates.products.items()]
    return f"Measured ceilings: products {', '.join(products)}; copy {rates.memory / 1e9:.3g} GB/s."


def operation_table(operations: Sequence[OperationResult]) -> str:
    """All operations: PyTorch's time over ours first."""
    titles = ["operation", "shape", "torch / ours", "ours, ms", "torch, ms", "error"]
    rows = [
        [
            _operation_title(result),
            "×".join(map(str, result.shape)),
            number(result.ratio),
            number(result.ours.median_ms) if result.ours else "failed",
            number(result.torch.median_ms if result.torch else None),
            NOTHING if result.accuracy is None else f"{result.accuracy.relative_error:.1e}",
        ]
        for result in operations
    ]
    if any(result.copy_share for result in operations):
        titles.insert(3, "of the copy rate")
        for cells, result in zip(rows, operations, strict=True):
            cells.insert(3, number(result.copy_share))
    remarks = [f"- {_operation_title(result)} failed: {result.reason}" for result in operations if result.reason]
    return "\n".join([table(titles, rows), *([""] if remarks else []), *remarks])


def _operation_title(result: OperationResult) -> str:
    return result.title if result.dtype == "float32" else f"{result.title}, {result.dtype}"


FAMILIES = {
    "eager": "eager",
    "fixed_conv": "fixed conv",
    "compile": "torch.compile",
    "jax": "JAX",
    "ours": "**ours**",
}


def fastest_form(case: CaseResult, contestant: str) -> Row:
    """The faster of a contestant and its CUDA-graph form; an empty row when neither was timed."""
    timed = [(row.times.median_ms, row) for row in case.rows if row.times and family_of(row) == contestant]
    return min(timed, key=lambda pair: pair[0])[1] if timed else Row(contestant, "", "")


def family_of(row: Row) -> str:
    """The contestant of which a row is a form: itself, or what runs in the graph."""
    return row.contestant.removesuffix("_graph")


def _quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _summary(case: CaseResult, families: Sequence[str], with_objective: bool, with_limit: bool) -> list[str]:
    plain, eager, ours = (fastest_form(case, name) for name in ("plain", "eager", "ours"))
    objective = fastest_form(case, "objective")
    peer = case.fastest("peer") or eager
    ratios = [number(fastest_form(case, name).ratio_to_plain) for name in families]
    return [
        case.title,
        _setting(case),
        number(plain.times.median_ms if plain.times else None),
        *ratios[:-1],
        ratios[-1] if ratios[-1] == NOTHING else f"**{ratios[-1]}**",
        number(_quotient(eager.ratio_to_plain, ours.ratio_to_plain)),
        *([number(_quotient(eager.ratio_to_plain, objective.ratio_to_plain))] if with_objective else []),
        number(_quotient(peer.ratio_to_plain, ours.ratio_to_plain)),
        *([number(ours.ratio_to_limit)] if with_limit else []),
        number(_quotient(ours.peak_bytes, eager.peak_bytes)),
    ]


def summary_table(results: Results) -> str:
    """One line a case: times the plain step for each family that entered, speed-up and memory against eager.

    `objective` is the same step as one call of a `DataGrad` objective.
    """
    entered = {family_of(row) for case in results.cases for row in case.rows if row.status != "absent"}
    families = [name for name in FAMILIES if name in entered or name == "ours"]
    with_objective, with_limit = "objective" in entered, any(case.limit_ms for case in results.cases)
    titles = ["case", "objective", "plain, ms", *(f"{FAMILIES[name]} / plain" for name in families)]
    titles += ["eager / ours", *(["eager / DataGrad"] if with_objective else []), "fastest peer / ours"]
    titles += [*(["ours / limit"] if with_limit else []), "peak memory, ours / eager"]
    return table(titles, [_summary(case, families, with_objective, with_limit) for case in results.cases])
