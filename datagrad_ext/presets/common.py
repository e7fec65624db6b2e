"""Losses that presets share."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def score(output: Tensor, target: Any = None) -> Tensor:
    """The sum of each sample's outputs, (N, ...) to (N,): a critic's score, a field's value, an energy."""
    return output if output.dim() == 1 else output.flatten(1).sum(1)


def divergence(log_p: Tensor, output: Tensor) -> Tensor:
    """KL(p ‖ softmax(output)) of each sample (N,), with log p (N, C)."""
    return F.kl_div(output.log_softmax(1), log_p, reduction="none", log_target=True).sum(1)
