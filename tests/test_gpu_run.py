"""`make gpu`: what it would run, how it runs stages, and that the rows it picks are there."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from benchmarks import cases, contestants, gpu, gpu_dry_run, op_cases, series


def test_the_dry_run_lists_everything_and_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    for stage in gpu.stages():
        assert f"  {stage.name}, at most {stage.limit} s" in said
    assert "setup.py --quiet build_ext --inplace" in said
    assert "--tool racecheck --error-exitcode 1" in said
    assert "DATAGRAD_REQUIRE_CUDA=1" in said
    assert re.search(r"fused convolutions: .*cudnn_frontend\.h \(or in CUDNN_FRONTEND_PATH\)", said)
    for path in gpu.op_tests():
        assert re.search(rf"under compute-sanitizer: .*{re.escape(path)} [1-9]", said), path
    names = [case.name for case in cases.cases_of("cuda")] + [row.name for row in series.find("cuda", None)]
    names += [row.name for row in op_cases.operations("cuda")] + ["ours_graph", "jax", "compile_graph"]
    assert [name for name in names if name not in said] == []


def test_every_family_of_kernels_is_watched_by_both_tools() -> None:
    names = {stage.name for stage in gpu.stages()}
    families = {path.stem for path in (gpu.ROOT / "csrc" / "cuda").glob("*.cu")}
    assert {f"{tool}_{family}" for tool in ("memcheck", "racecheck") for family in families} <= names


def test_every_case_of_the_goals_is_in_the_suite() -> None:
    families = ["critic64", "critic64_r1", "vgg32", "vgg32_r1", "convbn", "resnet18"]
    families += ["mlp_paper", "mlp_narrow", "mlp_wide", "sdf"]
    wanted = {f"{family}_{precision}" for family in families for precision in ("bf16", "tf32")}
    assert wanted == {case.name for case in cases.cases_of("cuda")}
    entered = {row.name for row in contestants.CONTESTANTS if row.enters(cases.find("cuda", ["critic64_bf16"])[0])}
    peers = {"eager", "eager_graph", "fixed_conv_graph", "compile_graph", "jax"}
    assert peers | {"plain_graph", "ours", "ours_graph", "objective", "objective_graph"} <= entered


def test_a_check_that_fails_fails_the_dry_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise RuntimeError("no rows")

    monkeypatch.setattr(gpu_dry_run, "CHECKS", {"rows": broken})
    assert gpu_dry_run.report([]) == 1
    assert "rows: FAILED: RuntimeError: no rows" in capsys.readouterr().out


def _stage(name: str, round: str, code: str, limit: int = 20) -> gpu.Stage:
    return gpu.Stage(name, round, ((sys.executable, "-c", code),), limit, {"GREETING": "hello"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "gpu")
    return tmp_path / "gpu"


def test_stages_of_a_round_run_side_by_side_and_none_stops_the_others(folder: Path) -> None:
    wait_for_other = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    ready = folder / "ready"
    stages = [
        _stage("waits", "checks", wait_for_other.format(str(ready))),
        _stage("opens", "checks", f"import pathlib; pathlib.Path({str(ready)!r}).touch()"),
        _stage("fails", "checks", "raise SystemExit(3)"),
        _stage("greets", "suite", "import os; print(os.environ['GREETING'], os.environ['DATAGRAD_REQUIRE_CUDA'])"),
    ]
    assert gpu.run(stages) == {"waits": "ok", "opens": "ok", "fails": "ended with 3", "greets": "ok"}
    assert (folder / "greets.log").read_text() == "hello 1\n"


def test_a_stage_that_runs_too_long_is_ended_with_all_its_processes(folder: Path) -> None:
    folder.mkdir()
    alive = folder / "alive"
    child = f"import pathlib, time\ntime.sleep(3)\npathlib.Path({str(alive)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu.run([_stage("long", "checks", code, limit=1)]) == {"long": "ran past 1 s"}
    time.sleep(2.5)
    assert not alive.exists()


def test_without_a_build_nothing_else_begins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [_stage("build", "build", "raise SystemExit(1)"), _stage("suite", "suite", "")]
    monkeypatch.setattr(gpu, "stages", lambda: stages)
    assert gpu.run(stages) == {"build": "ended with 1"}


def test_logs_and_results_are_copied_and_failures_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "stages", lambda: [_stage("says", "checks", "print('seen'); raise SystemExit(2)")])
    assert gpu.main(["--out", str(folder / "out")]) == 1
    assert (folder / "out" / "gpu.log").read_text() == "==== says\nseen\n"
    assert "says ended with 2" in capsys.readouterr().out


def test_a_command_is_told_how_much_time_is_left(folder: Path) -> None:
    stage = gpu.Stage("tells", "suite", (("echo", gpu.LEFT),), 20)
    assert gpu.run([stage], seconds=gpu.ENDING + 85) == {"tells": "ok"}
    assert 80 <= int((folder / "tells.log").read_text()) <= 85
