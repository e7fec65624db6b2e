"""The ordering claims of the paper's abstract (arXiv 1601.07213), each as comparisons of two methods paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datagrad_ext.cli.reproduction.findings import Finding
from datagrad_ext.cli.reproduction.statistics import Estimate, difference

BASELINES = ("none", "weight_l1", "weight_l2", "multi_task")
DATAGRAD = ("datagrad_l1", "datagrad_l2")
COMBINED = "multi_task_datagrad"
ATTACKED = ("FGSM", "PGD")


@dataclass(frozen=True)
class Comparison:
    """Error of `better` minus error of `worse`, as the claim orders them: the claim says below 0."""

    better: Finding
    worse: Finding
    measure: str
    gap: Estimate


@dataclass(frozen=True)
class Claim:
    """A claim and what speaks for and against it; a comparison counts where its whole 95 % interval is on one side."""

    text: str
    comparisons: Sequence[Comparison]

    def count(self, sign: int) -> int:
        """Comparisons for it (−1), undecided (0), against it (1)."""
        return sum(comparison.gap.sign == sign for comparison in self.comparisons)

    @property
    def verdict(self) -> str:
        """In words."""
        n, held, against = len(self.comparisons), self.count(-1), self.count(1)
        if not n:
            return "not tested: methods are missing from this run"
        counts = f"{held} of {n} comparisons for it, {against} against it, {self.count(0)} undecided"
        if held == n:
            return f"**held** ({counts})"
        return f"**{'held in part' if held else 'did not hold'}** ({counts})"


def claims(found: Sequence[Finding]) -> list[Claim]:
    """The three claims on what was found."""
    of = {finding.key: finding for finding in found}

    def compare(better: Sequence[str], worse: Sequence[str], measures: Sequence[str]) -> list[Comparison]:
        return [
            Comparison(of[a], of[b], measure, difference(of[a].shares(measure), of[b].shares(measure)))
            for measure in measures
            for a in better
            for b in worse
            if a in of and b in of
        ]

    names = "no penalty, weight L1, weight L2 and multi-task"
    return [
        Claim(f"On clean images DataGrad L1 and L2 beat {names}.", compare(DATAGRAD, BASELINES, ["clean"])),
        Claim(f"Under attack DataGrad L1 and L2 beat {names}.", compare(DATAGRAD, BASELINES, ATTACKED)),
        Claim(
            "Multi-task + DataGrad is the most robust: under attack it beats DataGrad L1 and L2 as well as these.",
            compare([COMBINED], [*DATAGRAD, *BASELINES], ATTACKED),
        ),
    ]
