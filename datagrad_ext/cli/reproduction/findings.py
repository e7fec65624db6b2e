"""From records to what was found: each method's chosen hyper-parameters and its figures over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datagrad_ext.cli.reproduction.methods import METHODS, SYMBOLS, Method
from datagrad_ext.cli.reproduction.statistics import Estimate, estimate

Record = Mapping[str, Any]
MEASURES = ("clean", "FGSM", "PGD")


@dataclass(frozen=True)
class Finding:
    """One method: its final records, in the order of their seeds."""

    key: str
    records: Sequence[Record]

    @property
    def method(self) -> Method:
        """The row of METHODS."""
        return METHODS[self.key]

    @property
    def values(self) -> str:
        """The hyper-parameters that were used, such as "rate 0.001, λ 0.02"."""
        return ", ".join(f"{SYMBOLS[name]} {value:g}" for name, value in self.records[0]["values"].items())

    def shares(self, measure: str) -> list[float]:
        """The error at each seed; under an attack, its mean over all ε."""
        return [_overall(record[measure]) for record in self.records]

    def curve(self, attack: str) -> list[Estimate]:
        """The error over seeds, clean and then at each ε."""
        rows = zip(*([record["clean"], *record[attack]] for record in self.records), strict=True)
        return [estimate(row) for row in rows]

    @property
    def masked(self) -> int:
        """Trainings whose attacks gave a sign of masked gradients."""
        return sum(record["masked"] for record in self.records)


def _overall(figure: float | Sequence[float]) -> float:
    return figure if isinstance(figure, float) else math.fsum(figure) / len(figure)


def findings(records: Iterable[Record]) -> list[Finding]:
    """A finding for each method, in the order of METHODS, on the seeds that all of them have."""
    of: dict[str, dict[int, Record]] = {}
    for record in records:
        of.setdefault(record["method"], {})[record["seed"]] = record
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in of.values()))) if of else []
    return [Finding(key, [of[key][seed] for seed in seeds]) for key in METHODS if key in of]
