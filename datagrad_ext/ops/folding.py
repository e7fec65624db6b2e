"""Norms by running statistics folded into the layers before them, W′ = s W and b′ = s (c − μ) + b, and the way back.

    fold_norms     W′ and b′ of each layer, and `kept`: for each layer r = (var + ε)^(−½), s = w r, c − μ, μ, var
    unfold_norms   W̄ = s W̄′, w̄ = r s̄, c̄ = s b̄′ with s̄ = Σ W W̄′ + (c − μ) b̄′

Letters as in layers/folded.py. The outputs are the first dimension of a weight; the sum is over all others. Everything
has one dtype, float32 or float64, and W′ and W̄ have the layout of W. `kept` is one vector, because Python notices every
tensor it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._library import in_layout, is_channels_last, op, require, require_alike, require_shape

KEPT = 5
"""Vectors of `kept` for each layer, one element for each output."""
_NAMES = {"c": "bias", "w": "norm_weight", "b": "norm_bias"}


@op("fold_norms(Tensor[] tensors, str given, float[] eps) -> Tensor[]")
def fold_norms(tensors: Sequence[Tensor], given: str, eps: Sequence[float]) -> list[Tensor]:
    """[W′, b′ of each layer, kept]; they may share their storage.

    `given` has a word for each layer: "W", and those of "c", "w", "b" that there are. The tensors are those that it
    names, in order, and μ and var behind those of each word.
    """
    layers = given.split()
    expected = sum(len(word) + 2 for word in layers)
    require(
        len(tensors) == expected and len(eps) == len(layers) > 0,
        f"fold_norms: '{given}' has {expected} tensors and {len(layers)} eps, got {len(tensors)} and {len(eps)}",
    )
    rest, found, kept = iter(tensors), [], []
    for word, epsilon in zip(layers, eps, strict=True):
        weight = next(rest)
        _check("fold_norms", weight)
        require_alike("fold_norms", "weight", weight, "the first weight", tensors[0])
        names = [*(_NAMES[letter] for letter in word[1:]), "mean", "var"]
        vector = dict(zip(names, rest, strict=False))
        for name, each in vector.items():
            require_alike("fold_norms", name, each, "weight", weight)
            require_shape("fold_norms", name, each, weight.shape[:1])
        r = (vector["var"] + epsilon).rsqrt()
        s = vector["norm_weight"] * r if "norm_weight" in vector else r
        shift = vector["bias"] - vector["mean"] if "bias" in vector else -vector["mean"]
        moved = s * shift + vector["norm_bias"] if "norm_bias" in vector else s * shift
        found += [_in_layout_of(weight, weight * _along(s, weight)), moved]
        kept += [r, s, shift, vector["mean"], vector["var"]]
    return [*found, torch.cat(kept)]


@op("unfold_norms(Tensor[] weight_bars, Tensor[] bias_bars, Tensor[] weights, Tensor kept, bool[] wanted) -> Tensor[]")
def unfold_norms(
    weight_bars: Sequence[Tensor],
    bias_bars: Sequence[Tensor],
    weights: Sequence[Tensor],
    kept: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """[W̄, w̄, and c̄ if there is b̄′, of each wanted layer]; they may share their storage.

    `weights` are those of all layers, W̄′ those of the wanted ones, b̄′ those of the first so many of the wanted ones.
    """
    require(
        len(wanted) == len(weights) > 0 and sum(wanted) == len(weight_bars) >= len(bias_bars),
        f"unfold_norms: needs a weight and a flag for each layer and a weight_bar for each that is wanted, got "
        f"{len(weights)}, {len(wanted)} and {len(weight_bars)}, and {len(bias_bars)} bias_bars",
    )
    for weight in weights:
        _check("unfold_norms", weight)
        require_alike("unfold_norms", "weight", weight, "the first weight", weights[0])
    require_alike("unfold_norms", "kept", kept, "weight", weights[0])
    require_shape("unfold_norms", "kept", kept, (KEPT * sum(len(weight) for weight in weights),))
    found: list[Tensor] = []
    rest_weights, rest_biases = iter(weight_bars), iter(bias_bars)
    for weight, rows, want in zip(weights, rows_of(kept, [len(weight) for weight in weights]), wanted, strict=True):
        if want:
            found += _unfolded(next(rest_weights), next(rest_biases, None), weight, rows)
    return found


def rows_of(kept: Tensor, outputs: Sequence[int]) -> Iterator[Tensor]:
    """For each layer, of so many outputs, its vectors as the rows of a matrix."""
    for each in kept.split([KEPT * n for n in outputs]):
        yield each.view(KEPT, -1) if len(each) else each.view(KEPT, 0)


def _unfolded(weight_bar: Tensor, bias_bar: Tensor | None, weight: Tensor, rows: Tensor) -> list[Tensor]:
    require_alike("unfold_norms", "weight_bar", weight_bar, "weight", weight)
    require_shape("unfold_norms", "weight_bar", weight_bar, weight.shape)
    r, s, shift = rows[0], rows[1], rows[2]
    s_bar = (weight * weight_bar).sum(list(range(1, weight.dim())))
    if bias_bar is not None:
        require_alike("unfold_norms", "bias_bar", bias_bar, "weight", weight)
        require_shape("unfold_norms", "bias_bar", bias_bar, weight.shape[:1])
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
