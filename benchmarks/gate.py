"""The correctness gate: a contestant's gradients against plain autograd in float64. What fails is not timed.

relative error ‖g − ĝ‖/‖ĝ‖,   cosine g·ĝ/(‖g‖‖ĝ‖),   norm ratio ‖g‖/‖ĝ‖      over all parameters at once
worst parameter: max over parameters p of ‖g_p − ĝ_p‖ / (‖ĝ_p‖ + ‖ĝ‖/1000)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import objectives
from .cases import Case

TOLERANCES = {"float32": 1e-3, "tf32": 2e-2, "bf16": 5e-2}
BASELINES = TOLERANCES | {"float32": 1e-2, "bf16": 0.5}


@dataclass(frozen=True)
class Accuracy:
    """How far gradients are from the oracle; see the module's formulas."""

    relative_error: float
    cosine: float
    norm_ratio: float
    worst_parameter: float


@dataclass(frozen=True)
class Oracle:
    """Float64 gradients of one case: of the step without and with the penalty."""

    plain: tuple[Tensor, ...]
    penalised: tuple[Tensor, ...]

    @property
    def penalty_share(self) -> float:
        """‖penalised − plain‖ / ‖penalised‖: the error of a step that drops the penalty."""
        return compare(self.plain, self.penalised).relative_error

    def expected(self, role: str) -> tuple[Tensor, ...]:
        """What a contestant of this role must return."""
        return self.plain if role == "plain" else self.penalised


def oracle(case: Case) -> Oracle:
    """Ordinary autograd on the unmodified model in float64, from the case's rounded parameters and data."""
    model, x, t = case.build()
    model, x = model.double(), x.double()
    parameters = list(model.parameters())
    return Oracle(
        objectives.plain_step(model, parameters, case.objective, x, t),
        objectives.penalty_step(model, parameters, case.objective, case.weight, x, t),
    )


@torch.no_grad()
def compare(gradients: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Accuracy:
    """Accuracy of `gradients`; ValueError when their number or shapes differ from the expected ones."""
    shapes = [tuple(g.shape) for g in gradients]
    wanted = [tuple(e.shape) for e in expected]
    if shapes != wanted:
        raise ValueError(f"gradients have shapes {shapes}, the parameters have {wanted}")
    gradients = tuple(g.double() for g in gradients)
    flat, true = (torch.cat([g.reshape(-1) for g in side]) for side in (gradients, expected))
    norm = true.norm()
    worst = max((g - e).norm() / (e.norm() + norm / 1000) for g, e in zip(gradients, expected, strict=True))
    return Accuracy(
        relative_error=((flat - true).norm() / norm).item(),
        cosine=(torch.dot(flat, true) / (flat.norm() * norm)).item(),
        norm_ratio=(flat.norm() / norm).item(),
        worst_parameter=torch.as_tensor(worst).item(),
    )


def limit(precision: str, eager: Accuracy | None, penalty_share: float) -> float:
    """Allowed relative error: the precision's tolerance or twice eager's own error, whichever is wider, but
    never so wide that a step without the penalty would pass.
    """
    own = TOLERANCES[precision]
    return min(own if eager is None else max(own, 2 * eager.relative_error), penalty_share / 2)


def baseline_limit(precision: str, penalty_share: float) -> float:
    """What is allowed to PyTorch itself, plain or eager. Its error is what it is (ReLU masks and signs of J flip, in a
    deep network and in 16 bit more than in others), and is the measure for all others; only a step without the penalty
    must not pass.
    """
    return min(BASELINES[precision], penalty_share / 2)


def objection(accuracy: Accuracy, allowed: float) -> str | None:
    """A sentence saying why the gradients are refused, None when they are right. NaN is refused."""
    checks = (
        ("relative error", accuracy.relative_error, allowed),
        ("one minus cosine", 1 - accuracy.cosine, allowed),
        ("norm ratio minus one", abs(accuracy.norm_ratio - 1), allowed),
        ("relative error of the worst parameter", accuracy.worst_parameter, 10 * allowed),
    )
    for name, value, bound in checks:
        if not value <= bound:
            return f"wrong gradients: {name} {value:.2g} against float64, allowed {bound:.2g}"
    return None
