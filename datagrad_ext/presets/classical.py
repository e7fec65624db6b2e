"""Penalties from before adversarial training, and the baselines that DataGrad is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..objective import DataGrad, Result, Term, TermResult, components
from ..objective.losses import Loss, check_loss, cross_entropy
from ..objective.schedules import Weight, at_step, scaled
from ..penalties import Directional, l2_squared


def double_backprop(weight: Weight, loss: Loss = cross_entropy) -> DataGrad:
    """L + λ mean_n ½‖J_n‖². Exact.

    Source: Drucker and LeCun, IEEE Trans. Neural Networks 3(6), 1992. For a published weight on the squared norm of a
    batch-mean loss's gradient, summed over N samples: λ here is 2/N of it.
    """
    return DataGrad(loss, Term(scaled(weight, 0.5), l2_squared))


def contractive(weight: Weight, layer: str | None = None, loss: Loss | None = None) -> DataGrad:
    """L + λ mean_n ‖∂h_n/∂x_n‖_F², h the output of the submodule `layer` (None: of the model). Exact.

    One data gradient for each component of h. For a sigmoid layer it is Σ_i (h_i (1 − h_i))² Σ_j W_ij². `loss` is the
    reconstruction error, or None for the penalty alone. Source: Rifai et al., ICML 2011.
    """
    return DataGrad(loss, Term(weight, l2_squared, components, output=layer))


def deep_contractive(
    weights: Mapping[str, Weight] | Sequence[tuple[str, Weight]], loss: Loss | None = cross_entropy
) -> DataGrad:
    """L + Σ_k λ_k mean_n ‖∂h_k/∂h_{k−1}‖_F² over submodules h_1, h_2, ... named in forward order, h_0 = x. Exact.

    Source: Gu and Rigazio, arXiv 1412.5068, here with squared Frobenius norms.

    Args:
        weights: name of a submodule -> λ_k, in the order of the forward pass.
    """
    pairs = list(weights.items()) if isinstance(weights, Mapping) else list(weights)
    before = [None, *(name for name, _ in pairs)]
    terms = [
        Term(weight, l2_squared, components, inputs=previous, output=name)
        for previous, (name, weight) in zip(before, pairs, strict=False)
    ]
    return DataGrad(loss, terms)


def tangent_prop(weight: Weight, directions: Tensor | Callable[[Any], Tensor], loss: Loss = cross_entropy) -> DataGrad:
    """L + λ mean_n Σ_k Σ_i (v_kᵀ ∇f_i)², f_i the outputs of the model. Exact.

    Source: Simard, Victorri, LeCun, Denker, NIPS 1991, with squared distances. No factor ½.

    Args:
        directions: v (K, ...) for all samples, or a function of the batch's target that returns (N, K, ...).
    """
    if isinstance(directions, Tensor):
        return DataGrad(loss, Term(weight, Directional(directions), components))
    of_target = directions
    penalty = lambda J, target: Directional(of_target(target))(J)  # noqa: E731
    return DataGrad(loss, Term(weight, penalty, components, with_target=True))


class _WeightPenalty(DataGrad):
    """L + λ Σ R(w) over the parameters with two or more dimensions (weights, not biases or gains)."""

    def __init__(self, weight: Weight, norm: Callable[[Tensor], Tensor], loss: Loss) -> None:
        super().__init__(loss)
        self.weight, self.norm = weight, norm

    def _evaluate(self, model: nn.Module, x: Any, target: Any) -> Result:
        if not isinstance(model, nn.Module):
            raise TypeError(f"a penalty on weights needs a torch.nn.Module, got {type(model).__name__}")
        result = super()._evaluate(model, x, target)
        weight, parts = at_step(self.weight, self.step), [self.norm(w) for w in model.parameters() if w.dim() > 1]
        if not parts:
            raise ValueError(f"{type(model).__name__} has no parameter with two or more dimensions to penalise")
        value = torch.stack(parts).sum()
        return Result(result.total + weight * value, result.loss, (TermResult(weight, value.detach(), None),))


def weight_l1(weight: Weight, loss: Loss = cross_entropy) -> DataGrad:
    """L + λ Σ |w| over weights (parameters with two or more dimensions): the classical baseline. Exact."""
    return _WeightPenalty(weight, lambda w: w.abs().sum(), loss)


def weight_l2(weight: Weight, loss: Loss = cross_entropy) -> DataGrad:
    """L + λ Σ w² over weights (parameters with two or more dimensions), no factor ½: the classical baseline. Exact.

    An optimiser's weight decay of wd adds wd·w to the gradient, so λ = wd/2.
    """
    return _WeightPenalty(weight, lambda w: w.square().sum(), loss)


def multi_task(losses: Sequence[Loss], weights: Sequence[float], terms: Sequence[Term] = ()) -> DataGrad:
    """Σ_i μ_i mean L_i: several tasks on one trunk ("multi-task cues"), with or without penalties. Exact.

    Each loss reads its head and its target from (output, target). With `terms` that have a loss of their own this is
    the combination of multi-task learning and DataGrad. Source: Ororbia, Kifer, Giles, arXiv 1601.07213.

    Raises:
        ValueError: not one weight for each loss.
    """
    pairs = list(losses), list(weights)
    for loss in pairs[0]:
        check_loss(loss, "multi_task: loss")
    if len(pairs[0]) != len(pairs[1]) or not pairs[0]:
        raise ValueError(
            f"multi_task: got {len(pairs[0])} losses and {len(pairs[1])} weights, one weight for each loss"
        )

    def together(output: Any, target: Any) -> Tensor:
        return torch.stack([mu * loss(output, target).mean() for loss, mu in zip(*pairs, strict=True)]).sum()

    return DataGrad(together, terms)
