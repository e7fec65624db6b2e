"""Results files: dataclasses that are written to and read from JSON, and the ratios between their rows."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .ceilings import Ceilings
from .gate import Accuracy
from .timing import Times

FORMAT = 1


@dataclass
class Row:
    """One contestant on one case. `status` is "ok", "failed" or "absent" (what it needs is not installed); the
    last two have a reason and no times.
    """

    contestant: str
    title: str
    role: str
    status: str = "ok"
    reason: str | None = None
    notes: list[str] = field(default_factory=list)
    accuracy: Accuracy | None = None
    allowed_error: float | None = None
    times: Times | None = None
    peak_bytes: int | None = None
    ratio_to_plain: float | None = None
    ratio_to_fastest_peer: float | None = None
    ratio_to_limit: float | None = None


@dataclass
class CaseResult:
    """One case: its description, a row per contestant that entered, and the least time that the device allows
    (ceilings.py), set by its "products" or its "memory".
    """

    name: str
    title: str
    objective: str
    device: str
    dtype: str
    layout: str
    input_shape: list[int]
    penalty_share: float
    rows: list[Row]
    limit_ms: float | None = None
    limit_by: str | None = None

    def row(self, contestant: str) -> Row | None:
        """The row of a contestant, None when it did not enter."""
        return next((row for row in self.rows if row.contestant == contestant), None)

    def fastest(self, role: str) -> Row | None:
        """The fastest timed row of a role."""
        timed = [row for row in self.rows if row.role == role and row.times]
        return min(timed, key=_median) if timed else None

    def set_ratios(self) -> None:
        """Fill every timed row's ratios to the fastest plain step, the fastest peer and the limit."""
        plain, peer = self.fastest("plain"), self.fastest("peer")
        for row in self.rows:
            if row.times:
                row.ratio_to_plain = _median(row) / _median(plain) if plain else None
                row.ratio_to_fastest_peer = _median(row) / _median(peer) if peer else None
                row.ratio_to_limit = _median(row) / self.limit_ms if self.limit_ms else None


def _median(row: Row) -> float:
    assert row.times is not None
    return row.times.median_ms


@dataclass
class OperationResult:
    """One operation: ours and PyTorch's equivalent. `ratio` is torch's time over ours; `copy_share` is the rate at
    which ours moves what it must, over the rate of a copy.
    """

    name: str
    title: str
    shape: list[int]
    dtype: str
    status: str = "ok"
    reason: str | None = None
    accuracy: Accuracy | None = None
    ours: Times | None = None
    torch: Times | None = None
    ratio: float | None = None
    copy_share: float | None = None


@dataclass
class SeriesResult:
    """One scaling series: a case for each value of its variable ("batch", "depth")."""

    name: str
    title: str
    variable: str
    values: list[int]
    points: list[CaseResult]


@dataclass
class Results:
    """A whole results file. `ceilings` are the measured rates of the device; `left_out` names what there was no time
    for.
    """

    environment: dict[str, Any]
    settings: dict[str, Any]
    cases: list[CaseResult]
    operations: list[OperationResult]
    format: int = FORMAT
    ceilings: Ceilings | None = None
    series: list[SeriesResult] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write(results: Results, path: Path) -> None:
    """Write `results` as JSON, creating folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _maybe(build: Callable[..., Any], data: dict[str, Any] | None) -> Any:
    return None if data is None else build(**data)


def _row(data: dict[str, Any]) -> Row:
    nested = {"accuracy": Accuracy, "times": Times}
    return Row(**data | {key: _maybe(build, data[key]) for key, build in nested.items()})


def _case(data: dict[str, Any]) -> CaseResult:
    return CaseResult(**data | {"rows": [_row(row) for row in data["rows"]]})


def _operation(data: dict[str, Any]) -> OperationResult:
    nested = {"accuracy": Accuracy, "ours": Times, "torch": Times}
    return OperationResult(**data | {key: _maybe(build, data[key]) for key, build in nested.items()})


def _series(data: dict[str, Any]) -> SeriesResult:
    return SeriesResult(**data | {"points": [_case(point) for point in data["points"]]})


def read(path: Path) -> Results:
    """Read a results file; ValueError when it is not one of this format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']}, this version reads {FORMAT}: measure again")
        cases = [_case(case) for case in data["cases"]]
        operations = [_operation(operation) for operation in data["operations"]]
        series = [_series(each) for each in data.get("series", [])]
        ceilings = _maybe(Ceilings, data.get("ceilings"))
        nested = {"cases": cases, "operations": operations, "series": series, "ceilings": ceilings}
        return Results(**data | nested)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a results file of benchmarks.run: {error}") from error


def newest(folders: Iterable[Path]) -> list[Path]:
    """The file with the last name (names are dates) of every folder that has one."""
    files = (sorted(folder.glob("*.json")) for folder in sorted(folders))
    return [found[-1] for found in files if found]
