"""Losses that the native path knows, as heads of a network: value, δ and Hessian-vector product by the output.

    mean = mean_n L_n(y)        δ = N ∂mean/∂y        hvp(v) = ∂⟨δ, v⟩/∂y

Letters: `y` output, `N` samples. δ is N times the gradient of the mean, so that the data gradient of it has the
samples' own gradients as rows. A new loss is a class with these maps and a row in `_ROWS`; what a head does not cover
at some batch (`fits`) is done by `Differentiated`, with autograd on the loss alone.
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
from ..ops._library import FLOATING
from ..trace import hooked
from .losses import Loss, cross_entropy, means, score
from .seeds import constant, mean_of

_ops = torch.ops.datagrad
_FEW = 128  # numbers that Python reads faster than an operation starts
Kept = tuple[Any, ...]


class Head:
    """A loss as a function of the network's output alone."""

    curved = True
    """Whether the Hessian is not zero."""
    reads_target = True

    def fits(self, y: Tensor, target: Any, samples: int) -> bool:
        """Whether the maps cover this batch."""
        raise NotImplementedError

    def forward(self, y: Tensor, target: Any, samples: int) -> tuple[Tensor, Tensor, Kept]:
        """The mean, δ, and what `hvp` needs."""
        raise NotImplementedError

    def hvp(self, y: Tensor, target: Any, kept: Kept, v: Tensor) -> Tensor | None:
        """∂⟨δ, v⟩/∂y, None for zero; only for a curved head."""
        raise NotImplementedError


@dataclass(frozen=True)
class CrossEntropy(Head):
    """Cross-entropy of logits (N, C) with class indices (N,) or probabilities (N, C); formulas: `ops.cross_entropy`."""

    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def fits(self, y: Tensor, target: Tensor, samples: int) -> bool:
        if target.dtype == torch.int64:
            fits = target.shape == y.shape[:1]
        else:
            fits = target.dtype == y.dtype and target.shape == y.shape and self.ignore_index < 0
        return (
            fits
            and y.dim() == 2
            and y.shape[0] == samples
            and y.shape[1] > 0
            and y.dtype in FLOATING
            and y.device == target.device
            and 0 <= self.label_smoothing <= 1
        )

    def forward(self, y: Tensor, target: Tensor, samples: int) -> tuple[Tensor, Tensor, Kept]:
        try:
            each, lse = _ops.cross_entropy_forward.default(y, target, self.label_smoothing, self.ignore_index)
        except RuntimeError as error:  # `fits` leaves one: a class index out of bounds
            raise IndexError(str(error)) from None
        mean, weight = self._mean(each, target)
        delta = _ops.cross_entropy_vjp.default(y, target, lse, weight, self.label_smoothing, self.ignore_index)
        return mean if mean.dtype == y.dtype else mean.to(y.dtype), delta, (lse, weight)

    def hvp(self, y: Tensor, target: Tensor, kept: Kept, v: Tensor) -> Tensor:
        found: tuple[Tensor, Tensor] = _ops.cross_entropy_hvp.default(
            y, target, *kept, v, self.label_smoothing, self.ignore_index
        )
        return found[0]

    def _mean(self, each: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mean, and N times the share of each row in it; 'mean' is over the rows that are not ignored."""
        if self.reduction == "none" or target.dtype != torch.int64 or self._counts_all(target):
            return mean_of(each), constant(1.0, each)
        counted = (target != self.ignore_index).sum(dtype=each.dtype)
        return each.sum() / counted, constant(1.0, each) * (each.shape[0] / counted)

    def _counts_all(self, target: Tensor) -> bool:
        """Whether no row is ignored, where the host knows without waiting."""
        if target.device.type != "cpu":
            return False
        if target.shape[0] <= _FEW:
            return self.ignore_index not in target.tolist()
        return not bool((target == self.ignore_index).any())


@dataclass(frozen=True)
class Squared(Head):
    """The mean of (y − target)² over all entries."""

    reduction: str = "mean"

    def fits(self, y: Tensor, target: Tensor, samples: int) -> bool:
        return y.shape == target.shape and y.dtype == target.dtype and y.device == target.device and y.numel() > 0

    def forward(self, y: Tensor, target: Tensor, samples: int) -> tuple[Tensor, Tensor, Kept]:
        residual, factor = y - target, 2 * samples / y.numel()
        return residual.square().mean(), residual * factor, (factor,)

    def hvp(self, y: Tensor, target: Tensor, kept: Kept, v: Tensor) -> Tensor:
        return v * kept[0]


@dataclass(frozen=True)
class Score(Head):
    """The sum of each sample's outputs: a critic's score, whose Hessian is zero."""

    curved = False
    reads_target = False

    def fits(self, y: Tensor, target: Any, samples: int) -> bool:
        return y.dim() > 0 and y.shape[0] == samples

    def forward(self, y: Tensor, target: Any, samples: int) -> tuple[Tensor, Tensor, Kept]:
        return y.sum() / samples, torch.ones_like(y), ()


@dataclass(frozen=True, eq=False)
class Differentiated(Head):
    """Any loss without parameters of its own, by autograd from the output on."""

    loss: Loss

    def forward(self, y: Tensor, target: Any, samples: int) -> tuple[Tensor, Tensor, Kept]:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            (mean,) = means(self.loss, leaf, target, samples)
            (delta,) = torch.autograd.grad(mean, leaf, torch.full_like(mean, samples), create_graph=True)
        return mean.detach(), delta.detach(), (leaf, delta)

    def hvp(self, y: Tensor, target: Any, kept: Kept, v: Tensor) -> Tensor | None:
        leaf, delta = kept
        return torch.autograd.grad(delta, leaf, v, retain_graph=True)[0] if delta.requires_grad else None


_ROWS: dict[Any, Callable[..., Head]] = {
    F.cross_entropy: CrossEntropy,
    losses.cross_entropy: CrossEntropy,
    cross_entropy: partial(CrossEntropy, reduction="none"),
    F.mse_loss: Squared,
    score: Score,
}
_MODULES: dict[type, tuple[Any, tuple[str, ...]]] = {
    nn.CrossEntropyLoss: (F.cross_entropy, ("weight", "ignore_index", "reduction", "label_smoothing")),
    nn.MSELoss: (F.mse_loss, ("reduction",)),
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
