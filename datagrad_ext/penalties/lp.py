"""The norm ‖J‖_p of each sample.

R = (Σ |J|^p)^(1/p),   ∂R/∂J = sign J (|J| / R)^(p−1),   0 at J = 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .norms import l1, l2, linf

_NAMED = {1.0: l1, 2.0: l2, math.inf: linf}


@dataclass(frozen=True)
class Lp:
    """(Σ |J|^p)^(1/p) for 1 ≤ p ≤ ∞; p = 1, 2, ∞ are `l1`, `l2`, `linf`. J (N, ...) to (N,).

    Raises:
        ValueError: p below 1, which is not a norm and has no finite derivative where an entry of J is 0.
    """

    p: float

    def __post_init__(self) -> None:
        if not self.p >= 1:
            raise ValueError(f"Lp: p must be from 1 to infinity, got {self.p}")

    def __call__(self, J: Tensor) -> Tensor:
        named = _NAMED.get(float(self.p))
        if named is not None:
            return named(J)
        rows = J.reshape(len(J), math.prod(J.shape[1:])).abs()
        if rows.shape[1] == 0:
            return rows.sum(1)
        largest = rows.detach().amax(1)  # divided out, so that no power leaves the range
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        total, zero = (rows / scale[:, None]).pow(self.p).sum(1), largest == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, total).pow(1 / self.p)) * scale
