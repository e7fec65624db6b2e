"""The package now against the package at another git revision, on today's cases.

The revision is checked out in a temporary worktree and installed beside a copy of this benchmark; then the
two run in turns, in processes of their own. `eager` runs in both: it shows how far the machine drifted.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import numpy

from . import tables
from .environment import ROOT
from .results import Results, read

ROUNDS = 3
CONTESTANTS = ("eager", "ours")
Samples = dict[tuple[str, str], list[float]]


def _run(command: list[str], cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")


@contextmanager
def _installed(reference: str) -> Iterator[Path]:
    """A folder holding the package as of `reference` and a copy of this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        tree, site = Path(folder, "tree"), Path(folder, "site")
        _run(["git", "worktree", "add", "--detach", str(tree), reference])
        try:
            install = [
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--target",
                str(site),
                str(tree),
            ]
            _run([sys.executable, "-m", *install])
        finally:
            _run(["git", "worktree", "remove", "--force", str(tree)])
        shutil.copytree(
            ROOT / "benchmarks", site / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__")
        )
        yield site


def _measure(root: Path, device: str, cases: list[str], repeats: int) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        options = ["--device", device, "--parts", "steps", "--repeats", str(repeats), "--out", str(out)]
        names = ["--case", *cases, "--contestant", *CONTESTANTS]
        _run([sys.executable, "-m", "benchmarks.run", *options, *names], cwd=root)
        return read(out)


def _collect(samples: Samples, results: Results) -> None:
    for case in results.cases:
        for row in case.rows:
            if row.times:
                samples.setdefault((case.name, row.contestant), []).extend(row.times.samples_ms)


def comparison(reference: str, before: Samples, now: Samples, cases: list[str]) -> str:
    """Table of medians and ratios (now / reference) of both contestants."""
    rows = []
    for case in cases:
        cells = [case]
        for contestant in reversed(CONTESTANTS):
            pair = [side.get((case, contestant)) for side in (before, now)]
            old, new = (float(numpy.median(values)) if values else None for values in pair)
            cells += [
                tables.number(old),
                tables.number(new),
                tables.number(new / old if old and new else None),
            ]
        rows.append(cells)
    titles = [
        f"ours at {reference}, ms",
        "ours now, ms",
        "ratio",
        f"eager beside {reference}, ms",
        "eager now, ms",
        "ratio",
    ]
    return tables.table(["case", *titles], rows)


def compare(reference: str, device: str, cases: list[str], repeats: int) -> str:
    """Measure both states in turns and return the table."""
    before: Samples = {}
    now: Samples = {}
    with _installed(reference) as site:
        for _ in range(ROUNDS):
            _collect(before, _measure(site, device, cases, ceil(repeats / ROUNDS)))
            _collect(now, _measure(ROOT, device, cases, ceil(repeats / ROUNDS)))
    return comparison(reference, before, now, cases)
