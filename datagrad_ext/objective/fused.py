"""A step of a narrow chain, as one autograd Function over one op (`ops/penalty_step.py`).

The forward computes the gradients, too, at a cotangent of 1: everything is in the cache then. The backward multiplies
them by the cotangent it gets, which is 1 as a rule. What needs a graph of the gradients takes the reference path, from
x and the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..autograd import Node, needs_reference, release
from ..layers.chain import Chain
from ..ops import is_native
from ..ops.chain import NARROW, parse
from ..program import Step as ProgramStep
from ..single import Single
from .result import without_graph
from .step import Step, differentiable

_op = torch.ops.datagrad.chain_penalty_step.default
_DTYPES = (torch.float32, torch.float64)


def chain_of(step: Step, x: Tensor, params: Sequence[Tensor], target: Any) -> Chain | None:
    """The chain that the program is, if the op covers it and pays at this batch."""
    program = step.program
    if type(program) is not Single or step.outside or not program.rows:  # the first run is described
        return None
    (only,) = program.steps
    assert isinstance(only, ProgramStep)
    chain = only.layer
    if type(chain) is not Chain or x.dim() != 2 or x.dtype not in _DTYPES or x.device.type != "cpu" or not _is_there():
        return None
    widths = [params[i].shape[0] for i in _weights(chain.links)]
    samples, inputs = x.shape
    if max(inputs, *widths) > NARROW:
        return None
    shape, main = (samples, widths[-1]), step.main_head
    if not step.head.fits(shape, x, target, samples):
        return None
    return chain if main is None or main is step.head or main.fits(shape, x, target, samples) else None


def total(step: Step, chain: Chain, x: Tensor, params: Sequence[Tensor], target: Any) -> Tensor:
    """The total of the step; where no backward can follow, nothing is computed for one."""
    if without_graph():
        return _run(step, chain, x, params, target, [False] * len(params), False)[0]
    wanted = [p.requires_grad for p in params]
    found: Tensor = Fused.apply((step, chain, target, wanted), x, *params)
    return found


class Fused(Node):
    """apply((step, chain, target, which parameters have a gradient), x, *params) -> total."""

    @staticmethod
    def forward(ctx: Any, batch: tuple[Step, Chain, Any, list[bool]], x: Tensor, *params: Tensor) -> Tensor:
        step, chain, target, wanted = batch
        total, *bars = _run(step, chain, x, params, target, wanted, x.requires_grad)
        ctx.step, ctx.wanted = step, (x.requires_grad, *wanted)
        ctx.target, kept = (None, (target,)) if isinstance(target, Tensor) else (target, ())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *params, step.J, *kept, *bars)
        return total

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        step, wanted, tensors = ctx.step, ctx.wanted, ctx.saved_tensors
        n = len(wanted)
        if c is None:
            return (None,) * (1 + n)
        if needs_reference(step, (c,), torch.is_grad_enabled()):
            target = ctx.target if len(tensors) == n + 1 + sum(wanted) else tensors[n + 1]
            return (None, *differentiable(step, (c,), target, [()], tensors[0], tensors[1:n]))
        release(ctx)
        bars: Any = tensors[len(tensors) - sum(wanted) :]
        scale = c.item()
        if scale != 1:
            bars = torch._foreach_mul(bars, scale)
        if len(bars) == n:
            return (None, *bars)
        rest = iter(bars)
        return (None, *[next(rest) if want else None for want in wanted])


def _run(
    step: Step, chain: Chain, x: Tensor, params: Sequence[Tensor], target: Any, wanted: list[bool], want_x: bool
) -> list[Tensor]:
    """The op: the total and the gradients; what else it returns goes into the step."""
    head, main, seeds = step.head, step.main_head, step.seeds
    read = target if head.reads_target or (main is not None and main.reads_target) else None
    name, constants = ("", ()) if main is None else (main.name, main.constants)
    try:
        found: list[Tensor] = _op(
            x,
            params,
            read,
            chain.links,
            head.name,
            head.constants,
            name,
            constants,
            step.main_weight,
            " ".join([seed.word for seed in seeds]),
            [seed.constant for seed in seeds],
            [active.weight for active in step.terms],
            wanted,
            want_x,
        )
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(str(error)) from None  # a class index: what the loss itself raises
    first = 1 if main is None else 2
    last = first + len(seeds)
    step.mean = found[1] if first == 2 else None
    step.values, step.J = found[first:last], found[last]
    return [found[0], *found[last + 1 :]]


@lru_cache
def _weights(links: str) -> tuple[int, ...]:
    """Which parameters are weights."""
    return tuple([link.weight for link in parse(links) if link.weight is not None])


@cache
def _is_there() -> bool:
    """Whether the op has a kernel; its reference is no faster than the sweeps."""
    return is_native("chain_penalty_step", "cpu")
