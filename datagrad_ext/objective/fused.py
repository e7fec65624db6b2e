"""A step of a narrow chain, as one autograd Function over one op (`ops/penalty_step.py`).

The forward computes the gradients, too, at a cotangent of 1: everything is in the cache then. The backward multiplies
them by the cotangent it gets, which is 1 as a rule. What needs a graph of the gradients takes the reference path, from
x and the parameters.

A chain that norms by running statistics are folded into has an op of its own (`ops/folded_step.py`), which is told the
statistics of the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .._native import direct
from ..autograd import Node, release
from ..layers.chain import Chain
from ..layers.folded import FoldedChain, Together
from ..ops import is_native
from ..ops.chain import NARROW, parse
from ..program import Step as ProgramStep
from ..reference import needs_reference
from ..single import Single
from .result import without_graph
from .step import Found, Step, differentiable

_op, _folded_op = direct("chain_penalty_step"), direct("folded_penalty_step")
_DTYPES = (torch.float32, torch.float64)


@dataclass(slots=True)
class FusedStep:
    """A step that the op covers, and what the op is told of it."""

    step: Step
    told: tuple[Any, ...]
    """The arguments between the target and the flags."""
    reads_target: bool
    has_main: bool
    together: Together | None
    """The chain with its folds, if it has some."""
    norms: tuple[str, Sequence[float]]
    """Which linear links have a norm, and the norms' ε, as the op is told."""
    host: tuple[Any, ...]


def step_of(step: Step, x: Tensor, params: Sequence[Tensor], target: Any) -> FusedStep | None:
    """The step as one op, if its program is a chain that the op covers and it pays at this kind of batch."""
    program, heads = step.program, step.heads
    if type(program) is not Single or step.outside or not program.rows:  # the first run is described
        return None
    (only,) = program.steps
    assert isinstance(only, ProgramStep)
    together = only.layer.together if type(only.layer) is FoldedChain else None
    chain = only.layer if together is None else together.inside
    if type(chain) is not Chain or x.dim() != 2 or x.dtype not in _DTYPES or x.device.type != "cpu" or not _is_there():
        return None
    norms = ("", ()) if together is None else together.folds.told(chain.links)
    if together is not None:
        params, _ = together.folds.folded(x, tuple(params), only.host)
    widths = [params[link.weight].shape[0] for link in parse(chain.links) if link.weight is not None]
    samples, inputs = x.shape
    if max(inputs, *widths) > NARROW:
        return None
    used = [heads.loss] if heads.main is None else [heads.loss, heads.main]
    if not all(head.fits((samples, widths[-1]), x, target, samples) for head in used):
        return None
    name, constants = ("", ()) if heads.main is None else (heads.main.name, heads.main.constants)
    told = (
        chain.links,
        heads.loss.name,
        _floats(heads.loss.constants),
        name,
        _floats(constants),
        float(step.main_weight),
        " ".join([seed.word for seed in heads.seeds]),
        _floats(seed.constant for seed in heads.seeds),
        _floats(active.weight for active in step.terms),
    )
    reads_target = any(head.reads_target for head in used)
    return FusedStep(step, told, reads_target, heads.main is not None, together, norms, only.host)


def total(fused: FusedStep, x: Tensor, params: Sequence[Tensor], target: Any) -> tuple[Tensor, Found]:
    """The total of the step, and what else it finds; where no backward can follow, nothing is computed for one."""
    figures = Found()
    if without_graph():
        return _run(fused, x, params, target, [False] * len(params), False, figures)[0], figures
    return Fused.apply((fused, target, figures), x, *params), figures


class Fused(Node):
    """apply((fused step, target, found), x, *params) -> total; `found` takes what else a forward finds."""

    @staticmethod
    def forward(ctx: Any, batch: tuple[FusedStep, Any, Found], x: Tensor, *params: Tensor) -> Tensor:
        fused, target, figures = batch
        _, want_x, *wanted = ctx.needs_input_grad
        total, *bars, kept = _run(fused, x, params, target, wanted, want_x, figures)
        ctx.fused = fused
        ctx.target, of_target = (None, target) if isinstance(target, Tensor) else (target, None)
        ctx.bars = bars  # nobody else has them
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *params, figures.J, of_target, kept)
        return total

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted, tensors = ctx.needs_input_grad, ctx.saved_tensors
        n, bars = len(wanted) - 1, ctx.bars
        if c is None:
            return (None,) * (1 + n)
        if needs_reference(ctx.fused.step.warned, (c,), torch.is_grad_enabled()):
            x, params, (of_target, kept) = tensors[0], tensors[1:n], tensors[n + 1 :]
            target = ctx.target if of_target is None else of_target
            saved = [(ctx.fused.together, kept, None)]
            return (None, *differentiable(ctx.fused.step, (c,), target, saved, x, params))
        scale, last = c.item(), release(ctx)
        if last:
            ctx.bars = None
        if scale != 1 or not last:  # what is given away may be changed
            bars = torch._foreach_mul(bars, scale)
        if len(bars) == n:
            return (None, *bars)
        rest = iter(bars)
        return tuple([next(rest) if want else None for want in wanted])


def _run(
    fused: FusedStep,
    x: Tensor,
    params: Sequence[Tensor],
    target: Any,
    wanted: Sequence[bool],
    want_x: bool,
    figures: Found,
) -> list[Any]:
    """The op: the total, the gradients, and what a fold keeps or None; what else it returns goes into `figures`."""
    told = (target if fused.reads_target else None, *fused.told, wanted, want_x)
    try:
        if fused.together is None:
            found: list[Any] = [*_op(x, params, *told), None]
        else:
            found = _folded_op(x, params, fused.together.folds.statistics(x, fused.host), *fused.norms, *told)
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(str(error)) from None  # a class index: what the loss itself raises
    first = 1 + fused.has_main
    last = len(found) - sum(wanted) - want_x - 2
    if fused.has_main:
        figures.mean = found[1]
    figures.values, figures.J = found[first:last], found[last]
    return [found[0], *found[last + 1 :]]


def _floats(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, numbers))


@cache
def _is_there() -> bool:
    """Whether the op has a kernel; its reference is no faster than the sweeps."""
    return is_native("chain_penalty_step", "cpu")
