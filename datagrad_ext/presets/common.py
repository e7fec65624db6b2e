"""Losses that presets share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(log_p: Tensor, output: Tensor) -> Tensor:
    """KL(p ‖ softmax(output)) of each sample (N,), with log p (N, C)."""
    return F.kl_div(output.log_softmax(1), log_p, reduction="none", log_target=True).sum(1)
