"""One penalty of an objective: which loss, the gradient with respect to what, which R, how strong, how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..penalties import l1
from .losses import Loss, check_loss
from .schedules import Weight, at_step


@dataclass(frozen=True, eq=False)
class Term:
    """λ mean_n R(J_n), J_n = ∂ loss_n / ∂ input_n.

    The mean is over samples, of R of each sample's own gradient. Weights published for other conventions, with B
    samples: for R of the gradient of a batch-*mean* loss, summed over the batch, squared L2 takes λ/B and L1 takes λ.

    Args:
        weight: λ, or a schedule step -> λ such as `Ramp`. At λ = 0 the term costs nothing.
        penalty: R, a callable J (N, ...) -> (N,), from `datagrad_ext.penalties` or your own.
        loss: a callable (output, target); None for the objective's own loss. Another head or another target is a loss
            that reads it: `lambda output, target: F.mse_loss(output["cue"], target["cue"], reduction="none")`.
        inputs: what the gradient is taken with respect to. None: x (the first, if there are several); an int: which of
            several; a str: the output of the submodule of that name, an intermediate activation.
        output: the name of a submodule whose output the loss reads in place of the model's, or None.
        every: lazy regularisation: take the term at every k-th step only, k times as strong.
        with_target: call the penalty as penalty(J, target), for one that compares J with data.

    Raises:
        TypeError: penalty or loss not callable, or a class; inputs not None, an int or a str; every not an int.
        ValueError: every below 1, or a loss with reduction='sum'.
    """

    weight: Weight
    penalty: Callable[..., Tensor] = l1
    loss: Loss | None = None
    inputs: int | str | None = None
    output: str | None = None
    every: int = 1
    with_target: bool = False

    def __post_init__(self) -> None:
        if not callable(self.penalty):
            kind = type(self.penalty).__name__
            raise TypeError(
                f"Term: penalty must be a callable J (N, ...) -> (N,), got {kind}; see datagrad_ext.penalties"
            )
        if isinstance(self.penalty, type):
            kind = self.penalty.__name__
            raise TypeError(f"Term: penalty is the class {kind}; give an object of it, {kind}(...)")
        if not (callable(self.weight) or isinstance(self.weight, (int, float))):
            raise TypeError(
                f"Term: weight must be a number or a schedule step -> number, got {type(self.weight).__name__}"
            )
        if self.loss is not None:
            check_loss(self.loss, "Term: loss")
        if not (self.inputs is None or isinstance(self.inputs, (int, str))):
            raise TypeError(
                f"Term: inputs must be None, the index of an input or the name of a submodule, "
                f"got {type(self.inputs).__name__}"
            )
        if not isinstance(self.every, int):
            raise TypeError(f"Term: every must be a whole number of steps, got {self.every!r}")
        if self.every < 1:
            raise ValueError(f"Term: every must be at least 1, got {self.every}")

    def weight_at(self, step: int) -> float:
        """λ at this step, `every` times as large or 0 where the term is lazy."""
        return 0.0 if step % self.every else self.every * at_step(self.weight, step)

    def values(self, J: Tensor, target: Any) -> Tensor:
        """R(J), (N,); a ValueError for a penalty that returns something else."""
        found = self.penalty(J, target) if self.with_target else self.penalty(J)
        if not isinstance(found, Tensor) or found.shape != J.shape[:1]:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"Term: the penalty must return one value for each of {len(J)} samples, shape [{len(J)}], got {got}"
            )
        return found
