"""Cross-entropy of logits, its gradient and its Hessian-vector product, row by row.

    loss = Σ_c y_c (lse − z_c)      δ = weight (Y p − y)      H v = weight Y (p∘v − p (p·v))

Letters: `z` logits (N, C), `p` = softmax z, `lse` = log Σ exp z (N,), `y` target distribution,
`Y` = Σ_c y_c, `weight` (N,) cotangent of the loss, `v` (N, C) tangent of the logits. The target is class
indices, int64 (N,), or probabilities (N, C) in the logits' dtype; with label smoothing s,
y = (1 − s) target + s / C. A row whose class index is `ignore_index` has loss 0 and gradients 0, whatever
its logits are.

Everything runs in float32 for the 16-bit formats, else in the logits' dtype; `loss`, `lse`, `weight` and the
gradient of the weight stay there, (N, C) results are rounded to the logits' dtype. The kernels take p as
exp(z − lse) divided by its sum, so that the rounding of lse cancels. The references are differentiable PyTorch to
every order, in logits, weight and v. Where the loss is NaN, lse may be NaN or infinite.

Class indices out of bounds: an error on the CPU; NaN in that row from the CUDA kernels, which do not wait for
the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import accumulation_dtype, op, require, require_alike, require_floating, require_shape

IGNORE_INDEX = -100


@op(
    "cross_entropy_forward(Tensor logits, Tensor target, float label_smoothing, int ignore_index=-100)"
    " -> (Tensor loss, Tensor lse)"
)
def cross_entropy_forward(
    logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Loss of each row and its log-sum-exp, both (N,)."""
    _check("cross_entropy_forward", logits, target, label_smoothing)
    z = logits.to(accumulation_dtype(logits.dtype))
    log_p = torch.log_softmax(z, 1)
    if target.is_floating_point():
        loss = -(_smoothed(target.to(z.dtype), label_smoothing) * log_p).sum(1)
    else:
        keep, index = _index(target, ignore_index)
        loss = -(1 - label_smoothing) * log_p.gather(1, index).squeeze(1)
        if label_smoothing:  # a class that is ruled out (logit -inf) counts only here
            loss = loss - label_smoothing * log_p.mean(1)
        loss = torch.where(keep, loss, 0.0)
    return loss, torch.logsumexp(z, 1)


@op(
    "cross_entropy_vjp(Tensor logits, Tensor target, Tensor lse, Tensor weight, float label_smoothing,"
    " int ignore_index=-100) -> Tensor"
)
def cross_entropy_vjp(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    weight: Tensor,
    label_smoothing: float,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """δ = weight (Y p − y), (N, C)."""
    _check("cross_entropy_vjp", logits, target, label_smoothing, lse=lse, weight=weight)
    p = _softmax(logits)
    keep, y = _distribution(p, target, ignore_index)
    delta = weight.unsqueeze(1) * _residual(p, y, label_smoothing)
    return _kept(keep, delta, logits.dtype)


@op(
    "cross_entropy_head(Tensor logits, Tensor target, float label_smoothing, int ignore_index, bool over_counted)"
    " -> (Tensor loss, Tensor lse, Tensor weight, Tensor delta)"
)
def cross_entropy_head(
    logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int, over_counted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value and δ of a mean at once: weight · loss of each row, lse, the weight, and δ for it.

    The weight of every row is 1, or, with `over_counted`, N over the number of rows that are not ignored: so the mean
    of the losses is that over the rows that count. NaN where none counts.
    """
    _check("cross_entropy_head", logits, target, label_smoothing)
    loss, lse = cross_entropy_forward(logits, target, label_smoothing, ignore_index)
    weight = torch.ones_like(loss)
    if over_counted and not target.is_floating_point():
        weight = weight * (len(target) / (target != ignore_index).sum(dtype=loss.dtype))
    return loss * weight, lse, weight, cross_entropy_vjp(logits, target, lse, weight, label_smoothing, ignore_index)


@op(
    "cross_entropy_hvp(Tensor logits, Tensor target, Tensor lse, Tensor weight, Tensor v,"
    " float label_smoothing, int ignore_index=-100) -> (Tensor hv, Tensor dweight)"
)
def cross_entropy_hvp(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    weight: Tensor,
    v: Tensor,
    label_smoothing: float,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Tensor, Tensor]:
    """Gradient of ⟨δ, v⟩ with respect to the logits, H v (N, C), and to the weight, (Y p − y)·v (N,)."""
    _check("cross_entropy_hvp", logits, target, label_smoothing, lse=lse, weight=weight)
    require_alike("cross_entropy_hvp", "v", v, "logits", logits)
    require_shape("cross_entropy_hvp", "v", v, logits.shape)
    p, v = _softmax(logits), v.to(lse.dtype)
    keep, y = _distribution(p, target, ignore_index)
    total = (1 - label_smoothing) * y.sum(1) + label_smoothing
    hv = (weight * total).unsqueeze(1) * p * (v - (p * v).sum(1, keepdim=True))
    dweight = (_residual(p, y, label_smoothing) * v).sum(1)
    return _kept(keep, hv, logits.dtype), torch.where(keep, dweight, 0.0)


def _kept(keep: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C) results, 0 in the rows that are ignored."""
    return torch.where(keep.unsqueeze(1), t, 0.0).to(dtype).contiguous()


def _softmax(logits: Tensor) -> Tensor:
    """p by way of its logarithm, which keeps p near 1 to the last bit; lse only spares the kernels a pass."""
    return torch.log_softmax(logits.to(accumulation_dtype(logits.dtype)), 1).exp()


def _smoothed(y: Tensor, label_smoothing: float) -> Tensor:
    return (1 - label_smoothing) * y + label_smoothing / y.shape[1]


def _index(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which rows count, (N,), and an index for every row, (N, 1)."""
    keep = target != ignore_index
    return keep, torch.where(keep, target, 0).unsqueeze(1)


def _distribution(p: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which rows count, (N,), and their targets as probabilities without smoothing, (N, C)."""
    if target.is_floating_point():
        return target.new_ones(len(target), dtype=torch.bool), target.to(p.dtype)
    keep, index = _index(target, ignore_index)
    return keep, torch.zeros_like(p).scatter(1, index, 1.0)


def _residual(p: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Y p − y. The two parts are smoothed after their differences are taken, which cancel."""
    residual = target.sum(1, keepdim=True) * p - target
    if label_smoothing:
        residual = (1 - label_smoothing) * residual + label_smoothing * (p - 1 / p.shape[1])
    return residual


def _check(op_name: str, logits: Tensor, target: Tensor, label_smoothing: float, **per_row: Tensor) -> None:
    require_floating(op_name, "logits", logits)
    require(
        logits.dim() == 2 and logits.shape[1] > 0,
        f"{op_name}: logits must have shape [N, C] with at least one class, got {list(logits.shape)}",
    )
    require(
        0 <= label_smoothing <= 1,
        f"{op_name}: label_smoothing must be from 0 to 1, got {label_smoothing:g}",
    )
    indices = target.dtype == torch.int64
    require(
        indices or target.dtype == logits.dtype,
        f"{op_name}: target must be int64 class indices or probabilities of the logits' dtype "
        f"{_text(logits.dtype)}, got {_text(target.dtype)}",
    )
    _require_device(op_name, "target", target, logits)
    require_shape(op_name, "target", target, logits.shape[:1] if indices else logits.shape)
    wide = accumulation_dtype(logits.dtype)
    for name, t in per_row.items():
        require(t.dtype == wide, f"{op_name}: {name} must have dtype {_text(wide)}, got {_text(t.dtype)}")
        _require_device(op_name, name, t, logits)
        require_shape(op_name, name, t, logits.shape[:1])


def _require_device(op_name: str, name: str, t: Tensor, logits: Tensor) -> None:
    require(
        t.device == logits.device,
        f"{op_name}: {name} must be on logits's device {logits.device}, got {t.device}",
    )


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
