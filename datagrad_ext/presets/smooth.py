"""Regularisers that make a network smooth in its input: small or slowly changing data gradients.

`tulip` and `cure` read the model at a second point x + r. Both passes have the same dropout mask and buffers, and
running statistics are updated once; public codes usually run two independent passes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..attacks.ball import steepest
from ..objective import DataGrad, Result, Term, components
from ..objective.losses import Loss, cross_entropy
from ..objective.schedules import Weight, at_step, scaled
from ..penalties import l2_squared
from .two_point import Batch, TwoPoint


def input_gradient(weight: Weight, loss: Loss = cross_entropy) -> DataGrad:
    """L + λ Σ_n ½‖∂(mean L)/∂x_n‖², λ as published: for batch-mean losses. Exact.

    With B samples that is λ/(2B) times the mean over samples of ‖J_n‖² of each sample's own gradient, so a published
    λ depends on its batch size; `double_backprop(λ/B)` is the same at one B.
    Source: Ross and Doshi-Velez, arXiv 1711.09404.
    """
    return DataGrad(loss, Term(weight, lambda J: l2_squared(J) / (2 * len(J))))


def jacobian(weight: Weight = 0.01, projections: int = 1, loss: Loss | None = cross_entropy) -> DataGrad:
    """L + (λ/2) mean_n ‖∂f_n/∂x_n‖_F², f the C outputs, by random projections.

    (C/n) Σ over n random unit vectors v of ‖vᵀ ∂f/∂x‖² in place of the Frobenius norm; without the factor C it is too
    small by C. n ≥ C takes the C rows themselves: exact, otherwise unbiased. Source: Hoffman, Roberts, Yaida,
    arXiv 1908.02729; n 1, λ 0.01.

    Raises:
        ValueError: projections below 1.
    """
    if projections < 1:
        raise ValueError(f"jacobian: projections must be at least 1, got {projections}")

    def rows(output: Tensor, target: Any) -> tuple[Tensor, ...]:
        f = output.flatten(1)
        if projections >= f.shape[1]:
            return components(f)
        return tuple(_projected(f) * math.sqrt(f.shape[1] / projections) for _ in range(projections))

    return DataGrad(loss, Term(scaled(weight, 0.5), l2_squared, rows))


def _projected(f: Tensor) -> Tensor:
    """⟨v, f⟩ of each sample, v a random unit vector of its own."""
    v = torch.randn_like(f)
    return (f * v).sum(1) / torch.linalg.vector_norm(v, dim=1)


def tulip(weight: Weight, h: float = 0.01, loss: Loss = cross_entropy) -> TwoPoint:
    """L + (λ/2) mean_n [(ℓ_n(x + h v) − ℓ_n(x)) / h]², v = J/‖J‖₂ held constant.

    First order in h as (λ/2) mean ‖J‖²; it differences the *loss*, not the gradient, and needs no second-order graph.
    Exact as the formula. Source: Finlay and Oberman, arXiv 1905.11468; h 0.01.

    Raises:
        ValueError: h not positive.
    """
    if not h > 0:
        raise ValueError(f"tulip: h must be positive, got {h}")

    def evaluate(batch: Batch, step: int) -> Result:
        J = batch.data_gradient()
        shifted = batch.losses_of(batch.output_at(h * steepest(J, "l2")))
        value = ((shifted - batch.losses) / h).square().mean()
        lam = at_step(weight, step)
        return batch.result(batch.losses.mean() + lam / 2 * value, lam / 2, value, J)

    return TwoPoint(evaluate, loss)


def cure(weight: Weight = 4.0, h: Weight = 3.0, loss: Loss = cross_entropy) -> TwoPoint:
    """L + λ mean_n ‖∇ℓ(x + h z) − ∇ℓ(x)‖², z = sign J/‖sign J‖₂ held constant. Exact, by double backprop at both
    points.

    First order in h as h² ‖H z‖², the curvature along z. Source: Moosavi-Dezfooli et al., arXiv 1811.09716; λ 4, h from
    0.1 to 3 during training: `h=Ramp(3.0, steps, start=0.1)`. Public code takes the norm without the square, of the
    gradient of a batch-mean loss, 1/N of the one here.
    """

    def evaluate(batch: Batch, step: int) -> Result:
        J = batch.data_gradient(create_graph=True)
        z = steepest(J.detach().sign(), "l2")
        shifted = batch.data_gradient_at(at_step(h, step) * z)
        value = l2_squared(shifted - J).mean()
        lam = at_step(weight, step)
        return batch.result(batch.losses.mean() + lam * value, lam, value, J)

    return TwoPoint(evaluate, loss)
