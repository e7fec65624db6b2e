"""Figures of a trained network on images (n, 1, 28, 28): errors, and mean norms of the data gradient.

FGSM (Goodfellow, Shlens, Szegedy, arXiv 1412.6572): x' = clip(x + ε sign(∂ loss / ∂ x), 0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 500


@dataclass(frozen=True)
class Figures:
    """Shares of wrongly classified images, and means over the images of ‖J‖₁ and ‖J‖₂."""

    clean_error: float
    fgsm_error: list[float]
    mean_l1: float
    mean_l2: float


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, epsilons: Sequence[float]) -> Figures:
    """All figures of `model`, in evaluation mode, at the attack sizes `epsilons`."""
    model.eval()
    data_gradient = torch.cat(
        [_data_gradient(model, x, t) for x, t in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)]
    )
    direction = data_gradient.sign()
    attacked = [(images + epsilon * direction).clamp(0, 1) for epsilon in epsilons]
    rows = data_gradient.flatten(1)
    return Figures(
        clean_error=_error(model, images, labels),
        fgsm_error=[_error(model, x, labels) for x in attacked],
        mean_l1=rows.abs().sum(1).mean().item(),
        mean_l2=rows.norm(dim=1).mean().item(),
    )


def _data_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


@torch.no_grad()
def _error(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([model(chunk).argmax(1) for chunk in images.split(CHUNK)])
    return (predicted != labels).double().mean().item()
