"""Hyper-parameters: deterministic draws, and the choice among them on validation images.

Every method gets the same number of draws. Draw k is point k of a Halton sequence in the logarithms of the ranges, so
that more draws are added to those that were there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PRIMES = (2, 3, 5, 7)
CLEAN_MARGIN = 0.005


def draw(ranges: Mapping[str, tuple[float, float]], k: int) -> dict[str, float]:
    """Draw k of every value, log-uniform in (low, high), to two significant digits."""
    return {
        name: float(f"{low * (high / low) ** _radical_inverse(k + 1, base):.2g}")
        for base, (name, (low, high)) in zip(PRIMES, ranges.items(), strict=False)
    }


def _radical_inverse(k: int, base: int) -> float:
    """The digits of k behind the point: 1, 2, 3 in base 2 are 1/2, 1/4, 3/4."""
    value, place = 0.0, 1.0 / base
    while k:
        k, digit = divmod(k, base)
        value += digit * place
        place /= base
    return value


def choose(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of one method's records: the lowest mean FGSM error among those within half a point of the lowest clean error."""
    lowest = min(record["clean"] for record in records)
    within = [record for record in records if record["clean"] <= lowest + CLEAN_MARGIN + 1e-9]
    return min(within, key=lambda record: (math.fsum(record["FGSM"]), record["trial"]))
