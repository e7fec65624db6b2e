"""Geometry of the balls that attacks stay in, for each sample of (N, ...): norm "linf" or "l2"."""

from __future__ import annotations

import torch
from torch import Tensor

from ..penalties import l2

Range = tuple["float | Tensor", "float | Tensor"]


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """(N,) with the dimensions of `like` (N, ...) as ones, in its dtype."""
    return v.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def steepest(J: Tensor, norm: str) -> Tensor:
    """The direction of length 1 with the largest product with J: sign J, or J/‖J‖₂; 0 where J is 0."""
    if norm == "linf":
        return J.sign()
    length = per_sample(l2(J), J)
    return torch.where(length > 0, J / torch.where(length > 0, length, 1.0), 0.0)


def projected(r: Tensor, epsilon: float, norm: str) -> Tensor:
    """The nearest point of the ball of radius ε."""
    if norm == "linf":
        return r.clamp(-epsilon, epsilon)
    length = per_sample(l2(r), r)
    return torch.where(length > epsilon, r * (epsilon / torch.where(length > epsilon, length, 1.0)), r)


def random(x: Tensor, epsilon: float, norm: str) -> Tensor:
    """A point drawn uniformly from the ball of radius ε, for each sample of x, by torch's global generator."""
    if norm == "linf":
        return epsilon * (2 * torch.rand_like(x) - 1)
    dimensions = max(1, x[:1].numel())
    radius = torch.rand(len(x), device=x.device, dtype=x.dtype).pow(1 / dimensions)
    return epsilon * per_sample(radius, x) * steepest(torch.randn_like(x), norm)


def clipped(x: Tensor, clip: Range | None) -> Tensor:
    """x in the range (lowest, highest): numbers, or tensors that broadcast to x."""
    if clip is None:
        return x
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in clip)
    return torch.minimum(torch.maximum(x, low), high)
