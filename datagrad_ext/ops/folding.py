"""A norm by running statistics folded into the layer before it, W′ = s W and b′ = s (c − μ) + b, and the way back.

    fold_norm     [W′, b′, kept] with the rows r = (var + ε)^(−½), s = w r, c − μ, μ, var of `kept`
    unfold_norm   [W̄, w̄, c̄] = [s W̄′, r s̄, s b̄′] with s̄ = Σ W W̄′ + (c − μ) b̄′, without c̄ if there is no b̄′

Letters as in layers/folded.py. The outputs are the first dimension of the weight; the sum is over all others.
Everything has the weight's dtype, float32 or float64, and W′ and W̄ have its layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import in_layout, is_channels_last, op, require, require_alike, require_shape


@op(
    "fold_norm(Tensor weight, Tensor? bias, Tensor mean, Tensor var, Tensor? norm_weight, Tensor? norm_bias, float eps)"
    " -> Tensor[]"
)
def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> list[Tensor]:
    """[W′, b′, kept]."""
    _check("fold_norm", weight)
    vectors = {"bias": bias, "mean": mean, "var": var, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, vector in vectors.items():
        if vector is not None:
            require_alike("fold_norm", name, vector, "weight", weight)
            require_shape("fold_norm", name, vector, weight.shape[:1])
    r = (var + eps).rsqrt()
    s = r if norm_weight is None else norm_weight * r
    shift = -mean if bias is None else bias - mean
    moved = s * shift if norm_bias is None else s * shift + norm_bias
    return [_in_layout_of(weight, weight * _along(s, weight)), moved, torch.stack([r, s, shift, mean, var])]


@op("unfold_norm(Tensor weight_bar, Tensor? bias_bar, Tensor weight, Tensor kept) -> Tensor[]")
def unfold_norm(weight_bar: Tensor, bias_bar: Tensor | None, weight: Tensor, kept: Tensor) -> list[Tensor]:
    """[W̄, w̄, c̄]."""
    _check("unfold_norm", weight)
    outputs = weight.shape[:1]
    for name, tensor, shape in (
        ("weight_bar", weight_bar, weight.shape),
        ("bias_bar", bias_bar, outputs),
        ("kept", kept, (5, *outputs)),
    ):
        if tensor is not None:
            require_alike("unfold_norm", name, tensor, "weight", weight)
            require_shape("unfold_norm", name, tensor, shape)
    r, s, shift = kept[0], kept[1], kept[2]
    s_bar = (weight * weight_bar).sum(list(range(1, weight.dim())))
    if bias_bar is not None:
        s_bar = s_bar + shift * bias_bar
    own = _in_layout_of(weight, weight_bar * _along(s, weight))
    return [own, r * s_bar, *([] if bias_bar is None else [s * bias_bar])]


def _check(name: str, weight: Tensor) -> None:
    require(
        weight.dtype in (torch.float32, torch.float64),
        f"{name}: weight must be float32 or float64, got {str(weight.dtype).removeprefix('torch.')}; convert it first",
    )
    require(weight.dim() > 1, f"{name}: weight must have outputs and inputs, got shape {list(weight.shape)}")


def _in_layout_of(weight: Tensor, t: Tensor) -> Tensor:
    return in_layout(t, is_channels_last(weight))


def _along(s: Tensor, weight: Tensor) -> Tensor:
    return s.view(-1, *[1] * (weight.dim() - 1))
