"""Measure: python -m benchmarks.run [--device cpu|cuda] [--case NAME ...] [--contestant NAME ...] ...

A full run writes benchmarks/results/<device>/<date>.json, a partial one (--quick, --case, --series, --contestant,
--parts) only what --out names. The file is written anew after each case. `python -m benchmarks.report` turns results
files into tables and plots.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from . import cases, ceilings, contestants, environment, series, tables, warm
from .cases import Case
from .compare import compare
from .op_cases import operations
from .results import Results, read, write
from .series import Series
from .suite import rehearse, run_case, run_operation, run_series

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("steps", "memory", "series", "operations")
REPEATS, QUICK_REPEATS, SERIES_REPEATS = 30, 7, 10


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", nargs="+", metavar="NAME", help="only these cases")
    parser.add_argument("--series", nargs="*", metavar="NAME", help="only scaling series: these, or all")
    parser.add_argument("--contestant", nargs="+", metavar="NAME", help="only these contestants")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what to measure (default: all)")
    parser.add_argument("--repeats", type=int, help=f"timed blocks of each contestant (default: {REPEATS})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--compare", metavar="REF", help="the package now over its state at a revision")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"for a look, not a figure: {QUICK_REPEATS} repeats, no memory, no torch.compile",
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing after so long: list it")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a full run of the same day and revision"
    )
    parser.add_argument(
        "--warm", type=int, metavar="N", help="measure nothing: fill the compilers' caches, in N processes"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="measure nothing: few samples of each case through the gate, on the CPU"
    )
    parser.add_argument("--list", action="store_true", help="print the names of cases, series and contestants")
    return parser


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser()
    arguments = command.parse_args(argv)
    try:
        arguments.cases = cases.find(arguments.device, arguments.case)
        arguments.rows = series.find(arguments.device, arguments.series)
        arguments.contestants = contestants.find(arguments.contestant)
    except ValueError as error:
        command.error(str(error))
    if arguments.repeats is not None and arguments.repeats < 1:
        command.error(f"--repeats is {arguments.repeats}, at least 1 is needed")
    if arguments.device == "cuda" and not (arguments.list or arguments.rehearse) and not torch.cuda.is_available():
        command.error("--device cuda: this PyTorch finds no CUDA device; run with --device cpu")
    return arguments


def _settle(arguments: argparse.Namespace) -> None:
    """Fill in what --quick and the defaults leave open, and note whether this is less than a full run."""
    chosen = arguments.case, arguments.contestant, arguments.parts, arguments.series is not None
    arguments.partial = bool(arguments.quick or any(chosen))
    arguments.repeats = arguments.repeats or (QUICK_REPEATS if arguments.quick else REPEATS)
    if arguments.series is not None:
        arguments.parts = ["series"]
    arguments.parts = arguments.parts or (["steps", "operations"] if arguments.quick else list(PARTS))
    if arguments.case:
        arguments.parts = [part for part in arguments.parts if part in ("steps", "memory")]
    if arguments.quick and not arguments.contestant:
        slow = contestants.SLOW_STARTERS
        arguments.contestants = tuple(c for c in arguments.contestants if c.name not in slow)


def _list() -> None:
    for device in ("cpu", "cuda"):
        print(f"cases on {device}")
        for case in cases.cases_of(device):
            setting = f"{case.objective.formula}; {case.precision}, {case.layout}"
            print(f"  {case.name:<20} {case.subject.title}; {setting}")
        print(f"series on {device}")
        for row in series.find(device, None):
            values = ", ".join(map(str, row.values))
            print(f"  {row.name:<20} {row.title}; {row.variable} {values}; {', '.join(row.contestants)}")
    print("contestants")
    for contestant in contestants.CONTESTANTS:
        print(f"  {contestant.name:<20} {contestant.title}")


def _rehearse(arguments: argparse.Namespace) -> int:
    """A line about each contestant on each case: its peak at full size and the gate's word; 1 where one fails."""
    failed = 0
    entrants = [entrant for entrant in arguments.contestants if entrant.name not in contestants.SLOW_STARTERS]
    for case in arguments.cases:
        for row in rehearse(case, entrants):
            peak = f"{tables.mebibytes(row.peak_bytes)} MiB"
            print(f"{case.name:<20} {row.contestant:<12} {peak:>10}  {row.reason or row.status}", flush=True)
            failed += row.status == "failed"
    return 1 if failed else 0


def measure(arguments: argparse.Namespace, results: Results, where: Path | None) -> None:
    """Add what was chosen and is not there yet to `results`, printing each table and writing the file as it grows."""
    start, device = time.monotonic(), arguments.device
    print(tables.environment_line(results.environment), flush=True)
    if {"steps", "operations"} & set(arguments.parts) and not results.ceilings:
        results.ceilings = ceilings.measure(device, arguments.cases)
        print(tables.ceilings_line(results.ceilings), flush=True)
    for name, run in _pieces(arguments, results):
        if arguments.budget is not None and time.monotonic() - start > arguments.budget:
            results.left_out.append(name)
        else:
            print("\n" + run(), flush=True)
        if where is not None:
            write(results, where)


def _pieces(arguments: argparse.Namespace, results: Results) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is to be measured, in order of importance: its name, and a call that adds it to the results and returns
    its table.
    """
    device, repeats, entrants = arguments.device, arguments.repeats, arguments.contestants
    rates, with_memory = results.ceilings, "memory" in arguments.parts

    def one_case(case: Case) -> str:
        results.cases.append(run_case(case, entrants, repeats, with_memory, rates))
        return tables.case_table(results.cases[-1])

    def one_series(row: Series) -> str:
        results.series.append(run_series(row, entrants, min(repeats, SERIES_REPEATS)))
        return tables.series_table(results.series[-1])

    def all_operations() -> str:
        results.operations[:] = [run_operation(row, device, repeats, rates) for row in operations(device)]
        return tables.operation_table(results.operations)

    known = {case.name for case in results.cases} | {row.name for row in results.series}
    for case in arguments.cases if "steps" in arguments.parts else ():
        if case.name not in known:
            yield case.name, partial(one_case, case)
    if "operations" in arguments.parts and not results.operations:
        yield "operations", all_operations
    for row in arguments.rows if "series" in arguments.parts else ():
        if row.name not in known:
            yield row.name, partial(one_series, row)


def _begun(arguments: argparse.Namespace, where: Path | None) -> Results:
    """What a full run of the same day, device and revision left in the file, or nothing yet."""
    settings = {"repeats": arguments.repeats, "parts": list(arguments.parts), "quick": arguments.quick}
    fresh = Results(environment.describe(arguments.device), settings, [], [])
    if not arguments.resume or where is None or not where.is_file():
        return fresh
    found = read(where)
    if (found.environment, found.settings) != (fresh.environment, fresh.settings):
        print(f"{where} was measured under other conditions: measuring all anew")
        return fresh
    found.left_out.clear()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    if arguments.list:
        _list()
        return 0
    _settle(arguments)
    if arguments.rehearse:
        return _rehearse(arguments)
    if arguments.compare:
        names = [case.name for case in arguments.cases]
        print(compare(arguments.compare, arguments.device, names, arguments.repeats))
        return 0
    if arguments.warm:
        print(warm.fill(arguments.device, arguments.cases, arguments.contestants, arguments.warm))
        return 0
    where = arguments.out
    if where is None and not arguments.partial:
        surroundings = environment.describe(arguments.device)
        where = RESULTS / environment.slug(surroundings) / f"{surroundings['date']}.json"
    results = _begun(arguments, where)
    measure(arguments, results, where)
    if where is not None:
        write(results, where)
        print(f"\nwrote {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
