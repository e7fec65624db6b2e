"""Losses that the native path knows: which head of `ops.heads` a user's loss is.

A new loss is a head there and a row in `_ROWS`; what a head does not cover at some batch (`fits`) is done by
`Differentiated`, with autograd on the loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses
from ..ops.heads import CrossEntropy, Head, Kept, Pointwise, Score
from ..trace import hooked
from .losses import Loss, cross_entropy, means, score


@dataclass(frozen=True, eq=False)
class Differentiated(Head):
    """Any loss without parameters of its own, by autograd from the output on."""

    loss: Loss

    def forward(self, y: Tensor, target: Any, samples: int) -> tuple[Tensor, Tensor, Kept]:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            (mean,) = means(self.loss, leaf, target, samples)
            (delta,) = torch.autograd.grad(mean, leaf, torch.full_like(mean, samples), create_graph=True)
        return mean.detach().reshape(1), delta.detach(), (leaf, delta)

    def hvp(self, y: Tensor, target: Any, kept: Kept, v: Tensor) -> Tensor | None:
        leaf, delta = kept
        return torch.autograd.grad(delta, leaf, v, retain_graph=True)[0] if delta.requires_grad else None


_ROWS: dict[Any, Callable[..., Head]] = {
    F.cross_entropy: CrossEntropy,
    losses.cross_entropy: CrossEntropy,
    cross_entropy: partial(CrossEntropy, reduction="none"),
    F.mse_loss: partial(Pointwise, "squared"),
    F.l1_loss: partial(Pointwise, "absolute"),
    F.binary_cross_entropy_with_logits: partial(Pointwise, "logistic"),
    score: Score,
}
_MODULES: dict[type, tuple[Any, tuple[str, ...]]] = {
    nn.CrossEntropyLoss: (F.cross_entropy, ("weight", "ignore_index", "reduction", "label_smoothing")),
    nn.MSELoss: (F.mse_loss, ("reduction",)),
    nn.L1Loss: (F.l1_loss, ("reduction",)),
    nn.BCEWithLogitsLoss: (F.binary_cross_entropy_with_logits, ("weight", "pos_weight", "reduction")),
}


def head_of(loss: Loss) -> Head | None:
    """The head of a loss of the table: the function, a partial of it with options, or its module. None for others."""
    if type(loss) is FunctionType:
        row = _ROWS.get(loss)
        return None if row is None else row()
    if type(loss) is partial and not loss.args:
        return _with_options(loss.func, loss.keywords)
    if type(loss) in _MODULES and isinstance(loss, nn.Module) and True not in hooked([loss.__dict__]):
        function, names = _MODULES[type(loss)]
        return _with_options(function, {name: getattr(loss, name) for name in names})
    return None


def _with_options(function: Any, options: Mapping[str, Any]) -> Head | None:
    """The head with these options, None for an option that it does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    row = _ROWS.get(function) if type(function) is FunctionType else None
    if row is None or given.get("reduction", "mean") not in ("mean", "none"):
        return None
    try:
        return row(**given)
    except TypeError:  # class weights, or an option of another version
        return None
