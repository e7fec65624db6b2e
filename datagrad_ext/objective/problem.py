"""One step of an objective: its losses and their data gradients after the first pass, each computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checkpointed import gradient_in_full
from .losses import Loss, means, only, own_gradients
from .passes import Key, Pass, Passes, State
from .result import Result, TermResult
from .term import Term

Source = tuple[Loss, str | None]
"""A loss, and the submodule whose output it reads (None: the model)."""


@dataclass(frozen=True)
class Active:
    """A term that takes part in this step, at this weight."""

    term: Term
    weight: float
    source: Source

    @property
    def key(self) -> Key:
        """What its gradient is taken with respect to."""
        return 0 if self.term.inputs is None else self.term.inputs

    @property
    def names(self) -> list[str]:
        """The submodules to watch."""
        return [name for name in (self.term.inputs, self.term.output) if isinstance(name, str)]

    def result(self, gradients: Sequence[Tensor], value: Tensor) -> TermResult:
        """What to log of it."""
        found = [J.detach() for J in gradients]
        J = torch.stack(found) if len(found) > 1 else found[0]
        return TermResult(self.weight, value.detach(), J, stacked=len(found) > 1)


class Problem:
    """What an estimator works on. `main` is the objective's own loss, None for penalties alone."""

    def __init__(
        self, passes: Passes, target: Any, main: Source | None, main_weight: float, terms: Sequence[Active]
    ) -> None:
        self.passes, self.target, self.terms = passes, target, terms
        self.main, self.main_weight = main, main_weight
        self._first: dict[Source, tuple[Tensor, ...]] = {}
        self._random: dict[Source, State] = {}
        self._gradients: dict[tuple[Source, Key], tuple[Tensor, ...]] = {}

    def mean(self, source: Source, visited: Pass, k: int) -> Tensor:
        """The mean of the k-th loss of `source` after a repeated pass, drawing the random numbers of the first."""
        with self._random[source].back():
            return self._means(source, visited)[k]

    def first_means(self, source: Source, first: Pass) -> tuple[Tensor, ...]:
        """The mean over samples of each loss of `source` after the first pass."""
        if source not in self._first:
            if self.passes.repeatable:
                self._random[source] = State.of(None, self.passes.x[0].device)
            self._first[source] = self._means(source, first)
        return self._first[source]

    def main_mean(self, first: Pass) -> Tensor | None:
        """The objective's own loss."""
        if self.main is None:
            return None
        return only(self.first_means(self.main, first))

    def gradients(self, active: Active, first: Pass, create_graph: bool) -> tuple[Tensor, ...]:
        """J of each loss of the term, after the first pass."""
        at = active.source, active.key
        if at not in self._gradients:
            losses = range(len(self.first_means(active.source, first)))
            found = [self._gradient(active, first, k, create_graph) for k in losses]
            self._gradients[at] = tuple([found_gradient(J, active.key) for J in found])
        return self._gradients[at]

    def _gradient(self, active: Active, first: Pass, k: int, create_graph: bool) -> Tensor | None:
        mean, key = self.first_means(active.source, first)[k], active.key
        try:
            return own_gradients(mean, first.at[key], self.passes.samples, create_graph)
        except RuntimeError as error:
            reentrant = "use_reentrant" in str(error) and not create_graph
            if not reentrant or isinstance(key, str) or not isinstance(self.passes.model, nn.Module):
                raise
        (loss, name), start = active.source, self._random[active.source]

        def mean_of(value: Any) -> Tensor:
            with start.back():
                return means(loss, value, self.target, self.passes.samples)[k]

        return gradient_in_full(self.passes, key, name, mean_of)

    def result(self, parts: Sequence[Tensor], loss: Tensor | None, terms: Sequence[TermResult]) -> Result:
        """The sum of the parts; a zero that backward accepts where nothing takes part in this step."""
        total = added(parts) if parts else torch.zeros((), device=self.passes.x[0].device, requires_grad=True)
        return Result(total, None if loss is None else loss.detach(), tuple(terms))

    def _means(self, source: Source, visited: Pass) -> tuple[Tensor, ...]:
        loss, name = source
        return means(loss, visited.value(name), self.target, self.passes.samples)


def found_gradient(J: Tensor | None, key: Key) -> Tensor:
    """J, or a ValueError if there is none."""
    if J is None:
        where = f"the output of '{key}'" if isinstance(key, str) else f"input {key}"
        raise ValueError(
            f"the loss of a term does not depend on {where} in autograd's graph. Is it detached on the way, or is the "
            "submodule inside an accelerated one (accelerate that submodule by itself)?"
        )
    return J


def added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    return sum(parts[1:], parts[0])


def times(factor: float | Tensor, t: Tensor) -> Tensor:
    """factor · t, which is t for the number 1; the value of a tensor is not looked at: on a GPU the host would wait."""
    return t if not isinstance(factor, Tensor) and factor == 1 else factor * t
