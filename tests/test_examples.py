"""The examples run, in their quick form, write their pictures, and say what acceleration gained."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PICTURES = ["sdf_eikonal", "wgan_gp", "robust_digits", "forces", "jacobian"]
WITHOUT = ["distributed", "input_gradient_penalty"]


@pytest.fixture(autouse=True)
def _random_state_is_given_back() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PICTURES, *WITHOUT}


@pytest.mark.parametrize("name", PICTURES)
def test_an_example_writes_its_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, "--quick", "--out", str(picture)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert f"wrote {picture}" in printed
    assert re.search(r"^accelerated step: \d+\.\d\d times as fast as eager PyTorch on this", printed, re.MULTILINE)
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("name", WITHOUT)
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
