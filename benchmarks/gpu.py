"""Everything that needs a GPU, in one command: python -m benchmarks.gpu (or: make gpu).

Builds the kernels for the GPU that is there, runs the tests with CUDA required, compute-sanitizer on rows of the op
tests, and the benchmark suite, which writes benchmarks/results/<device>/<date>.json. Nothing is fetched. Stages of one
round run side by side; only the suite has the machine to itself. A stage that fails or runs past its limit is
reported at the end, and the others go on; without a build there is nothing more to do.

The suite begins what it has time for, and lists the rest; `--stages suite` goes on with it later.
`--dry-run` lists all of it on any machine and checks what can be checked without a GPU.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .environment import ROOT

FOLDER = ROOT / "build" / "gpu"
SECONDS, SUITE_AT_LEAST, ENDING = 470, 60, 25
LEFT = "{seconds left}"  # in a command: in how many seconds it must have begun its last piece of work
ROUNDS = ("build", "checks", "suite")
PYTHON = sys.executable
COMMON = {
    "DATAGRAD_CUDA": "1",
    "DATAGRAD_REQUIRE_NATIVE": "1",
    "DATAGRAD_REQUIRE_CUDA": "1",
    "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "cache" / "inductor"),
    "JAX_COMPILATION_CACHE_DIR": str(FOLDER / "cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
# Side by side, so one thread each. Without torch's cache of memory every tensor is an allocation of its own, so
# memcheck sees each access beyond it.
SHARED = {"OMP_NUM_THREADS": "1"}
COMPILING = {**SHARED, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
SANITIZED = {**SHARED, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SANITIZERS = ("memcheck", "racecheck")
ROWS_OF_A_TEST = 4


@dataclass(frozen=True)
class Stage:
    """Commands that run one after the other in one process group, in a round, within `limit` seconds."""

    name: str
    round: str
    commands: tuple[tuple[str, ...], ...]
    limit: int
    environ: dict[str, str] = field(default_factory=dict)


# families without kernels for CUDA
CPU_ALONE = {f"tests/test_ops_{family}.py" for family in ("convolution", "folded_step", "folding", "image_chain")}
VENDORS = "tests/test_ops_fused_convolution.py"  # its kernels are cuDNN's: only where they read and write matters


def op_tests() -> list[str]:
    """The test files of the kernel families that CUDA has."""
    return sorted({str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_ops_*.py")} - CPU_ALONE)


def sanitized_rows(*paths: str) -> tuple[str, ...]:
    """Python's arguments for the rows of op test files that compute-sanitizer sees."""
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--cuda-rows={ROWS_OF_A_TEST}", *paths)


def suite_arguments() -> tuple[str, ...]:
    """benchmarks.run's arguments for the suite."""
    return ("--device", "cuda", "--repeats", "20", "--budget", LEFT, "--resume")


def warm_arguments() -> tuple[str, ...]:
    """benchmarks.run's arguments for filling the compilers' caches."""
    return ("--device", "cuda", "--warm", "7")


def stages() -> list[Stage]:
    """The table."""
    build = (PYTHON, "setup.py", "--quiet", "build_ext", "--inplace"), (PYTHON, "-m", "datagrad_ext", "info")
    tests = (PYTHON, "-m", "pytest", "-q", "--numprocesses", "6")
    return [
        Stage("build", "build", build, 180, architectures()),
        Stage("tests", "checks", (tests,), 200, SHARED),
        Stage("warm", "checks", ((PYTHON, "-m", "benchmarks.run", *warm_arguments()),), 200, COMPILING),
        *_sanitizer_stages(),
        Stage("suite", "suite", ((PYTHON, "-m", "benchmarks.run", *suite_arguments()),), 500),
    ]


def _sanitizer_stages() -> Iterator[Stage]:
    for tool in SANITIZERS:
        for path in op_tests():
            if path == VENDORS and tool != "memcheck":
                continue
            name = f"{tool}_{Path(path).stem.removeprefix('test_ops_')}"
            watched = os.environ.get("SANITIZER", "compute-sanitizer"), "--tool", tool, "--error-exitcode", "1"
            yield Stage(name, "checks", ((*watched, PYTHON, *sanitized_rows(path)),), 200, SANITIZED)


def architectures() -> dict[str, str]:
    """The GPU's own architecture, which builds in a fraction of the time; the default list where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}


class Running:
    """A stage that has begun; its output goes to FOLDER/<name>.log."""

    def __init__(self, stage: Stage, seconds_left: float) -> None:
        self.stage, self.log = stage, FOLDER / f"{stage.name}.log"
        left = str(max(SUITE_AT_LEAST, round(seconds_left)))
        commands = [shlex.join(word.replace(LEFT, left) for word in command) for command in stage.commands]
        self._start = time.monotonic()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", " && ".join(commands)],
                cwd=ROOT,
                env=os.environ | COMMON | stage.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def outcome(self) -> str:
        """Wait for the end: "ok", or what went wrong."""
        remaining = self.stage.limit - (time.monotonic() - self._start)
        try:
            status = self._process.wait(max(0, remaining))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return f"ran past {self.stage.limit} s"
        return "ok" if status == 0 else f"ended with {status}"


def run(chosen: Sequence[Stage], seconds: float = SECONDS) -> dict[str, str]:
    """The outcome of every stage; the suite gets what is left of `seconds`."""
    start = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, str] = {}
    for name in ROUNDS:
        if outcomes.get("build", "ok") != "ok":
            break
        left = seconds - ENDING - (time.monotonic() - start)
        running = [Running(stage, left) for stage in chosen if stage.round == name]
        for each in running:
            outcomes[each.stage.name] = each.outcome()
            print(f"{time.monotonic() - start:5.0f} s  {each.stage.name}: {outcomes[each.stage.name]}", flush=True)
            if outcomes[each.stage.name] != "ok" or name == "suite":
                print(_tail(each.log, 400 if name == "suite" else 40), flush=True)
    return outcomes


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def collect(out: Path) -> None:
    """Copy the results of this tree and one file with all logs into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for path in ROOT.glob("benchmarks/results/*/*.json"):
        if path.stat().st_mtime > (FOLDER / "started").stat().st_mtime:
            shutil.copy(path, out / f"{path.parent.name}.{path.name}")
    logs = sorted(FOLDER.glob("*.log"))
    (out / "gpu.log").write_text("\n".join(f"==== {log.stem}\n{log.read_text(errors='replace')}" for log in logs))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = [stage.name for stage in stages()]
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and check what can be checked")
    parser.add_argument("--stages", nargs="+", choices=names, metavar="STAGE", help=f"only these: {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="copy results and logs there at the end")
    arguments = parser.parse_args(argv)
    chosen = [stage for stage in stages() if stage.name in (arguments.stages or names)]
    if arguments.dry_run:
        from . import gpu_dry_run

        return gpu_dry_run.report(chosen)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "started").touch()
    outcomes = run(chosen, arguments.seconds)
    missing = [stage.name for stage in chosen if stage.name not in outcomes]
    wrong = [f"{name} {outcome}" for name, outcome in outcomes.items() if outcome != "ok"]
    if arguments.out:
        collect(arguments.out)
    wrong += [f"{name} did not begin" for name in missing]
    print("; ".join(wrong) if wrong else "all stages ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
