"""Losses as heads of a network: value, δ and Hessian-vector product by the output, composed of ops.

    mean of the losses        δ = N ∂mean/∂y        hvp(v) = ∂⟨δ, v⟩/∂y

Letters: `y` output, `N` samples. δ is N times the gradient of the mean, so that the data gradient of it has the
samples' own gradients as rows. `name` and `constants` are how the op `chain_penalty_step` is told of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._library import FLOATING, require

_ops = torch.ops.datagrad
Kept = tuple[Any, ...]


class Head:
    """A loss as a function of the network's output alone."""

    name: str
    constants: tuple[float, ...] = ()
    curved: bool = True
    """Whether the Hessian is not zero."""
    reads_target: ClassVar[bool] = True

    def fits(self, shape: Sequence[int], like: Tensor, target: Any, samples: int) -> bool:
        """Whether the maps cover this batch: y has this shape, and the dtype and device of `like`."""
        raise NotImplementedError

    def forward(self, y: Tensor, target: Any, samples: int) -> tuple[Tensor, Tensor, Kept]:
        """Losses, in one dimension, whose mean is the loss, δ, and what `hvp` needs."""
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

    name = "cross_entropy"

    @property
    def constants(self) -> tuple[float, ...]:  # type: ignore[override]
        """Label smoothing, the index to ignore, and whether the mean is over the rows that are not ignored."""
        return self.label_smoothing, self.ignore_index, self.reduction == "mean"

    def fits(self, shape: Sequence[int], like: Tensor, target: Tensor, samples: int) -> bool:
        if target.dtype == torch.int64:
            fits = target.shape == shape[:1]
        else:
            fits = target.dtype == like.dtype and target.shape == shape and self.ignore_index < 0
        return (
            fits
            and len(shape) == 2
            and shape[0] == samples
            and shape[1] > 0
            and like.dtype in FLOATING
            and like.device == target.device
            and 0 <= self.label_smoothing <= 1
        )

    def forward(self, y: Tensor, target: Tensor, samples: int) -> tuple[Tensor, Tensor, Kept]:
        losses, lse, weight, delta = _ops.cross_entropy_head.default(
            y, target, self.label_smoothing, self.ignore_index, self.reduction == "mean"
        )
        return losses, delta, (lse, weight)

    def hvp(self, y: Tensor, target: Tensor, kept: Kept, v: Tensor) -> Tensor:
        found: tuple[Tensor, Tensor] = _ops.cross_entropy_hvp.default(
            y, target, *kept, v, self.label_smoothing, self.ignore_index
        )
        return found[0]


class PointwiseLoss(NamedTuple):
    """A loss of one output y and its target t, and its derivatives by y; no second: it is zero."""

    value: Callable[[Tensor, Tensor], Tensor]
    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor], Tensor | float] | None = None


def _logistic_second(y: Tensor, t: Tensor) -> Tensor:
    return torch.sigmoid(y) * torch.sigmoid(-y)


POINTWISE = {
    "squared": PointwiseLoss(lambda y, t: (y - t).square(), lambda y, t: 2 * (y - t), lambda y, t: 2.0),
    "absolute": PointwiseLoss(lambda y, t: (y - t).abs(), lambda y, t: (y - t).sign()),
    "logistic": PointwiseLoss(lambda y, t: F.softplus(y) - t * y, lambda y, t: torch.sigmoid(y) - t, _logistic_second),
}


@dataclass(frozen=True)
class Pointwise(Head):
    """The mean of a row of `POINTWISE` over all entries, reduction 'mean' and 'none' alike."""

    name: str
    reduction: str = "mean"

    @property
    def curved(self) -> bool:  # type: ignore[override]
        return POINTWISE[self.name].second is not None

    def fits(self, shape: Sequence[int], like: Tensor, target: Any, samples: int) -> bool:
        return (
            len(shape) > 0
            and shape[0] == samples
            and target.shape == shape
            and target.dtype == like.dtype
            and target.device == like.device
            and 0 not in shape
        )

    def forward(self, y: Tensor, target: Tensor, samples: int) -> tuple[Tensor, Tensor, Kept]:
        row, factor = POINTWISE[self.name], samples / max(y.numel(), 1)
        return row.value(y, target).flatten(), row.first(y, target) * factor, (factor,)

    def hvp(self, y: Tensor, target: Tensor, kept: Kept, v: Tensor) -> Tensor:
        second = POINTWISE[self.name].second
        assert second is not None
        return v * (second(y, target) * kept[0])


@dataclass(frozen=True)
class Score(Head):
    """The sum of each sample's outputs: a critic's score, whose Hessian is zero."""

    name = "score"
    curved = False
    reads_target = False

    def fits(self, shape: Sequence[int], like: Tensor, target: Any, samples: int) -> bool:
        return len(shape) > 0 and shape[0] == samples

    def forward(self, y: Tensor, target: Any, samples: int) -> tuple[Tensor, Tensor, Kept]:
        return (y.flatten(1) if y.dim() > 1 else y.unsqueeze(1)).sum(1), torch.ones_like(y), ()


def head_named(op_name: str, name: str, constants: Sequence[float]) -> Head:
    """The head of this name, with these constants."""
    expected = 3 if name == "cross_entropy" else 0
    names = ("cross_entropy", *POINTWISE, "score")
    require(name in names, f"{op_name}: a loss must be one of {', '.join(names)}, got '{name}'")
    require(len(constants) == expected, f"{op_name}: {name} has {expected} constants, got {len(constants)}")
    if name == "score":
        return Score()
    if name != "cross_entropy":
        return Pointwise(name)
    smoothing, ignored, over_counted = constants
    return CrossEntropy("mean" if over_counted else "none", smoothing, int(ignored))
