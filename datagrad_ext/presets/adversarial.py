"""Training on adversarial examples, as finite-radius forms of DataGrad.

With y = ∂R/∂J and φ = ε, λ0 L(x) + λ R(J) is a L(x) + b L(x + ε y), b = λ/ε, a = λ0 − b: `goodfellow`, `nokland`,
`strong_adversary` and `gradient_family` are `DataGrad` with a `FiniteDifference(ε)`. Exact as the mix of two losses
with the example held constant; first order in ε as a penalty on J.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attacks import fgsm
from ..attacks.ball import steepest
from ..objective import DataGrad, FiniteDifference, Result, Term
from ..objective.losses import Loss, cross_entropy
from ..objective.schedules import Weight, at_step
from ..penalties import Lp, l1
from .common import divergence
from .two_point import Batch, TwoPoint, output_aside

Attack = Callable[[Any, Tensor, Any, float], Tensor]


def goodfellow(epsilon: float = 0.25, alpha: float = 0.5, loss: Loss = cross_entropy) -> DataGrad:
    """α L(x) + (1 − α) L(x + ε sign J): R = L1, λ = ε (1 − α), φ = ε.

    Exact, also against autograd through x': the sign has derivative 0. The adversarial example is not clipped to the
    range of the data. Source: Goodfellow, Shlens, Szegedy, arXiv 1412.6572.

    Raises:
        ValueError: α outside [0, 1], or ε not positive.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"goodfellow: alpha must be from 0 to 1, got {alpha}")
    return DataGrad(loss, Term(epsilon * (1 - alpha), l1), FiniteDifference(epsilon))


def nokland(epsilon: float = 0.08, loss: Loss = cross_entropy) -> DataGrad:
    """L(x + ε sign J) alone: R = L1, λ = φ = ε, so that a = 0 and b = 1.

    Exact. Source: Nøkland, arXiv 1510.04189 ("modify the gradient": backprop at the adversarial point only).
    """
    return gradient_family(epsilon, math.inf, loss)


def gradient_family(sigma: float, p: float = 2.0, loss: Loss = cross_entropy) -> DataGrad:
    """L(x + r), r = argmax of ⟨r, J⟩ over ‖r‖_p ≤ σ: R = ‖J‖_p*, 1/p + 1/p* = 1, λ = φ = σ.

    p = ∞ is `nokland` (σ sign J), p = 2 is r = σ J/‖J‖, p = 1 moves the entry with the largest |J|. Exact with r held
    constant; first order in σ as L + σ ‖J‖_p*. Source: Lyu, Huang, Liang, arXiv 1511.06385.

    Raises:
        ValueError: p below 1, or σ not positive.
    """
    if not p >= 1:
        raise ValueError(f"gradient_family: p must be from 1 to infinity, got {p}")
    dual = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
    return DataGrad(loss, Term(sigma, Lp(dual)), FiniteDifference(sigma))


_NORMS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def strong_adversary(c: float, norm: str = "l2", loss: Loss = cross_entropy) -> DataGrad:
    """max over ‖r‖ ≤ c of L(x + r), r from the linearised loss: L(x + c J/‖J‖) for the L2 norm, c sign J for L∞.

    `norm` is that of r: "l2", "linf" or "l1". The same as `gradient_family(c, p)`. Exact with r held constant.
    Source: Huang, Xu, Schuurmans, Szepesvári, arXiv 1511.03034.

    Raises:
        ValueError: another norm.
    """
    if norm not in _NORMS:
        raise ValueError(f"strong_adversary: norm must be one of {', '.join(_NORMS)}, got '{norm}'")
    return gradient_family(c, _NORMS[norm], loss)


def adversarial_mix(
    share: float = 0.5, radius: float = 0.1, attack: Attack = fgsm, loss: Loss = cross_entropy
) -> TwoPoint:
    """(1 − β) L(x) + β L(x'), x' = attack(model, x, target, radius): β is `share`.

    The term of DataGrad with R = ⟨y, J⟩, y = (x' − x)/φ given, λ = βφ. Exact as the mix; x' is held constant. The
    attack is called as those in `datagrad_ext.attacks`; use functools.partial for its options (`clip=None` for data
    outside [0, 1]). Source: Szegedy et al., arXiv 1312.6199.

    Raises:
        ValueError: share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"adversarial_mix: share must be from 0 to 1, got {share}")

    def evaluate(batch: Batch, step: int) -> Result:
        x = batch.x.detach()
        moved = attack(batch.model, x, batch.target, radius)
        value = batch.losses_of(batch.output_at(moved - x)).mean()
        return batch.result((1 - share) * batch.losses.mean() + share * value, share, value)

    return TwoPoint(evaluate, loss, differentiable=False)


def virtual_adversarial(
    epsilon: float = 2.1,
    weight: Weight = 1.0,
    iterations: int = 1,
    xi: float = 1e-6,
    loss: Loss | None = cross_entropy,
) -> TwoPoint:
    """L(x) + λ mean_n KL(p(x) ‖ p(x + r)), ‖r‖₂ = ε along the dominant eigenvector of the KL's Hessian.

    p(x) is held constant. The direction comes from `iterations` steps of the power method with differences of size ξ,
    from a random start. As DataGrad: L1 = KL(p̂ ‖ p), r = φ y supplied, φ = ε, λ1 = λε; exact, since KL and its
    gradient vanish at x. loss=None leaves L(x) out, for batches without labels. In float32 take a larger ξ (1e-3)
    where the output hardly moves: the difference of size ξ is below rounding. Source: Miyato et al., arXiv
    1507.00677, 1704.03976.
    """
    if iterations < 1:
        raise ValueError(f"virtual_adversarial: iterations must be at least 1, got {iterations}")

    def evaluate(batch: Batch, step: int) -> Result:
        log_p = batch.output.detach().log_softmax(1)
        r = epsilon * _dominant(batch.model, batch.x.detach(), log_p, xi, iterations)
        value = divergence(log_p, batch.output_at(r)).mean()
        lam = at_step(weight, step)
        total = lam * value if loss is None else batch.losses.mean() + lam * value
        return batch.result(total, lam, value)

    return TwoPoint(evaluate, _nothing if loss is None else loss, differentiable=False)


def _dominant(model: Any, x: Tensor, log_p: Tensor, xi: float, iterations: int) -> Tensor:
    """Unit vectors (N, ...) along which KL(p ‖ p(x + r)) grows fastest."""
    u = steepest(torch.randn_like(x), "l2")
    for _ in range(iterations):
        moved = (x + xi * u).requires_grad_()
        total = divergence(log_p, output_aside(model, moved)).sum()
        u = steepest(torch.autograd.grad(total, moved)[0], "l2")
    return u


def _nothing(output: Tensor, target: Any) -> Tensor:
    return output.new_zeros(len(output))
