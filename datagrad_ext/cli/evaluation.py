"""Figures of a trained network on images (n, 1, 28, 28): errors, and mean norms of the data gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datagrad_ext.attacks import data_gradient, evaluate_robustness, fgsm

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
    batches = list(zip(images.split(CHUNK), labels.split(CHUNK), strict=True))
    found = evaluate_robustness(model, batches, {"FGSM": fgsm}, epsilons)
    rows = torch.cat([data_gradient(model, x, t) for x, t in batches]).flatten(1)
    return Figures(
        clean_error=found.clean_error,
        fgsm_error=list(found.errors["FGSM"]),
        mean_l1=rows.abs().sum(1).mean().item(),
        mean_l2=rows.norm(dim=1).mean().item(),
    )
