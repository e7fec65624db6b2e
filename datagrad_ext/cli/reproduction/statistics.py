"""Means with 95 % intervals over seeds, Student's t; differences of two methods paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom.
QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by the first terms of the expansion in 1/n."""
    if degrees <= len(QUANTILES):
        return QUANTILES[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and half the width of its 95 % interval (NaN for one seed)."""

    mean: float
    half: float

    @property
    def sign(self) -> int:
        """−1 or 1 if the whole interval is on that side of 0, else 0."""
        if self.mean + self.half < 0:
            return -1
        return 1 if self.mean - self.half > 0 else 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values."""
    n = len(values)
    half = quantile(n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(statistics.fmean(values), half)


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Of a − b, value by value: both have the same seeds in the same order."""
    return estimate([x - y for x, y in zip(a, b, strict=True)])
