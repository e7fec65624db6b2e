"""What `python -m benchmarks.gpu` will do, listed; and what of it can be checked without a GPU, checked.

Each check prints a line. What this machine lacks (a GPU, compute-sanitizer, JAX) is named and is no failure; a test
file that does not collect, a command that does not parse, a table that does not resolve is one.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from build_support import toolchain
from build_support.cudnn_headers import HEADERS, find_cudnn
from build_support.options import Unavailable
from build_support.torch_headers import find_torch

from . import cases, contestants, gpu, op_cases, run, series
from .environment import ROOT
from .jax_peer import Absent, Worker


def report(chosen: Sequence[gpu.Stage]) -> int:
    """Print the list and the checks; 1 where a check fails."""
    for line in listing(chosen):
        print(line)
    failures = 0
    for title, check in CHECKS.items():
        try:
            said = check()
        except Exception as error:
            failures += 1
            said = f"FAILED: {type(error).__name__}: {error}"
        print(f"{title}: {said}")
    return 1 if failures else 0


def listing(chosen: Sequence[gpu.Stage]) -> Iterator[str]:
    """Rounds, stages, commands, environment, limits."""
    yield f"in about {gpu.SECONDS} s; every command with {_assignments(gpu.COMMON)}"
    for name in gpu.ROUNDS:
        yield f"round {name}"
        for stage in chosen:
            if stage.round == name:
                yield f"  {stage.name}, at most {stage.limit} s {_assignments(stage.environ)}".rstrip()
                yield from (f"    {_shown(command)}" for command in stage.commands)


def _assignments(environ: dict[str, str]) -> str:
    return " ".join(f"{name}={_shown([value])}" for name, value in environ.items())


def _shown(words: Sequence[str]) -> str:
    text = shlex.join(words).replace(f"{ROOT}/", "").replace(shlex.quote(gpu.LEFT), "SECONDS_LEFT")
    return text.replace(gpu.PYTHON, "python")


def _tools() -> str:
    found = {name: shutil.which(name) is not None for name in ("nvcc", "compute-sanitizer", "bash")}
    found |= {name: importlib.util.find_spec(name) is not None for name in ("pytest", "xdist", "hypothesis", "ninja")}
    found["CUDA device"] = torch.cuda.is_available()
    return ", ".join(name if there else f"no {name} here" for name, there in found.items())


def _jax() -> str:
    try:
        worker = Worker("cuda")
    except Absent as error:
        return f"absent here ({error})"
    worker.close()
    return worker.title


def _build() -> str:
    nvcc = toolchain.find_nvcc(os.environ)
    if nvcc is None:
        return "no nvcc here"
    names = toolchain.architectures(gpu.architectures(), nvcc.version)
    return f"nvcc {nvcc.version[0]}.{nvcc.version[1]}, {' '.join(toolchain.gencode_flags(names))}"


def _fused_convolutions() -> str:
    """Where their headers are found, or which is missing: then they are left out, and ATen runs."""
    names = ", ".join(f"{header.name} (or in {header.variable})" for header in HEADERS)
    nvcc = toolchain.find_nvcc(os.environ)
    if nvcc is None:
        return f"no nvcc here; looked for beside torch: {names}"
    try:
        folders = find_cudnn(os.environ, find_torch(os.environ), nvcc)
    except Unavailable as reason:
        return f"left out: {reason}; looked for beside torch: {names}"
    return f"built; {names} are there, in {len(folders)} folders"


def _sanitized() -> str:
    """How many rows of each file pytest would run."""
    files = gpu.op_tests()
    command = [sys.executable, *gpu.sanitized_rows(*files), "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}: {done.stdout[-500:]}")
    counts = {path: len(re.findall(rf"^{re.escape(path)}::", done.stdout, re.MULTILINE)) for path in files}
    if not counts or not all(counts.values()):
        raise RuntimeError(f"a kernel family without a row on CUDA: {counts}")
    return ", ".join(f"{path} {count}" for path, count in counts.items())


def _commands() -> str:
    """benchmarks.run understands what it will be told."""
    for arguments in (gpu.suite_arguments(), gpu.warm_arguments()):
        run.parser().parse_args([word.replace(gpu.LEFT, "60") for word in arguments])
    return "benchmarks.run understands its arguments"


def _cases() -> str:
    rows = [f"{case.name} ({_entrants(case)})" for case in cases.cases_of("cuda")]
    return f"{len(rows)} cases\n  " + "\n  ".join(rows)


def _entrants(case: cases.Case) -> str:
    return ", ".join(row.name for row in contestants.CONTESTANTS if row.enters(case))


def _series() -> str:
    return "; ".join(
        f"{row.name} at {row.variable} {', '.join(map(str, row.values))} ({', '.join(row.contestants)})"
        for row in series.find("cuda", None)
    )


def _operations() -> str:
    rows = op_cases.operations("cuda")
    return f"{len(rows)} rows: " + ", ".join(
        f"{row.name} {'×'.join(map(str, row.shape))} {row.precision}" for row in rows
    )


CHECKS: dict[str, Callable[[], str]] = {
    "tools": _tools,
    "JAX": _jax,
    "kernels": _build,
    "fused convolutions": _fused_convolutions,
    "rows under compute-sanitizer": _sanitized,
    "commands": _commands,
    "suite": _cases,
    "scaling series": _series,
    "operations": _operations,
}
