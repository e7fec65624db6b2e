"""The native path of an objective: a known loss and known penalties on an accelerated model, in one autograd Function.

    sweep 1 → y     head → mean, δ     sweep 2 → J     R(J), total            in the forward
    seed v     sweep 3 → tangent of y     head → ζ     sweep 4 → θ̄, x̄        in the backward

With c the cotangent of the total, v = Σ_i c λ_i/N ∂R_i/∂J and ζ = ∂⟨δ, t⟩/∂y + c λ0/N δ. All penalties share J, so each
sweep runs once. The backward computes what the engine asks for; between the two passes everything is in
`save_for_backward`, as in the Functions of `autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..accelerate import traced
from ..autograd import (
    Node,
    UnsupportedOutput,
    aliases,
    asked_for,
    filled,
    needs_reference,
    packed,
    release,
    unpack,
)
from ..layers.base import gradients
from ..program import Left, Program
from .estimators import Exact
from .heads import Differentiated, Head, head_of
from .passes import Passes
from .problem import Active, Problem, Source, added, found_gradient, times
from .result import Result, TermResult
from .seeds import Seed, constant, mean_of, seed_of


@dataclass(slots=True)
class _Step:
    """One evaluation of an objective: its network, its loss as a head, its penalties as seeds."""

    program: Program
    warned: set[str]
    head: Head
    seeds: list[Seed]
    main: Source | None
    main_weight: float
    terms: list[Active]
    found: list[Tensor]
    """For the caller of the forward: the mean of the loss, J, the mean of each penalty."""


def evaluate(
    model: Any, x: Any, target: Any, main: Source | None, main_weight: float, terms: list[Active]
) -> Result | None:
    """The objective at one batch, None where the native path does not cover it."""
    source = terms[0].source if terms else None
    head = _head(source, main, terms, target)
    seeds = [seed for active in terms if (seed := seed_of(active.term.penalty)) is not None]
    if head is None or len(seeds) < len(terms) or not isinstance(x, Tensor) or x.dim() == 0 or len(x) == 0:
        return None
    found = traced(model, x)
    if found is None:
        return None
    network, lowered = found
    params = lowered.parameters(lowered.slots())
    if not (x.requires_grad or True in [p.requires_grad for p in params]):
        x = x.detach().requires_grad_()
    step = _Step(lowered.program, network.warned, head, seeds, main, main_weight, terms, [])
    try:
        total = _Objective.apply((step, target), x, *params)
    except UnsupportedOutput:  # the call of the model notes it
        return None
    mean, J, *values = step.found
    step.found = []
    results = [TermResult(active.weight, value, J) for active, value in zip(terms, values, strict=True)]
    return Result(total, None if main is None else mean, tuple(results))


def _head(source: Source | None, main: Source | None, terms: Sequence[Active], target: Any) -> Head | None:
    """The head of the one loss of the objective, if there is one loss, at the model's output and input."""
    if source is None or source[1] is not None or main not in (None, source):
        return None
    if any(active.source != source or active.key != 0 or active.term.with_target for active in terms):
        return None
    head = head_of(source[0])
    if head is None or not head.reads_target:
        return head
    return head if type(target) is Tensor and not target.requires_grad else None


class _Objective(Node):
    """apply((step, target), x, *params) -> total."""

    @staticmethod
    def forward(ctx: Any, batch: tuple[_Step, Any], x: Tensor, *params: Tensor) -> Tensor:
        step, target = batch
        program, samples = step.program, x.shape[0]
        thetas = program.thetas(params)
        (y,), saved = program.forward((x,), thetas)
        if type(y) is tuple:
            raise UnsupportedOutput("its result is a layer's tuple")
        if not step.head.fits(y, target, samples):
            step.head = Differentiated(step.terms[0].source[0])
        mean, delta, kept = step.head.forward(y, target, samples)
        (J,), records = program.data_gradient(saved, thetas, (delta,), (True,))
        J = found_gradient(J, 0)
        norms = [seed.norms(J) for seed in step.seeds]
        values = [mean_of(seed.values(each)) for seed, each in zip(step.seeds, norms, strict=True)]
        step.found += [mean, J, *values]
        tensors: list[Any] = [x, *params]
        ctx.step, ctx.layout = step, packed([(target, y, delta, J), kept, norms, records, *saved], tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return _total(step, mean, values)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        step, tensors = ctx.step, ctx.saved_tensors
        program = step.program
        x, params = tensors[0], tensors[1 : 1 + program.n_params]
        head, kept, norms, records, *saved = [unpack(layout, tensors) for layout in ctx.layout]
        del tensors
        if c is None:
            return (None,) * (2 + len(params))
        wanted = asked_for([node for node, _ in ctx.next_functions], 1)
        if needs_reference(step, (c,), torch.is_grad_enabled()):
            found = _differentiable(step, c, head[0], saved, x, params)
        else:
            release(ctx)
            found = _sweeps(step, c, head, kept, norms, list(records), saved, program.thetas(params), Left(1, wanted))
        return (None, *filled(found, (x, *params), wanted))


def _total(step: _Step, mean: Tensor, values: Sequence[Tensor]) -> Tensor:
    """λ0 mean + Σ λ_i mean R_i."""
    total = None if step.main is None else times(step.main_weight, mean)
    for active, value in zip(step.terms, values, strict=True):
        total = active.weight * value if total is None else torch.add(total, value, alpha=active.weight)
    return total  # type: ignore[return-value]  # there is a term


def _sweeps(
    step: _Step,
    c: Tensor,
    head: tuple[Any, ...],
    kept: tuple[Any, ...],
    norms: Sequence[Tensor],
    records: list[Any],
    saved: list[Any],
    thetas: list[Any],
    left: Left,
) -> list[Any]:
    """Sweeps 3 and 4: the gradients of c · total with respect to x and the parameters."""
    target, y, delta, J = head
    samples = J.shape[0]
    # The usual c is 1; where the host can look without waiting, it is a number.
    scale: Any = c.item() if c.device.type == "cpu" else c
    v = added(
        [
            seed.seed(J, each, times(scale, constant(active.weight / samples, each)))
            for active, seed, each in zip(step.terms, step.seeds, norms, strict=True)
        ]
    )
    (t,) = step.program.tangent(saved, thetas, records, (v,), (step.head.curved,), left)
    zeta = None if t is None else step.head.hvp(y, target, kept, t)
    if step.main is not None:
        share = step.main_weight / samples
        if zeta is None:
            zeta = delta * (scale * share)
        elif scale is c:
            zeta = torch.addcmul(zeta, delta, c, value=share)
        else:
            zeta = torch.add(zeta, delta, alpha=scale * share)
    return step.program.reverse(saved, thetas, (zeta,), left)


def _differentiable(
    step: _Step, c: Tensor, target: Any, saved: list[Any], x: Tensor, params: Sequence[Tensor]
) -> Sequence[Any]:
    """The same gradients as ordinary differentiable code."""
    with torch.enable_grad():
        theta = aliases(params)  # gradients stop at names of their own
        passes = Passes(lambda x: step.program.reference(saved, [x], theta)[0], x.view_as(x), [0], [])
        problem = Problem(passes, target, step.main, step.main_weight, step.terms)
        total = Exact()(problem, passes.first(repeatable=False)).total
        return gradients([(total, c)], [*passes.x, *theta], create_graph=True)
