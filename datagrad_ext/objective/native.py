"""The native path of an objective: known losses and known penalties on an accelerated model, in one autograd Function.

All terms share one loss L and its data gradient J, so each sweep runs once. The loss of the objective itself, L0, may
be L, another loss of the table, or any other: then it is ordinary code on the output of the Function. Two Functions do
it: `fused` (a narrow chain: the whole step is one op) and `sweeps` (every program).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..accelerate import traced
from ..layers import UnsupportedOutput
from ..lower import Lowered
from ..ops.heads import Head
from ..ops.seeds import Seed
from . import fused, sweeps
from .heads import head_of
from .losses import one_mean
from .problem import Active, Source, times
from .result import Result, TermResult
from .seeds import seed_of
from .step import Found, Heads, Step


class _Latest(NamedTuple):
    """What was made of a batch: the heads, and what the op is told if one op does the step of that network."""

    kind: Any
    heads: Heads | None
    lowered: weakref.ref[Lowered] | None = None
    fused: fused.FusedStep | None = None


class Native:
    """The native path of one objective at fixed weights.

    What it makes of a batch holds for the next one of its kind, on the same trace of the network, and costs more to
    find than a small network to run: the latest is kept. Nothing of it holds a module or a parameter. Losses that are
    no plain functions may change, as modules do: then nothing is kept.
    """

    def __init__(self, main: Source | None, main_weight: float, terms: Sequence[Active]) -> None:
        self._main, self._main_weight, self._terms = main, main_weight, terms
        losses = [source[0] for source in (main, *[active.source for active in terms]) if source is not None]
        self._keeps = not {type(loss) for loss in losses} - {FunctionType}
        self._latest = _Latest(None, None)

    def evaluate(self, model: Any, x: Any, target: Any) -> Result | None:
        """The objective at one batch, None where the native path does not cover it."""
        if not isinstance(x, Tensor) or x.dim() == 0 or len(x) == 0:
            return None
        kind = _kind(x), _kind(target) if isinstance(target, Tensor) else None
        latest = self._latest
        if kind != latest.kind or not self._keeps:
            latest = self._latest = _Latest(kind, self._heads(target))
        if latest.heads is None:
            return None
        found = traced(model, x)
        if found is None:
            return None
        network, lowered = found
        params = lowered.parameters(lowered.slots())
        known = latest.fused
        if known is None or latest.lowered() is not lowered:  # type: ignore[misc]
            program = lowered.program_of((x,), params)
            step = Step(program, network.warned, latest.heads, self._main, self._main_weight, self._terms)
            known = fused.step_of(step, x, params, target)
            if known is not None:
                self._latest = latest._replace(lowered=weakref.ref(lowered), fused=known)
        if not (x.requires_grad or any(p.requires_grad for p in params)):
            x = x.detach().requires_grad_()
        if known is None:
            return self._by_sweeps(step, x, params, target)
        return self._result(*fused.total(known, x, params, target))

    def _heads(self, target: Any) -> Heads | None:
        """The losses and penalties, if there is one loss of all terms, at the model's output and input, and all are
        in the tables."""
        terms, main = self._terms, self._main
        if not terms or (main is not None and main[1] is not None):
            return None
        source = terms[0].source
        if source[1] is not None:
            return None
        seeds: list[Seed] = []
        for active in terms:
            seed = seed_of(active.term.penalty)
            if seed is None or active.source != source or active.key != 0 or active.term.with_target:
                return None
            seeds.append(seed)
        loss = _head(source, target)
        if loss is None:
            return None
        return Heads(loss, seeds, loss if main == source else None if main is None else _head(main, target))

    def _by_sweeps(self, step: Step, x: Tensor, params: Sequence[Tensor], target: Any) -> Result | None:
        figures = Found()
        try:
            total = sweeps.Sweeps.apply((step, target, figures), x, *params)
        except UnsupportedOutput:  # the call of the model notes it
            return None
        if step.outside:
            total, y = total
            assert step.main is not None
            mean = one_mean(step.main[0], y, target, len(x))
            total, figures.mean = times(step.main_weight, mean) + total, mean.detach()
        return self._result(total, figures)

    def _result(self, total: Tensor, found: Found) -> Result:
        J = found.J
        terms = [TermResult(each.weight, value, J) for each, value in zip(self._terms, found.values, strict=True)]
        return Result(total, found.mean, tuple(terms))


def _kind(t: Tensor) -> tuple[Any, ...]:
    """What a head and a step look at."""
    return type(t), t.shape, t.dtype, t.device, t.requires_grad


def _head(source: Source, target: Any) -> Head | None:
    """The head of a loss, if it is in the table and its target needs no gradient."""
    head = head_of(source[0])
    if head is None or not head.reads_target:
        return head
    return head if type(target) is torch.Tensor and not target.requires_grad else None
