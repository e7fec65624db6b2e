"""Losses with fused first and second derivatives.

`cross_entropy` has three native passes where PyTorch's double backward has a chain of small ones: the value,
δ = weight (Y p − y), and the Hessian-vector product that the tangent sweep needs. Letters and formulas:
`ops.cross_entropy`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops._library import FLOATING
from .ops._plain import needs_plain
from .ops.cross_entropy import cross_entropy_hvp

_ops = torch.ops.datagrad


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Equivalent to: torch.nn.functional.cross_entropy(input, target, weight, ...), with all its derivatives.

    input (C,), (N, C) or (N, C, d1, ...) logits; target class indices (int64, without the dimension C) or
    probabilities (the shape and dtype of input). Class weights, uint8 targets, targets in another dtype than
    the logits, targets that require a gradient, torch.func transforms, torch.compile, forward-mode AD,
    autocast, and whatever is an error are PyTorch's own function.
    """
    if weight is not None or not _fused(input, target, ignore_index, reduction, label_smoothing):
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    indices = not target.is_floating_point()
    rows = target.reshape(-1) if indices else _rows(target)
    losses = _CrossEntropy.apply(_rows(input), rows, float(label_smoothing), ignore_index)
    if reduction == "none":
        shape = target.shape if indices else _without_classes(target)
        return losses.view(shape).to(input.dtype)
    total = losses.sum()
    if reduction == "mean":
        total = total / ((rows != ignore_index).sum() if indices else len(rows) or torch.nan)
    return total.to(input.dtype)


def _fused(input: Tensor, target: Tensor, ignore_index: int, reduction: str, label_smoothing: float) -> bool:
    """Whether the ops cover this call; what they do not, PyTorch computes, or refuses in its own words."""
    if target.dtype == torch.int64:
        fits = input.dim() > 0 and target.shape == _without_classes(input)
    else:
        # The gradient with respect to target, -weight log p, is not one of the ops' results.
        fits = target.dtype == input.dtype and target.shape == input.shape and not target.requires_grad
        fits = fits and ignore_index < 0
    return (
        fits
        and input.dtype in FLOATING
        and input.device == target.device
        and input.shape[_class_dim(input)] > 0
        and reduction in ("none", "mean", "sum")
        and 0 <= label_smoothing <= 1
        and not needs_plain(input, target)
    )


def _class_dim(t: Tensor) -> int:
    return 0 if t.dim() == 1 else 1


def _without_classes(t: Tensor) -> torch.Size:
    return t.shape[:0] if t.dim() == 1 else t.shape[:1] + t.shape[2:]


def _rows(t: Tensor) -> Tensor:
    """(C,), (N, C) or (N, C, d1, ...) as rows of C classes."""
    if t.dim() == 2:
        return t
    return t.unsqueeze(0) if t.dim() == 1 else t.movedim(1, -1).flatten(0, -2)


class _CrossEntropy(torch.autograd.Function):
    """Loss of each row; its derivative is `_Delta`, so that second derivatives are fused, too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int) -> Tensor:
        loss, lse = _ops.cross_entropy_forward.default(logits, target, label_smoothing, ignore_index)
        ctx.constants = label_smoothing, ignore_index
        ctx.save_for_backward(logits, target, lse)
        return loss

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None, None]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _Delta.apply(*saved, weight, *ctx.constants), None, None, None
        return _ops.cross_entropy_vjp.default(*saved, weight, *ctx.constants), None, None, None


class _Delta(torch.autograd.Function):
    """δ = weight (Y p − y) as a function of logits and weight; lse is a constant in it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        lse: Tensor,
        weight: Tensor,
        label_smoothing: float,
        ignore_index: int,
    ) -> Tensor:
        ctx.constants = label_smoothing, ignore_index
        ctx.save_for_backward(logits, target, lse, weight)
        return _ops.cross_entropy_vjp.default(logits, target, lse, weight, label_smoothing, ignore_index)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None, Tensor, None, None]:
        logits, target, lse, weight = ctx.saved_tensors
        # A third derivative goes through the reference: an op is invisible to autograd.
        hvp = cross_entropy_hvp if torch.is_grad_enabled() else _ops.cross_entropy_hvp.default
        hv, dweight = hvp(logits, target, lse, weight, v, *ctx.constants)
        return hv, None, None, dweight, None, None
