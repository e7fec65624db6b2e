"""Regularisers against attacks that compare the model at x with the model at a second point x + r.

Both passes have the same dropout mask and buffers, and running statistics are updated once; public codes usually run
two independent passes. Attacks inside run in evaluation mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attacks import pgd
from ..attacks.ball import Range
from ..attacks.modes import evaluating
from ..objective import Result
from ..objective.losses import Loss, cross_entropy
from ..objective.schedules import Weight, at_step
from ..penalties import l2
from .common import divergence
from .two_point import Batch, TwoPoint


def trades(
    beta: Weight = 6.0,
    epsilon: float = 0.031,
    steps: int = 10,
    step_size: float = 0.007,
    clip: Range | None = (0.0, 1.0),
    loss: Loss = cross_entropy,
) -> TwoPoint:
    """L(x) + β mean_n KL(p(x) ‖ p(x')), x' from L∞ PGD on that divergence. Exact with x' held constant.

    The gradient flows through both p(x) and p(x'). The attack runs in evaluation mode from a random point of the
    ball; public code starts it from 0.001 times normal noise. Source: Zhang et al., arXiv 1901.08573; β 6 (1/λ of the
    paper).
    """

    def evaluate(batch: Batch, step: int) -> Result:
        x = batch.x.detach()
        with torch.no_grad(), evaluating(batch.model):
            reference = batch.model(x).log_softmax(1)
        moved = pgd(
            batch.model,
            x,
            reference,
            epsilon,
            steps=steps,
            step_size=step_size,
            clip=clip,
            loss=lambda output, log_p: divergence(log_p, output),
        )
        value = divergence(batch.output.log_softmax(1), batch.output_at(moved - x)).mean()
        lam = at_step(beta, step)
        return batch.result(batch.losses.mean() + lam * value, lam, value)

    return TwoPoint(evaluate, loss, differentiable=False)


def llr(
    weight: Weight = 4.0,
    slope: Weight = 3.0,
    epsilon: float = 8 / 255,
    steps: int = 10,
    clip: Range | None = (0.0, 1.0),
    loss: Loss = cross_entropy,
) -> TwoPoint:
    """L + λ mean_n γ_n + μ mean_n |δ_nᵀ J_n|, γ = |ℓ(x + δ) − ℓ(x) − δᵀ J|, δ maximising γ in the L∞ ball ε.

    Local linearity: λ is `weight`, μ is `slope`. J is differentiated (double backprop), δ held constant: exact given
    δ, which comes from `steps` steps of PGD in evaluation mode. Source: Qin et al., arXiv 1907.02610; the defaults of
    the two weights and of the number of steps are this package's own choice.
    """

    def evaluate(batch: Batch, step: int) -> Result:
        delta = _least_linear(batch, epsilon, steps, clip)
        J = batch.data_gradient(create_graph=True)
        along = (delta * J).flatten(1).sum(1)
        gap = (batch.losses_of(batch.output_at(delta)) - batch.losses - along).abs().mean()
        lam, mu = at_step(weight, step), at_step(slope, step)
        return batch.result(batch.losses.mean() + lam * gap + mu * along.abs().mean(), lam, gap, J)

    return TwoPoint(evaluate, loss)


def _least_linear(batch: Batch, epsilon: float, steps: int, clip: Range | None) -> Tensor:
    """δ with a large |ℓ(x + δ) − ℓ(x) − δᵀ J| in the ball."""
    x = batch.x.detach()
    with evaluating(batch.model):
        still = Batch(batch.model, x, batch.target, batch.loss)
        J, losses = still.data_gradient(), still.losses.detach()

        def gap(output: Any, target: Any) -> Tensor:
            y, moved = output
            return (still.losses_of(y) - losses - ((moved - x) * J).flatten(1).sum(1)).abs()

        model = batch.model
        return pgd(lambda moved: (model(moved), moved), x, None, epsilon, steps=steps, clip=clip, loss=gap) - x


def grad_align(weight: Weight = 0.2, epsilon: float = 8 / 255, loss: Loss = cross_entropy) -> TwoPoint:
    """L + λ (1 − mean_n cos(∇ℓ(x), ∇ℓ(x + η))), η uniform in [−ε, ε].

    Only the gradient at x + η is differentiated; that at x is held constant, as in public code. Exact so. A sample
    whose gradient is 0 counts as orthogonal. L is at x; for training on FGSM examples add that loss, or give a `loss`
    of its own. Source: Andriushchenko and Flammarion, arXiv 2007.02617; λ 0.2 at ε = 8/255.
    """

    def evaluate(batch: Batch, step: int) -> Result:
        J = batch.data_gradient()
        eta = epsilon * (2 * torch.rand_like(J) - 1)
        moved = batch.data_gradient_at(eta)
        lengths = l2(moved) * l2(J)
        zero = lengths == 0
        cosine = torch.where(zero, 0.0, (moved * J).flatten(1).sum(1) / torch.where(zero, 1.0, lengths))
        value = 1 - cosine.mean()
        lam = at_step(weight, step)
        return batch.result(batch.losses.mean() + lam * value, lam, value, J)

    return TwoPoint(evaluate, loss)
