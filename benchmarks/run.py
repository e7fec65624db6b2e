"""Measure: python -m benchmarks.run [--device cpu|cuda] [--case NAME ...] [--contestant NAME ...] ...

A full run writes benchmarks/results/<device>/<date>.json, a partial one (--quick, --case, --contestant,
--parts) only what --out names. `python -m benchmarks.report` turns results files into tables and plots.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import cases, contestants, environment, tables
from .compare import compare
from .op_cases import operations
from .results import Results, write
from .suite import run_case, run_operation

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("steps", "memory", "operations")
REPEATS, QUICK_REPEATS = 30, 7


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", nargs="+", metavar="NAME", help="only these cases")
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
    parser.add_argument("--list", action="store_true", help="print the names of cases and contestants")
    arguments = parser.parse_args(argv)
    try:
        arguments.cases = cases.find(arguments.device, arguments.case)
        arguments.contestants = contestants.find(arguments.contestant)
    except ValueError as error:
        parser.error(str(error))
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats is {arguments.repeats}, at least 1 is needed")
    if arguments.device == "cuda" and not arguments.list and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch finds no CUDA device; run with --device cpu")
    return arguments


def _settle(arguments: argparse.Namespace) -> None:
    """Fill in what --quick and the defaults leave open, and note whether this is less than a full run."""
    arguments.partial = bool(arguments.quick or arguments.case or arguments.contestant or arguments.parts)
    arguments.repeats = arguments.repeats or (QUICK_REPEATS if arguments.quick else REPEATS)
    arguments.parts = arguments.parts or (["steps", "operations"] if arguments.quick else list(PARTS))
    if arguments.case:
        arguments.parts = [part for part in arguments.parts if part != "operations"]
    if arguments.quick and not arguments.contestant:
        arguments.contestants = tuple(c for c in arguments.contestants if not c.name.startswith("compile"))


def _list() -> None:
    for device in ("cpu", "cuda"):
        print(f"cases on {device}")
        for case in cases.cases_of(device):
            setting = f"{case.objective.formula}; {case.precision}, {case.layout}"
            print(f"  {case.name:<20} {case.subject.title}; {setting}")
    print("contestants")
    for contestant in contestants.CONTESTANTS:
        print(f"  {contestant.name:<20} {contestant.title}")


def measure(arguments: argparse.Namespace) -> Results:
    """Run the chosen cases and operations, printing each table as it is ready."""
    results = Results(
        environment.describe(arguments.device),
        {"repeats": arguments.repeats, "parts": list(arguments.parts), "quick": arguments.quick},
        [],
        [],
    )
    print(tables.environment_line(results.environment), flush=True)
    for case in arguments.cases if "steps" in arguments.parts else ():
        result = run_case(case, arguments.contestants, arguments.repeats, "memory" in arguments.parts)
        results.cases.append(result)
        print("\n" + tables.case_table(result), flush=True)
    for operation in operations(arguments.device) if "operations" in arguments.parts else ():
        results.operations.append(run_operation(operation, arguments.device, arguments.repeats))
    if results.operations:
        print("\n" + tables.operation_table(results.operations))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    if arguments.list:
        _list()
        return 0
    _settle(arguments)
    if arguments.compare:
        names = [case.name for case in arguments.cases]
        print(compare(arguments.compare, arguments.device, names, arguments.repeats))
        return 0
    results = measure(arguments)
    where = arguments.out
    if where is None and not arguments.partial:
        where = RESULTS / environment.slug(results.environment) / f"{results.environment['date']}.json"
    if where is not None:
        write(results, where)
        print(f"\nwrote {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
