"""The report of a comparison, in Markdown, from its records alone: nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datagrad_ext.cli.reproduction.claims import claims
from datagrad_ext.cli.reproduction.findings import Finding
from datagrad_ext.cli.reproduction.methods import METHODS, SYMBOLS
from datagrad_ext.cli.reproduction.search import CLEAN_MARGIN, draw
from datagrad_ext.cli.reproduction.settings import SETTINGS, Published, Settings
from datagrad_ext.cli.reproduction.statistics import Estimate, estimate

BAR = "&#124;"  # a | inside a cell


@dataclass(frozen=True)
class Report:
    """What a page is made of."""

    command: str
    settings: Settings
    header: Mapping[str, Any]
    found: Sequence[Finding]
    trials: int
    picture: str

    @property
    def seeds(self) -> int:
        """Trainings of each method."""
        return len(self.found[0].records)


def page(report: Report) -> str:
    """The whole page."""
    parts = [
        _introduction(report),
        _claims(report),
        _errors(report),
        _how(report),
        _published(report),
        _elsewhere(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def percent(share: Estimate) -> str:
    """Mean and half width, in percent."""
    return f"{100 * share.mean:.1f} ± {100 * share.half:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column flush left."""
    lines = [header, [":--", *("--:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |" for line in lines)


def _introduction(report: Report) -> str:
    data, environment = report.header["comparison"]["data"], report.header["environment"]
    versions, device = environment["versions"], environment["device"]
    return f"""# Reproduction

DataGrad (Ororbia, Kifer, Giles, arXiv 1601.07213) against what its abstract compares it with, and against its
relatives. This page is written by

    {report.command}

from the results file named there. **What it is not:** the paper's own tables, networks and settings were not
available, so that only the ordering that its abstract claims can be tested, on another network and on {data["name"]}.
No figure here is the paper's.

* Data: {data["name"]}: {data["train"]:,} to train, {data["test"]:,} to test. Pixels are in [0, 1].
* {report.settings.network}, {report.settings.loss}, {report.settings.epochs} epochs in batches of \
{report.settings.batch_size}, Adam{", its rate falling to 0 along a cosine" if report.settings.cosine else ""}.
* {report.seeds} seeds: mean ± half the 95 % interval (Student's t), in percent of the test images.
* {device["name"]}, one thread a training; torch {versions["torch"]}, datagrad_ext {versions["datagrad_ext"]}, \
Python {versions["python"]}; {environment["date"]}.

![error against attack size]({report.picture})"""


def _claims(report: Report) -> str:
    made = claims(report.found)
    lines = [f"{number}. {claim.text} {_sentence(claim.verdict)}" for number, claim in enumerate(made, 1)]
    rows = [
        [c.better.method.label, c.worse.method.label, c.measure, percent(c.gap), _word(c.gap)]
        for claim in made
        for c in claim.comparisons
    ]
    header = ["A", "B", "images", "error of A − error of B, points", ""]
    if not rows:
        return "## The claims of the abstract\n\n" + "\n".join(lines)
    return f"""## The claims of the abstract

{chr(10).join(lines)}

{_ranking(report)}

{_reading(report)}

{table(header, rows)}"""


def _sentence(text: str) -> str:
    return f"Here: {text}."


def _ranking(report: Report) -> str:
    order = sorted((estimate(f.shares("PGD")).mean, f.method.label) for f in report.found)
    listed = ", ".join(f"{label} {100 * mean:.1f}" for mean, label in order)
    return f"All methods by their error under PGD, the mean over all ε in percent: {listed}."


def _reading(report: Report) -> str:
    test = report.header["comparison"]["data"]["test"]
    return (
        "A comparison counts where its whole interval is on one side of 0; there is no correction for their number. "
        "Differences are paired by seed; those under attack are means over all ε. The intervals are over seeds "
        f"(weights and batches), on the same {test:,} test images: another test set moves all methods together."
    )


def _word(gap: Estimate) -> str:
    return {-1: "A is better", 0: "undecided", 1: "B is better"}[gap.sign]


def _errors(report: Report) -> str:
    parts = ["## Errors"]
    for attack in ("FGSM", "PGD"):
        header = ["method", "clean", *(f"{attack} {epsilon:g}" for epsilon in report.settings.epsilons)]
        rows = [[f.method.label, *map(percent, f.curve(attack))] for f in report.found]
        parts.append(table(header, rows))
    parts.append("PGD: 10 steps of 2.5 ε/10 from one random start in the ball. Both attacks are in white box.")
    masked = [f"{f.method.label} ({f.masked} of {report.seeds})" for f in report.found if f.masked]
    if not masked:
        parts.append("No sign of masked gradients in any training.")
    else:
        parts.append(
            "Signs of masked gradients (a data gradient that is exactly 0 at some image, or FGSM stronger than PGD) in "
            f"trainings of: {', '.join(masked)}. Where the loss underflows to 0 in float32, as in confident networks, "
            "a gradient attack cannot move the image: such errors are too low."
        )
    return "\n\n".join(parts)


def _how(report: Report) -> str:
    rows = [[f.method.label, f"`{f.key}`", f.method.formula, f.values] for f in report.found]
    header = ["method", "name", "objective", "values"]
    return f"""## Objectives and how their values were found

{table(header, rows)}

L is the mean loss, J each image's own data gradient; penalties are means over images, by exact double backprop. The
cues of multi-task learning are a choice of this package, since the paper's could not be read: is the digit odd, is it
at least 5, two more outputs on the same trunk (L_cues, the mean of two binary cross-entropies). The abstract does not
say whether its L2 is squared; here it is, and multi-task + DataGrad takes L1.

{_search(report)}"""


def _search(report: Report) -> str:
    if report.settings.fixed:
        return f"The settings `{report.settings.name}` fix all values; nothing was searched. {report.settings.note}"
    ranges = [f"* {finding.method.label}: {_ranges(finding.method.searched)}" for finding in report.found]
    return f"""Every method had the same budget: {report.trials} draws of its values and of the learning rate
(Halton sequence, log-uniform), one training each on four fifths of the training images, with as many epochs. On the
other fifth, the lowest FGSM error, as a mean over all ε, was chosen among those within {100 * CLEAN_MARGIN:g} point of
the lowest clean error. Test images had no part in it. The budget is in epochs; a penalty makes a step dearer. Ranges:

{chr(10).join(ranges)}

{_at_an_end(report)}"""


def _at_an_end(report: Report) -> str:
    """Which methods would perhaps have liked a larger or smaller value than was drawn."""
    found: dict[str, list[str]] = {}
    for finding in report.found:
        drawn = [draw(finding.method.searched, k) for k in range(report.trials)]
        for name, value in finding.records[0]["values"].items():
            values = [each[name] for each in drawn]
            if value in (min(values), max(values)):
                end = "highest" if value == max(values) else "lowest"
                found.setdefault(f"the {end} {SYMBOLS[name]}", []).append(finding.method.label)
    if not found:
        return "No method chose a value at an end of what was drawn for it."
    listed = "; ".join(f"{end} by {', '.join(labels)}" for end, labels in found.items())
    return (
        f"Chosen at an end of what was drawn: {listed}. So wider ranges, or more than {report.settings.epochs} epochs, "
        "may change figures and order."
    )


def _ranges(searched: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{SYMBOLS[name]} {low:g} to {high:g}" for name, (low, high) in searched.items())


def _published(report: Report) -> str:
    if not report.settings.published:
        return ""
    of = {finding.key: finding for finding in report.found}
    rows = [
        [METHODS[p.method].label, _images(p), f"{100 * p.error:g}", p.source, percent(_here(of[p.method], p, report))]
        for p in report.settings.published
        if p.method in of
    ]
    return f"""## Published figures

For the full MNIST; a comparison is fair with `--data` of it alone.

{table(["method", "images", "published, %", "source", "here, %"], rows)}"""


def _images(published: Published) -> str:
    return "clean" if published.epsilon is None else f"FGSM {published.epsilon:g}"


def _here(finding: Finding, published: Published, report: Report) -> Estimate:
    if published.epsilon is None:
        return finding.curve("FGSM")[0]
    return finding.curve("FGSM")[1 + report.settings.epsilons.index(published.epsilon)]


def _elsewhere(report: Report) -> str:
    others = [s for s in SETTINGS.values() if s.published and s.name != report.settings.name]
    return f"""## With the full MNIST

`--data DIR` takes the four IDX files of MNIST. Settings by name, for figures that others published of the full data:

{chr(10).join(map(_named, others))}"""


def _named(settings: Settings) -> str:
    figures = "; ".join(
        f"{METHODS[p.method].label}, {_images(p)}: {100 * p.error:g} % ({p.source})" for p in settings.published
    )
    return (
        f"* `--settings {settings.name}`: {settings.network}, {settings.loss}, {settings.epochs} epochs of batches of "
        f"{settings.batch_size}; to compare with {figures}. {settings.note}".rstrip()
    )
