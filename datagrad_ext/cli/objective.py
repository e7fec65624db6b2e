"""The DataGrad objective (Ororbia, Kifer, Giles, arXiv 1601.07213) in ordinary autograd code.

    L_DG = mean_n loss_n + λ mean_n R(J_n),      J_n = ∂ loss_n / ∂ x_n

J_n is the gradient of sample n's own loss, so it is taken from the *sum* of the losses: the gradient of the
mean would be J_n / N, and R = squared L2 would shrink with the batch size. Everything is plain PyTorch, so
that the very same lines run on an accelerated and on an unmodified model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Penalty = Callable[[Tensor], Tensor]


def l1(data_gradient: Tensor) -> Tensor:
    """Σ |J| of each sample: (N, ...) to (N,)."""
    return data_gradient.flatten(1).abs().sum(1)


def l2_squared(data_gradient: Tensor) -> Tensor:
    """Σ J² of each sample, without a factor ½: (N, ...) to (N,)."""
    return data_gradient.flatten(1).square().sum(1)


@dataclass(frozen=True)
class Objective:
    """Cross-entropy, and, if there is a penalty, `weight` times its mean over the samples."""

    key: str
    label: str
    penalty: Penalty | None = None
    weight: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The scalar to minimise, on images (N, ...) and labels (N,)."""
        if self.penalty is None:
            return F.cross_entropy(model(images), labels)
        images = images.detach().requires_grad_()
        losses = F.cross_entropy(model(images), labels, reduction="none")
        (data_gradient,) = torch.autograd.grad(losses.sum(), images, create_graph=True)
        return losses.mean() + self.weight * self.penalty(data_gradient).mean()
