"""The native path of an objective: known losses and known penalties on an accelerated model, in one autograd Function.

All terms share one loss L and its data gradient J, so each sweep runs once. The loss of the objective itself, L0, may
be L, another loss of the table, or any other: then it is ordinary code on the output of the Function. Two Functions do
it: `fused` (a narrow chain: the whole step is one op) and `sweeps` (every program).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..accelerate import traced
from ..autograd import UnsupportedOutput
from ..ops.heads import Head
from . import fused, sweeps
from .heads import head_of
from .losses import one_mean
from .problem import Active, Source, times
from .result import Result, TermResult
from .seeds import seed_of
from .step import Step


def evaluate(
    model: Any, x: Any, target: Any, main: Source | None, main_weight: float, terms: list[Active]
) -> Result | None:
    """The objective at one batch, None where the native path does not cover it."""
    if not isinstance(x, Tensor) or x.dim() == 0 or len(x) == 0:
        return None
    head = _shared_head(terms, target)
    if head is None or (main is not None and main[1] is not None):
        return None
    seeds = [seed for active in terms if (seed := seed_of(active.term.penalty)) is not None]
    if len(seeds) < len(terms):
        return None
    found = traced(model, x)
    if found is None:
        return None
    network, lowered = found
    params = lowered.parameters(lowered.slots())
    if not (x.requires_grad or True in [p.requires_grad for p in params]):
        x = x.detach().requires_grad_()
    main_head = head if main == terms[0].source else None if main is None else _head(main, target)
    step = Step(lowered.program, network.warned, head, seeds, main, main_head, main_weight, terms)
    chain = fused.chain_of(step, x, params, target)
    if chain is not None:
        return _result(step, fused.total(step, chain, x, params, target), step.mean)
    try:
        total = sweeps.Sweeps.apply((step, target), x, *params)
    except UnsupportedOutput:  # the call of the model notes it
        return None
    if not step.outside:
        return _result(step, total, step.mean)
    total, y = total
    assert main is not None
    mean = one_mean(main[0], y, target, len(x))
    return _result(step, times(main_weight, mean) + total, mean.detach())


def _result(step: Step, total: Tensor, mean: Tensor | None) -> Result:
    results = [
        TermResult(active.weight, value, step.J) for active, value in zip(step.terms, step.values, strict=True)
    ]
    found = Result(total, mean, tuple(results))
    step.forget()
    return found


def _shared_head(terms: Sequence[Active], target: Any) -> Head | None:
    """The head of the one loss of all terms, if there is one loss, at the model's output and input."""
    if not terms:
        return None
    source = terms[0].source
    if source[1] is not None:
        return None
    for active in terms:
        if active.source != source or active.key != 0 or active.term.with_target:
            return None
    return _head(source, target)


def _head(source: Source, target: Any) -> Head | None:
    """The head of a loss, if it is in the table and its target needs no gradient."""
    head = head_of(source[0])
    if head is None or not head.reads_target:
        return head
    return head if type(target) is torch.Tensor and not target.requires_grad else None
