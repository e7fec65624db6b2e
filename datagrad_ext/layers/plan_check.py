"""Whether a library's result is right: compared with ATen's on the same operands, and both with float64.

ATen's own distance from float64 is the measure, by norm and by largest difference: a result may have twice as much. So
TF32 does not pass for float32, nor sums in 16 bits for sums in float32. NaN and infinity in an operand must arrive
where they do in float64, and nowhere else, or where they do in ATen's result (a product in blocks may meet 0 · ∞).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TRUTH = 1 << 24  # elements of an operand that float64 sees; samples beyond are compared with ATen alone
ROUNDING = 2.0**-21  # what another order of sums changes in float32

Operands = Sequence[Tensor | None]


@dataclass(frozen=True)
class Errors:
    """Distance from the truth, relative to its norm and to its largest element."""

    norm: float
    largest: float

    @staticmethod
    def of(found: Tensor, truth: Tensor) -> Errors:
        gap, least = (found.to(truth.dtype) - truth).abs_(), torch.finfo(truth.dtype).tiny
        norm, largest = max(float(truth.norm()), least), max(float(truth.abs().max()), least)
        return Errors(float(gap.norm()) / norm, float(gap.max()) / largest)

    def allow(self, other: Errors, factor: float) -> bool:
        """Whether another result may have these errors where this one has its own. NaN may not."""
        by_norm = other.norm <= factor * (self.norm + ROUNDING)
        return by_norm and other.largest <= 2 * factor * (self.largest + ROUNDING)


@dataclass(frozen=True)
class Expected:
    """ATen's results at operands, and those in float64 of the first samples; also where something is not finite.

    Made by `of`; `refusal` judges a result.
    """

    operands: tuple
    aten: Tensor
    truth: Tensor
    unusual: tuple
    unusual_results: tuple[Tensor, Tensor]
    """In float64 and ATen's."""

    @staticmethod
    def of(reference: Callable[[Operands], Tensor], operands: Operands, gate: int | None) -> Expected:
        """The first operand is a batch of images; `gate` is the place of another, which it is gated by."""
        a = operands[0]
        assert a is not None
        rows = min(a.shape[0], max(1, TRUTH // max(1, a[0].numel())))
        unusual = [t.clone() if t is not None and i in (0, gate) else t for i, t in enumerate(operands)]
        unusual[0][0, 0, 0, 0], unusual[0][rows - 1, -1, -1, -1] = math.nan, math.inf  # type: ignore[index]
        if gate is not None:
            unusual[gate][rows // 2, -1, 0, 0] = math.nan  # type: ignore[index]

        def truth(of: Operands) -> Tensor:
            batches = [t[:rows] if t is not None and i in (0, gate) else t for i, t in enumerate(of)]
            return reference([t if t is None else t.double() for t in batches])

        results = truth(unusual), reference(unusual)[:rows]
        return Expected(tuple(operands), reference(operands), truth(operands), tuple(unusual), results)

    def refusal(self, run: Callable[[Operands], Tensor]) -> str | None:
        """Why what `run` gives is wrong; None: it is right."""
        found, rows = run(self.operands), self.truth.shape[0]
        if found.shape != self.aten.shape or found.dtype != self.aten.dtype:
            return "its result has another shape or dtype"
        own, errors = Errors.of(self.aten[:rows], self.truth), Errors.of(found[:rows], self.truth)
        if not own.allow(errors, 2):
            return f"it is {errors.norm:.1e} from float64 where ATen is {own.norm:.1e}"
        wide = torch.promote_types(found.dtype, torch.float32)
        if not own.allow(Errors.of(found, self.aten.to(wide)), 4):
            return "it differs from ATen beyond the first samples"
        found = run(self.unusual)[:rows]
        reasons = [_unlike(found, result, own) for result in self.unusual_results]
        return None if None in reasons else reasons[0]


def _unlike(found: Tensor, result: Tensor, own: Errors) -> str | None:
    """How a result with NaN and infinity differs from another; None: in rounding alone."""
    result = result.double()
    infinite, finite = result.isinf(), result.isfinite()
    if not torch.equal(found.isnan(), result.isnan()):
        return "NaN is not where it belongs"
    if not torch.equal(found.isinf(), infinite) or not torch.equal(found[infinite].double(), result[infinite]):
        return "infinity is not where it belongs"
    if not own.allow(Errors.of(found.where(finite, 0), result.where(finite, 0)), 2):
        return "it differs beside what is not finite"
    return None
