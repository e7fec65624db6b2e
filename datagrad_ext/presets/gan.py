"""Gradient penalties of GANs: objectives that are the penalty alone, to be added to the loss of critic or generator.

    (critic_loss + penalty(critic, real, fake).total).backward()

A critic may return (N,), (N, 1) or a map of scores (N, ...), whose sum is the score of a sample.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attacks.ball import per_sample
from ..objective import DataGrad, Result, Term
from ..objective.losses import score
from ..objective.schedules import Weight, scaled
from ..penalties import Centred, OneSided, l2, l2_squared


class _Interpolated(DataGrad):
    """A penalty on the line between real and fake samples, at one random point for each pair."""

    def _evaluate(self, model: Any, x: Tensor, target: Tensor) -> Result:
        if not isinstance(target, Tensor) or target.shape != x.shape:
            got = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(f"real and fake samples must have the same shape; real is {list(x.shape)}, fake is {got}")
        t = per_sample(torch.rand(len(x), device=x.device, dtype=x.dtype), x)
        return super()._evaluate(model, t * x.detach() + (1 - t) * target.detach(), None)


class _Around(DataGrad):
    """A penalty near real samples, at x + α s std(x) u with α, u uniform in [0, 1), s the scale."""

    scale = 0.5

    def _evaluate(self, model: Any, x: Tensor, target: Any) -> Result:
        x = x.detach()
        alpha = per_sample(torch.rand(len(x), device=x.device, dtype=x.dtype), x)
        return super()._evaluate(model, x + alpha * self.scale * x.std() * torch.rand_like(x), None)


def wgan_gp(weight: Weight = 10.0, centre: float = 1.0, one_sided: bool = False) -> DataGrad:
    """λ mean(‖∇D(x̂)‖ − c)², x̂ = t·real + (1 − t)·fake, t uniform: called as (critic, real, fake). Exact.

    Source: Gulrajani et al., arXiv 1704.00028; λ 10, five steps of the critic for one of the generator. Where ∇D = 0
    the gradient is 0, not NaN. `one_sided` is max(0, ‖∇D‖ − c)². Penalties of samples stay apart only if the critic has
    no batch normalisation. Real and fake are held constant.
    """
    penalty = (OneSided if one_sided else Centred)(centre)
    return _Interpolated(None, Term(weight, penalty, score))


def r1(gamma: Weight = 10.0) -> DataGrad:
    """(γ/2) mean‖∇D(x)‖² on real samples: called as (critic, real). Exact.

    Source: Mescheder, Geiger, Nowozin, arXiv 1801.04406; γ 10. One public code has no ½: take twice its γ here.
    """
    return DataGrad(None, Term(scaled(gamma, 0.5), l2_squared, score))


def r2(gamma: Weight = 10.0) -> DataGrad:
    """(γ/2) mean‖∇D(x)‖² on generated samples: called as (critic, fake). Exact; the formula of `r1`.

    Source: Mescheder, Geiger, Nowozin, arXiv 1801.04406; γ 10.
    """
    return r1(gamma)


def dragan(weight: Weight = 10.0, k: float = 1.0) -> DataGrad:
    """λ mean(‖∇D(x̂)‖ − k)², x̂ = x + α·0.5·std(x)·u near real samples: called as (critic, real). Exact.

    α is uniform for each sample, u for each entry, std that of the whole batch. Source: Kodali, Abernethy, Hays, Kira,
    arXiv 1705.07215; λ 10, k 1.
    """
    return _Around(None, Term(weight, Centred(k), score))


class _Lengths:
    """(‖J‖ − a)², a the moving average of mean ‖J‖, this batch included. (N, L, D) is averaged over L."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.mean: Tensor | None = None

    def __call__(self, J: Tensor) -> Tensor:
        lengths = l2(J) / (math.sqrt(J.shape[1]) if J.dim() > 2 else 1.0)
        before = torch.zeros_like(lengths.detach().mean()) if self.mean is None else self.mean
        mean = before.lerp(lengths.mean(), self.decay)
        self.mean = mean.detach()
        return (lengths - mean).square()


def path_length(weight: Weight = 2.0, decay: float = 0.01) -> DataGrad:
    """λ mean(‖J_wᵀ y‖ − a)², y normal noise over the square root of the image's pixels: called as (generator, w).

    w (N, D) or (N, L, D) are the latents that the generator reads; those with L styles have the root mean over L. a
    is a moving average that starts at 0, with this batch in it, and the gradient flows through that share. Exact.
    Source: Karras et al., StyleGAN2, arXiv 1912.04958; weight 2, decay 0.01, `lazy(..., every=4)`.
    """

    def noisy(images: Tensor, target: Any) -> Tensor:
        noise = torch.randn_like(images) / math.sqrt(math.prod(images.shape[2:]))
        return score(images * noise)

    return DataGrad(None, Term(weight, _Lengths(decay), noisy))


def lazy(objective: DataGrad, every: int = 16) -> DataGrad:
    """The objective with its penalties at every k-th call only, k times as strong; the calls between cost nothing more.

    Lazy regularisation: Karras et al., StyleGAN2, arXiv 1912.04958; every 16 steps for the discriminator (`r1`), 4 for
    the generator (`path_length`), with the settings of Adam from `objective.lazy_adam`. A loss of the objective's own
    is there at every call.

    Raises:
        TypeError: an objective that is not made of terms.
    """
    if not isinstance(objective, DataGrad) or not objective.terms:
        raise TypeError(f"lazy: needs a DataGrad objective with terms, got {type(objective).__name__}")
    found = copy.copy(objective)
    found.terms = tuple(replace(term, every=every) for term in objective.terms)
    return found
