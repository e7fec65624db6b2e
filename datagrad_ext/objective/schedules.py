"""Weights that depend on the step, and Adam's settings for lazy regularisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Weight = float | Callable[[int], float]


@dataclass(frozen=True)
class Ramp:
    """A weight that goes linearly from `start` (step 0) to `end` (step `steps`) and stays there."""

    end: float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Ramp: steps must be at least 1, got {self.steps}")

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


def at_step(weight: Weight, step: int) -> float:
    """The weight at this step."""
    return float(weight(step)) if callable(weight) else float(weight)


def scaled(weight: Weight, factor: float) -> Weight:
    """`factor` times the weight, also of a schedule."""
    if callable(weight):
        schedule = weight
        return lambda step: factor * schedule(step)
    return factor * weight


def lazy_adam(lr: float, betas: tuple[float, float], every: int) -> dict[str, float | tuple[float, float]]:
    """Adam's settings for an objective whose penalty is lazy (`Term(every=k)`): `Adam(params, **lazy_adam(...))`.

    With c = k/(k+1): lr·c and betas^c, so that the averages span as many steps of the loss as without the penalty
    (Karras et al., StyleGAN2, arXiv 1912.04958, appendix B).
    """
    if every < 1:
        raise ValueError(f"lazy_adam: every must be at least 1, got {every}")
    c = 1.0 if every == 1 else every / (every + 1)
    return {"lr": lr * c, "betas": (betas[0] ** c, betas[1] ** c)}
