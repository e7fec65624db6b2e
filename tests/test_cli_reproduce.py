"""`reproduce`: objectives, search, statistics, claims, and the command on small data: files, resuming, errors."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from idx_files import write_digits

import datagrad_ext
from datagrad_ext.__main__ import main
from datagrad_ext.cli.reproduction import methods, trial
from datagrad_ext.cli.reproduction.claims import claims
from datagrad_ext.cli.reproduction.findings import findings
from datagrad_ext.cli.reproduction.methods import CUES, METHODS
from datagrad_ext.cli.reproduction.pool import records
from datagrad_ext.cli.reproduction.search import choose, draw
from datagrad_ext.cli.reproduction.settings import LOSSES, NETWORKS, SETTINGS
from datagrad_ext.cli.reproduction.statistics import difference, estimate, quantile

DOCS = Path(__file__).resolve().parent.parent / "docs"
VALUES = {"weight": 0.1, "cue": 0.5, "epsilon": 0.1, "alpha": 0.3}


@pytest.fixture(autouse=True)
def _random_state_is_given_back() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def digits(tmp_path: Path) -> str:
    folder = tmp_path / "digits"
    folder.mkdir()
    write_digits(folder)
    return str(folder)


def batch(outputs: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layers = (torch.nn.Flatten(), torch.nn.Linear(16, 9), torch.nn.ReLU(), torch.nn.Linear(9, outputs))
    return torch.nn.Sequential(*layers).double(), torch.rand(6, 1, 4, 4).double(), torch.tensor([0, 1, 4, 5, 8, 9])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_same_on_an_accelerated_network(name: str, loss: str) -> None:
    plain, x, t = batch(10 + CUES * METHODS[name].cues)
    gradients = []
    for model in (plain, datagrad_ext.accelerate(copy.deepcopy(plain))):
        torch.manual_seed(1)
        total = METHODS[name].make(VALUES, LOSSES[loss])(model, x, t).total
        gradients.append(torch.autograd.grad(total, list(model.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_multi_task_with_datagrad_is_its_formula() -> None:
    model, x, t = batch(12)
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    digit = F.cross_entropy(y[:, :10], t, reduction="none")
    wanted = torch.tensor([[0, 0], [1, 0], [0, 0], [1, 1], [0, 1], [1, 1]]).double()
    cue = F.binary_cross_entropy_with_logits(y[:, 10:], wanted, reduction="none").mean(1)
    J, J_cue = (torch.autograd.grad(each.sum(), leaf, create_graph=True)[0] for each in (digit, cue))
    sizes = [each.flatten(1).abs().sum(1).mean() for each in (J, J_cue)]
    expected = digit.mean() + 0.1 * sizes[0] + 0.5 * (cue.mean() + 0.1 * sizes[1])
    for name, total in (
        ("multi_task_datagrad", expected),
        ("multi_task", digit.mean() + 0.5 * cue.mean()),
        ("datagrad_l1", None),
    ):
        if total is None:
            total = F.cross_entropy(y, t)
            (J,) = torch.autograd.grad(6 * total, leaf, create_graph=True)
            total = total + 0.1 * J.flatten(1).abs().sum(1).mean()
        found = METHODS[name].make(VALUES, LOSSES["cross-entropy"])(model, x, t).total
        torch.testing.assert_close(found, total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_name_what_there_is(name: str) -> None:
    settings = SETTINGS[name]
    for cues in (0, CUES):
        assert NETWORKS[settings.network](10 + cues)(torch.rand(3, 1, 28, 28)).shape == (3, 10 + cues)
    for key in settings.methods:
        if settings.fixed:
            assert settings.fixed[key].keys() >= METHODS[key].searched.keys()
    for published in settings.published:
        assert published.method in settings.methods
        assert published.epsilon is None or published.epsilon in settings.epsilons
        assert 0 < published.error < 1


@pytest.mark.parametrize("name", METHODS)
def test_draws_cover_the_ranges(name: str) -> None:
    ranges = METHODS[name].searched
    drawn = [draw(ranges, k) for k in range(8)]
    for key, (low, high) in ranges.items():
        values = [values[key] for values in drawn]
        assert len(set(values)) == 8
        assert all(low <= value <= high for value in values)
        assert min(values) < low * (high / low) ** 0.25
        assert max(values) > low * (high / low) ** 0.75


CHOICES = {
    "the robust one": ([(0.10, 0.5), (0.104, 0.3)], 1),
    "not at the price of clean images": ([(0.10, 0.5), (0.106, 0.1)], 0),
    "on the margin": ([(0.10, 0.5), (0.105, 0.1)], 1),
    "the first of equals": ([(0.10, 0.5), (0.10, 0.5)], 0),
}


@pytest.mark.parametrize(("errors", "expected"), CHOICES.values(), ids=CHOICES)
def test_the_choice_on_validation_images(errors: list[tuple[float, float]], expected: int) -> None:
    found = [{"trial": k, "clean": clean, "FGSM": [attacked, attacked]} for k, (clean, attacked) in enumerate(errors)]
    assert choose(found)["trial"] == expected


@pytest.mark.parametrize("degrees", [1, 2, 4, 30, 31, 60, 1000])
def test_quantiles_of_t(degrees: int) -> None:
    assert quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=3e-4)


def test_intervals() -> None:
    values = [0.1, 0.4, 0.2, 0.3]
    low, high = scipy.stats.t.interval(0.95, 3, loc=0.25, scale=scipy.stats.sem(values))
    found = estimate(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), rel=1e-3)
    assert difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).sign == -1
    assert difference([0.2, 0.3, 0.4], [0.1, 0.2, 0.3]).sign == 1
    assert difference([0.1, 0.4], [0.2, 0.3]).sign == 0
    assert math.isnan(estimate([0.1]).half)


def record(method: str, seed: int, clean: float, attacked: float) -> dict[str, Any]:
    noise = 0.001 * seed
    figures = {"clean": clean + noise, "FGSM": [attacked + noise], "PGD": [attacked + noise]}
    return {"method": method, "seed": seed, "values": {}, "seconds": 1.0, "masked": False, **figures}


def test_claims_are_counted() -> None:
    levels = {"none": (0.1, 0.9), "multi_task": (0.05, 0.8), "datagrad_l1": (0.08, 0.5)}
    levels["multi_task_datagrad"] = (0.0, 0.6)
    made = claims(findings(record(name, seed, *both) for seed in range(3) for name, both in levels.items()))
    assert [(claim.count(-1), claim.count(0), claim.count(1)) for claim in made] == [(1, 0, 1), (4, 0, 0), (4, 0, 2)]
    assert ["**held in part**" in made[0].verdict, "**held**" in made[1].verdict] == [True, True]
    assert "not tested" in claims(findings([record("none", 0, 0.1, 0.2)]))[0].verdict


def small(digits: str, out: Path, *more: str) -> list[str]:
    options = ["--quick", "--epochs", "1", "--jobs", "1", "--data", digits, "--out", str(out)]
    return ["reproduce", *options, *more]


def figures(path: Path) -> dict[str, Any]:
    """The records of a results file by key, without their seconds."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {line["key"]: {name: value for name, value in line.items() if name != "seconds"} for line in found}


def test_the_command_writes_results_and_a_report(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "new" / "runs.jsonl", tmp_path / "docs" / "page.md"
    assert main(small(digits, out, "--report", str(report))) == 0
    printed = capsys.readouterr().out
    found = figures(out)
    assert len(found) == 4 * (2 + 2)
    for line in found.values():
        assert 0 <= line["clean"] <= 1
        assert len(line["FGSM"]) == 3
        assert line["finite"]
        assert ("PGD" in line) == (line["stage"] == "final")
    text = report.read_text(encoding="utf-8")
    for label in ("no penalty", "weight L2", "DataGrad L1", "multi-task + DataGrad"):
        assert label in printed
        assert f"| {label} |" in text
    sentences = ["tables, networks and settings were not", "2 seeds", torch.__version__, "](page.png)", "Here: **"]
    for sentence in [*sentences, "Chosen at an end of what was drawn: "]:
        assert sentence in text
    assert matplotlib.image.imread(report.with_suffix(".png"))[..., :3].std() > 0.05


@pytest.mark.parametrize("name", ["nokland", "goodfellow"])
def test_published_settings_compare_with_published_figures(name: str, digits: str, tmp_path: Path) -> None:
    out, report = tmp_path / "runs.jsonl", tmp_path / "page.md"
    assert main(small(digits, out, "--settings", name, "--report", str(report))) == 0
    assert len(figures(out)) == 4
    assert "published, %" in report.read_text(encoding="utf-8")


def test_the_page_in_docs_is_that_of_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["reproduce", "--out", "docs/reproduction.jsonl", "--report", "docs/reproduction.md"]
    (tmp_path / "docs").mkdir()
    shutil.copy(DOCS / "reproduction.jsonl", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert Path(command[-1]).read_text(encoding="utf-8") == (DOCS / "reproduction.md").read_text(encoding="utf-8")
    assert Path(command[2]).read_bytes() == (DOCS / "reproduction.jsonl").read_bytes()


def test_an_interrupted_comparison_goes_on(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After Ctrl-C and a line cut short, the same command trains what is missing alone, to the same figures."""
    options = ("--methods", "none,datagrad_l1")
    assert main(small(digits, tmp_path / "whole.jsonl", *options)) == 0
    train, trained = trial.run, list[str]()

    def counted(task: trial.Task, *arguments: Any) -> dict[str, Any]:
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(task.key)
        return train(task, *arguments)

    monkeypatch.setattr(trial, "run", counted)
    out, stop_at = tmp_path / "runs.jsonl", 5
    assert main(small(digits, out, *options)) == 130
    assert f"finished trainings are in {out}" in capsys.readouterr().err
    with out.open("a") as file:
        file.write('{"key": "final/no')
    stop_at = -1
    assert main(small(digits, out, *options)) == 0
    assert len(trained) == len(set(trained)) == 8
    assert figures(out) == figures(tmp_path / "whole.jsonl")
    assert main(small(digits, out, *options, "--seeds", "3")) == 0
    assert trained[8:] == [key for key in figures(out) if key.endswith("/2")]


def test_processes_find_the_same(digits: str, tmp_path: Path) -> None:
    for jobs in ("1", "2"):
        out = tmp_path / f"{jobs}.jsonl"
        assert main(small(digits, out, "--settings", "nokland", "--jobs", jobs)) == 0
    assert figures(tmp_path / "1.jsonl") == figures(tmp_path / "2.jsonl")


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    assert list(records(lambda _: torch.get_num_threads(), [1, 2, 3], jobs=1)) == [1, 1, 1]
    assert torch.get_num_threads() == before


def test_a_training_that_diverges_is_a_record(digits: str) -> None:
    task = trial.Task("final", "none", 0, 0, {"learning_rate": 1e30})
    found = trial.Work(SETTINGS["small"], Path(digits), "cpu")(task)
    assert not found["finite"]
    assert found["clean"] > 0.5


ERRORS = {
    "unknown method": (["--methods", "none,mixup"], "no method mixup; there are none, weight_l1"),
    "one seed": (["--seeds", "1"], "--seeds 1 leaves no interval"),
    "no trials": (["--trials", "0"], "a whole number of at least 1 expected, found 0"),
    "report": (["--report", "page.html"], "a name that ends in .md expected"),
    "folder": (["--data", "nowhere"], "--data nowhere: there is no such folder"),
    "fixed": (["--settings", "nokland", "--methods", "none,weight_l1"], "has no values for weight_l1, only for none"),
    "another file": (["--out", __file__], "not a results file of this command"),
    "out is a folder": (["--out", "."], "cannot be read"),
}


@pytest.mark.parametrize(("options", "sentence"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_option_is_a_sentence(
    options: list[str], sentence: str, digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(small(digits, tmp_path / "runs.jsonl", *options)))
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_file_of_other_settings_is_refused(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.jsonl"
    options = ("--methods", "none", "--trials", "1")
    assert main(small(digits, out, *options)) == 0
    before = out.read_bytes()
    assert main([*small(digits, out, *options), "--epochs", "3"]) == 2
    assert "holds another comparison (epochs 1, now 3)" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_records_of_other_values_are_refused(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over other ranges must not go on in the file of the old ones."""
    out, options = tmp_path / "runs.jsonl", ("--methods", "none", "--trials", "1")
    assert main(small(digits, out, *options)) == 0
    monkeypatch.setattr(methods, "LEARNING_RATE", (1e-3, 1.0))
    assert main(small(digits, out, *options)) == 2
    assert "holds search/none/0/1000 with other values ({'learning_rate': 0.0032}, now {'learning_rate': 0.032})" in (
        capsys.readouterr().err
    )


FILES = {
    "not ours": (b"notes", "not a results file of this command"),
    "other JSON": (b"[1]\n", "not a results file of this command"),
    "broken": (b'{"comparison": {}, "environment": {}}\n{"key"\n', "a line is not JSON"),
}


@pytest.mark.parametrize(("content", "sentence"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_resumed_is_left_alone(
    content: bytes, sentence: str, digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.jsonl"
    out.write_bytes(content)
    assert main(small(digits, out)) == 2
    assert sentence in capsys.readouterr().err
    assert out.read_bytes() == content


def test_a_header_that_was_cut_short_is_written_again(digits: str, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    out.write_bytes(b'{"comparison": {"name"')
    assert main(small(digits, out, "--methods", "none", "--trials", "1")) == 0
    assert len(figures(out)) == 3
