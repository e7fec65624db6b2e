"""`python -m datagrad_ext reproduce`: DataGrad against its baselines and relatives on real digits, with a report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from datagrad_ext._format import format_table
from datagrad_ext.cli.arguments import count
from datagrad_ext.cli.errors import UserError, parse_device, require_extra
from datagrad_ext.cli.reproduction import pool
from datagrad_ext.cli.reproduction.findings import findings
from datagrad_ext.cli.reproduction.methods import METHODS
from datagrad_ext.cli.reproduction.page import Report, page, percent
from datagrad_ext.cli.reproduction.picture import write_png
from datagrad_ext.cli.reproduction.search import choose, draw
from datagrad_ext.cli.reproduction.settings import SETTINGS, Settings
from datagrad_ext.cli.reproduction.store import Store
from datagrad_ext.cli.reproduction.trial import FINAL, SEARCH, SEARCH_SEED, Task, Work, digits
from datagrad_ext.cli.results import describe_device, versions

SEEDS, QUICK_SEEDS = 10, 2
TRIALS, QUICK_TRIALS = 32, 2
QUICK_EPOCHS = 2
QUICK_METHODS = ("none", "weight_l2", "datagrad_l1", "multi_task_datagrad")

DESCRIPTION = """\
Compare, on MNIST digits: no penalty, weight L1 and L2, multi-task learning, DataGrad L1 and L2, multi-task with
DataGrad, Goodfellow's and Nøkland's adversarial training, and virtual adversarial training. Every method has
the same number of hyper-parameter draws, chosen on validation images; then it is trained at every seed, and its error
on test images is measured clean and under FGSM and PGD (white box).

Results go to a file of JSON lines, one a training, as soon as it is there: after Ctrl-C the same command goes on
where it was. More --seeds, --trials or --methods add to what is there.
"""

EPILOG = """\
settings:
  small        784-256-256-10, cross-entropy, all methods, values searched (default)
  nokland      Nøkland's network, loss and ε, values fixed, 150 epochs: to compare with published figures
  goodfellow   a maxout network with Goodfellow's α and ε, values fixed: to compare with published figures

examples:
  Does it run here? (half a minute)
    python -m datagrad_ext reproduce --quick
  The comparison of docs/reproduction.md:
    python -m datagrad_ext reproduce --out results/mnist.jsonl --report results/mnist.md
  Published figures, on the full MNIST:
    python -m datagrad_ext reproduce --settings nokland --data DIR --out results/nokland.jsonl
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe `reproduce` and its options."""
    parser = subparsers.add_parser(
        "reproduce",
        help="compare DataGrad with its baselines and relatives over seeds, write a report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings", choices=SETTINGS, default="small", help="what to compare (default small)")
    parser.add_argument("--methods", type=_methods, metavar="NAMES", help=f"of {', '.join(METHODS)}; with commas")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the MNIST IDX files (see train --help)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results (default results/reproduce-SETTINGS.jsonl)")
    parser.add_argument("--report", type=Path, metavar="PAGE.md", help="write the report there, and PAGE.png")
    parser.add_argument("--seeds", type=count, help=f"trainings of each method, at least 2 (default {SEEDS})")
    parser.add_argument("--trials", type=count, help=f"hyper-parameter draws of each method (default {TRIALS})")
    parser.add_argument("--epochs", type=count, help="passes over the training images (default: the settings')")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:INDEX (default cpu)")
    parser.add_argument("--jobs", type=count, help="processes, one thread each (default: the cores; on a GPU 1)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_EPOCHS} epochs, {QUICK_SEEDS} seeds, {QUICK_TRIALS} draws, {len(QUICK_METHODS)} methods, few ε",
    )


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return names


def run(args: argparse.Namespace) -> int:
    """Search, train, print a table, write the report."""
    tqdm = require_extra("tqdm", "the progress bar of reproduce")
    device = parse_device(args.device)
    _check(args)
    settings = _settings(args)
    seeds = args.seeds or (QUICK_SEEDS if args.quick else SEEDS)
    trials = args.trials or (QUICK_TRIALS if args.quick else TRIALS)
    jobs = args.jobs or (1 if device.type == "cuda" else os.cpu_count() or 1)
    out = args.out or Path("results") / f"reproduce-{settings.name}{'-quick' if args.quick else ''}.jsonl"
    store = Store(out, _comparison(settings, args.data), _environment(device))
    work = Work(settings, args.data, args.device)
    try:
        searched = _search(settings, trials)
        _do(store, work, searched, jobs, tqdm)
        final = _final(settings, seeds, [store.records[task.key] for task in searched])
        _do(store, work, final, jobs, tqdm)
    except KeyboardInterrupt:
        print(f"\nfinished trainings are in {out}; the same command goes on from there", file=sys.stderr)
        raise
    found = findings(store.records[task.key] for task in final)
    report = Report(args.command_line, settings, store.header, found, trials, "")
    print(_table(report))
    print(f"\nresults in {out}")
    if args.report:
        _write_report(replace(report, picture=args.report.with_suffix(".png").name), args.report)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.seeds == 1:
        raise UserError("--seeds 1 leaves no interval; give at least 2")
    if args.report:
        require_extra("matplotlib.figure", "the picture of --report")
        if args.report.suffix != ".md":
            raise UserError(f"--report {args.report}: a name that ends in .md expected; the picture goes beside it")


def _settings(args: argparse.Namespace) -> Settings:
    settings = SETTINGS[args.settings]
    if args.quick:
        methods = settings.methods if settings.fixed else QUICK_METHODS
        settings = replace(settings, epochs=QUICK_EPOCHS, epsilons=settings.epsilons[1::2], methods=methods)
    if args.methods:
        settings = replace(settings, methods=args.methods)
    without = [name for name in settings.methods if settings.fixed and name not in settings.fixed]
    if without:
        raise UserError(
            f"--settings {settings.name} has no values for {', '.join(without)}, only for {', '.join(settings.fixed)}"
        )
    return replace(settings, epochs=args.epochs) if args.epochs else settings


def _comparison(settings: Settings, folder: Path | None) -> dict[str, Any]:
    data = digits(folder)
    sizes = {"name": data.name, "train": len(data.train_labels), "test": len(data.test_labels)}
    return {**settings.as_json(), "data": sizes}


def _environment(device: torch.device) -> dict[str, Any]:
    known = versions()
    return {
        "versions": {name: known[name] for name in ("datagrad_ext", "torch", "numpy", "python")},
        "device": describe_device(device),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _search(settings: Settings, trials: int) -> list[Task]:
    """Draws of every method; none where values are fixed."""
    if settings.fixed:
        return []
    return [
        Task(SEARCH, name, k, SEARCH_SEED, draw(METHODS[name].searched, k))
        for k in range(trials)
        for name in settings.methods
    ]


def _final(settings: Settings, seeds: int, searched: Iterable[Mapping[str, Any]]) -> list[Task]:
    """The trainings that are reported, with the values chosen."""
    records = list(searched)
    tasks = []
    for name in settings.methods:
        trial, values = 0, settings.fixed.get(name, {})
        if not settings.fixed:
            chosen = choose([record for record in records if record["method"] == name])
            trial, values = chosen["trial"], chosen["values"]
        tasks += [Task(FINAL, name, trial, seed, values) for seed in range(seeds)]
    return sorted(tasks, key=lambda task: task.seed)


def _do(store: Store, work: Work, tasks: list[Task], jobs: int, tqdm: ModuleType) -> None:
    """The tasks that have no record yet, with a bar on standard error."""
    missing = [task for task in tasks if not store.holds(task.key, task.values)]
    if not missing:
        return
    bar = tqdm.tqdm(
        total=len(tasks), initial=len(tasks) - len(missing), desc=missing[0].stage, unit="training", smoothing=0.1
    )
    with bar:
        for record in pool.records(work, missing, jobs):
            store.add(record)
            bar.set_postfix_str(f"{METHODS[record['method']].label} {100 * record['clean']:.1f} %", refresh=False)
            bar.update()


def _table(report: Report) -> str:
    """Errors over seeds in percent, mean ± half the 95 % interval."""
    attacks = [(attack, k) for attack in ("FGSM", "PGD") for k in range(len(report.settings.epsilons))]
    header = ["error, %", "clean", *(f"{attack} {report.settings.epsilons[k]:g}" for attack, k in attacks)]
    rows = [
        [f.method.label, percent(f.curve("FGSM")[0]), *(percent(f.curve(attack)[1 + k]) for attack, k in attacks)]
        for f in report.found
    ]
    return f"\n{report.seeds} seeds, mean ± half the 95 % interval\n\n{format_table(header, rows)}"


def _write_report(report: Report, path: Path) -> None:
    data = report.header["comparison"]["data"]["name"]
    title = f"{report.settings.network}, {data}; {report.seeds} seeds, shaded: 95 % interval"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(report), encoding="utf-8")
        write_png(report.found, report.settings.epsilons, title, path.with_suffix(".png"))
    except OSError as error:
        raise UserError(f"--report {path}: cannot be written ({error})") from error
    print(f"wrote {path} and {path.with_suffix('.png')}")
