"""`python -m datagrad_ext` and `train`, run whole on small data: tables, files, errors, exit statuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from idx_files import write_digits

import datagrad_ext
from datagrad_ext.__main__ import COMMANDS, main
from datagrad_ext.cli import train


@pytest.fixture
def digits(tmp_path: Path) -> str:
    folder = tmp_path / "digits"
    folder.mkdir()
    write_digits(folder)
    return str(folder)


def small(digits: str, *more: str) -> list[str]:
    return ["train", "--quick", "--epochs", "1", "--batch-size", "16", "--data", digits, *more]


def status(arguments: list[str]) -> int:
    """The exit status, whether main returns it or argparse exits with it."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_train_writes_its_figures_and_a_picture(
    model: str, digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert main(small(digits, "--model", model, "--out", str(out), "--seed", "3")) == 0
    printed = capsys.readouterr()
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    _check_results(results, model)
    for network in results["networks"]:
        assert network["label"] in printed.out
        assert network["label"] in printed.err
    for column in ("clean error", "FGSM 0.3", "‖∇ₓL‖₁", "datagrad_ext s/step", "PyTorch s/step", "float64"):
        assert column in printed.out
    picture = matplotlib.image.imread(out / "error.png")
    assert min(picture.shape[:2]) > 500
    assert picture[..., :3].std() > 0.05


def _check_results(results: dict[str, Any], model: str) -> None:
    assert results["model"] == model
    assert results["command"].startswith("python -m datagrad_ext train --quick")
    assert results["versions"]["torch"] == torch.__version__
    assert results["versions"]["datagrad_ext"] == datagrad_ext.__version__
    assert results["seeds"] == {"training": 3, "split": 0}
    assert results["device"]["type"] == "cpu"
    assert results["device"]["threads"] == torch.get_num_threads()
    assert results["data"]["training_images"], results["data"]["reported_images"] == (48, 24)
    assert [network["name"] for network in results["networks"]] == ["plain", "l1", "l2_squared"]
    for network in results["networks"]:
        assert len(network["fgsm_error"]) == len(results["epsilons"]) == 6
        assert all(0 <= error <= 1 for error in [network["clean_error"], *network["fgsm_error"]])
        assert network["mean_l1"] > network["mean_l2"] > 0
        assert len(network["training"]["objective"]) == 1
        assert network["step_seconds"]["accelerated"] > 0
        assert network["step_seconds"]["pytorch"] > 0
        assert network["largest_relative_gradient_difference"]["float64"] < 1e-10
        assert network["largest_relative_gradient_difference"]["float32"] < 1e-3


def test_a_run_can_be_repeated(digits: str, tmp_path: Path) -> None:
    figures = []
    for name in ("first", "second"):
        assert main(small(digits, "--model", "conv", "--validate", "--out", str(tmp_path / name))) == 0
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert results["data"]["reported_on"] == "validation"
        figures.append([(n["clean_error"], n["fgsm_error"], n["mean_l1"]) for n in results["networks"]])
    assert figures[0] == figures[1]


ERRORS = {
    "missing folder": (["--data", "nowhere"], "--data nowhere: there is no such folder"),
    "unknown device": (["--device", "tpu"], "unknown device 'tpu': give cpu, cuda or cuda:INDEX"),
    "device index": (["--device", "cuda:first"], "unknown device 'cuda:first'"),
    "no epochs": (["--epochs", "0"], "a whole number of at least 1 expected, found 0"),
    "epochs in words": (["--epochs", "many"], "a whole number of at least 1 expected, found many"),
    "negative weight": (["--lambda-l1", "-1"], "a finite number of at least 0 expected, found -1"),
    "learning rate": (["--lr", "0"], "a finite number above 0 expected, found 0"),
    "unknown model": (["--model", "vgg"], "invalid choice: 'vgg'"),
    "out is a file": (["--out", __file__], "the folder cannot be made"),
}


@pytest.mark.parametrize(("options", "sentence"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_option_is_a_sentence(
    options: list[str], sentence: str, digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(small(digits, *options)) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, "was built without CUDA"), ("13.0", "sees no GPU")], ids=["no CUDA", "no GPU"]
)
def test_cuda_that_is_not_there_is_a_sentence(
    cuda: str | None,
    reason: str,
    digits: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert status(small(digits, "--device", "cuda")) == 2
    assert reason in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_a_sentence(
    digits: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert status(small(digits, "--device", "cuda:2")) == 2
    assert "GPUs seen: 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "options"),
    [("tqdm", []), ("matplotlib.figure", ["--out", "out"]), ("mlxtend.data", None)],
    ids=["tqdm", "matplotlib", "mlxtend"],
)
def test_a_missing_extra_is_named(
    missing: str,
    options: list[str] | None,
    digits: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert status(["train", "--quick"] if options is None else small(digits, *options)) == 2
    printed = capsys.readouterr().err
    assert f"needs {missing.partition('.')[0]}" in printed
    assert 'pip install "datagrad_ext[demo]"' in printed


def test_a_diverging_training_stops_with_a_sentence(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(small(digits, "--lr", "1e30", "--epochs", "3")) == 2
    assert "lower --lr (now 1e+30)" in capsys.readouterr().err


def test_an_interrupt_leaves_cleanly(
    digits: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "time_step", interrupt)
    assert status(small(digits)) == 130
    assert "interrupted" in capsys.readouterr().err


class _Closed(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_output_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", _Closed())
    assert main(["info"]) == 141


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"python -m datagrad_ext {name}" in printed for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([command, "--help"]) == 0
    assert f"python -m datagrad_ext {command}" in capsys.readouterr().out


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "datagrad_ext", "train", "--data", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--data nowhere: there is no such folder" in done.stderr
