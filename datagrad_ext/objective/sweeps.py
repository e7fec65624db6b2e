"""A step over the four sweeps of any program, as one autograd Function.

    sweep 1 → y     heads → means, δ     sweep 2 → J     R(J), total            in the forward
    seed v     sweep 3 → tangent of y     head → ζ     sweep 4 → θ̄, x̄        in the backward

With c the cotangent of the total, v = Σ_i c λ_i/N ∂R_i/∂J and ζ = ∂⟨δ, t⟩/∂y + c λ0/N δ0, δ the cotangent of the
terms' loss and δ0 that of the objective's own. A loss of its own that is not known takes y and returns its cotangent
instead. The backward computes what the engine asks for; between the two passes everything is in `save_for_backward`, as
in `autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._native import packed, unpacked
from ..autograd import Node, asked_for, filled, release
from ..layers import UnsupportedOutput, add
from ..ops.heads import Head
from ..ops.seeds import total
from ..program import Left
from ..reference import needs_reference
from .heads import Differentiated
from .problem import Source, added, found_gradient
from .step import Found, Step, differentiable


class Sweeps(Node):
    """apply((step, target, found), x, *params) -> total, or (total of the penalties, y) where L0 is outside.

    `found` takes what else a forward finds.
    """

    @staticmethod
    def forward(ctx: Any, batch: tuple[Step, Any, Found], x: Tensor, *params: Tensor) -> Any:
        step, target, found = batch
        program, heads, samples = step.program, step.heads, x.shape[0]
        thetas = program.thetas(params)
        (y,), saved = program.forward((x,), thetas)
        if type(y) is tuple:
            raise UnsupportedOutput("its result is a layer's tuple")
        same = heads.main is heads.loss
        head = _fitting(heads.loss, step.terms[0].source, y, target, samples)
        losses, delta, kept = head.forward(y, target, samples)
        main_delta = delta if same else None
        if not same and step.main is not None and heads.main is not None:
            main_head = _fitting(heads.main, step.main, y, target, samples)
            losses, main_delta, _ = main_head.forward(y, target, samples)
        (J,), records = program.data_gradient(saved, thetas, (delta,), (True,))
        found.J = J = found_gradient(J, 0)
        norms = [seed.norms(J) for seed in heads.seeds]
        value = _total(step, losses, norms, y, found)
        tensors: list[Any] = [x, *params]
        ctx.step, ctx.head = step, head
        ctx.layout = packed([(target, y, main_delta, J), kept, norms, records, *saved], tensors, Tensor)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return (value, y) if step.outside else value

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, y_bar: Tensor | None = None) -> tuple[Tensor | None, ...]:
        step, tensors = ctx.step, ctx.saved_tensors
        program = step.program
        x, params = tensors[0], tensors[1 : 1 + program.n_params]
        fixed, kept, norms, records, *saved = unpacked(ctx.layout, tensors)
        del tensors
        if c is None and y_bar is None:
            return (None,) * (2 + len(params))
        wanted = asked_for([node for node, _ in ctx.next_functions], 1)
        cotangents = (c, y_bar) if step.outside else (c,)
        if needs_reference(step.warned, cotangents, torch.is_grad_enabled()):
            found = differentiable(step, cotangents, fixed[0], saved, x, params)
        else:
            release(ctx)
            left, thetas = Left(1, wanted), program.thetas(params)
            passing = list(records)
            del records  # sweep 3 empties the list: nothing else may hold what was in it
            zeta = None if c is None else _tangent(step, ctx.head, c, fixed, kept, norms, passing, saved, thetas, left)
            if y_bar is not None:
                zeta = y_bar if zeta is None else add(zeta, y_bar)
            found = program.reverse(saved, thetas, (zeta,), left)
        return (None, *filled(found, (x, *params), wanted))


def _fitting(head: Head, source: Source, y: Tensor, target: Any, samples: int) -> Head:
    """The head, or autograd on its loss where it does not cover this batch."""
    return head if head.fits(y.shape, y, target, samples) else Differentiated(source[0])


def _total(step: Step, losses: Tensor, norms: Sequence[Tensor], y: Tensor, found: Found) -> Tensor:
    """λ0 mean + Σ λ_i mean R_i, without the mean where it is left to others; the means go to `found`."""
    weights, seeds = [active.weight for active in step.terms], step.heads.seeds
    known = step.heads.main is not None
    value, means = total(losses.to(norms[0].dtype) if known else None, step.main_weight, seeds, norms, weights)
    found.mean, found.values = means[0].to(y.dtype) if known else None, means[known:]
    return value


def _tangent(
    step: Step,
    head: Head,
    c: Tensor,
    fixed: tuple[Any, ...],
    kept: tuple[Any, ...],
    norms: Sequence[Tensor],
    records: list[Any],
    saved: list[Any],
    thetas: list[Any],
    left: Left,
) -> Tensor | None:
    """Sweep 3, and the cotangent of y that sweep 4 of c · total begins with."""
    target, y, main_delta, J = fixed
    samples = J.shape[0]
    # The usual c is 1; where the host can look without waiting, it is a number.
    scale: Any = c.item() if c.device.type == "cpu" else c
    v = added(
        [
            seed.seed(J, each, c.to(each.dtype), active.weight / samples)
            for active, seed, each in zip(step.terms, step.heads.seeds, norms, strict=True)
        ]
    )
    (t,) = step.program.tangent(saved, thetas, records, (v,), (head.curved,), left)
    zeta = None if t is None else head.hvp(y, target, kept, t)
    if main_delta is None:
        return zeta
    share = step.main_weight / samples
    if zeta is None:
        return main_delta * (scale * share)
    if scale is c:
        return torch.addcmul(zeta, main_delta, c, value=share)
    return torch.add(zeta, main_delta, alpha=scale * share)
