"""A linear layer or convolution with a norm by running statistics behind it: one layer by W′ = s W, b′ = s (c − μ) + b.

    s = w r      W̄ = s W̄′      c̄ = s b̄′      w̄ = r s̄      b̄ = b̄′      s̄ = Σ W W̄′ + (c − μ) b̄′

for the layer's own bias c, the sum over all but the output channel. W̄′ and b̄′ are the parameter gradients of the one
layer, from (ζ, x) and from every (δ, t), so that these are exact in both orders, at the price of products of the
weight's size. No sweep has a pass for the norm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._native import direct
from .base import Layer, PerCall, Tensors, add_each
from .convolution import Convolution
from .linear import Linear
from .opaque import Opaque
from .running_statistics import RunningNorm

_fold, _unfold = direct("fold_norm"), direct("unfold_norm")


class Fold:
    """Two layers as one; params are those of the linear one, the first `n_own`, and of the norm, whose the host is."""

    def __init__(self, linear: Linear | Convolution, n_own: int, norm: RunningNorm) -> None:
        self.linear, self._n_own, self._norm = linear, n_own, norm

    @property
    def name(self) -> str:
        return f"{self.linear.name} + {self._norm.name}"

    def value(self, inputs: Tensors, params: Tensors, mean: Tensor, var: Tensor) -> Tensor:
        """One layer after the other, as differentiable PyTorch."""
        y = self.linear.reference((), inputs, params[: self._n_own])
        return F.batch_norm(y, mean, var, *self._norm.split(params[self._n_own :]), False, 0.0, self._norm.eps)

    def value_now(self, inputs: Tensors, params: Tensors, host: tuple) -> Tensor:
        """The same by the statistics of this call."""
        return self.value(inputs, params, *self._norm.statistics(inputs[0], host))

    def value_then(self, inputs: Tensors, params: Tensors, kept: Tensors) -> Tensor:
        """The same by the statistics of the forward that kept them."""
        rows, dtype = kept
        return self.value(inputs, params, *rows[3:].to(dtype))

    def folded(self, x: Tensor, params: Tensors, host: tuple) -> tuple[Tensors, Tensors]:
        """(W′, b′), and what the sweeps keep: vectors as in `ops/folding.py`, and the statistics' dtype."""
        mean, var = self._norm.statistics(x, host)
        weight, *bias = params[: self._n_own]
        first = _outputs_first(weight, self.linear.output_groups)
        if mean.shape != first.shape[:1]:
            raise RuntimeError(
                f"{self.name}: running_mean should contain {len(first)} elements, one for each output channel of "
                f"the layer before, not {mean.numel()}"
            )
        vectors = (bias[0] if bias else None, mean, var, *self._norm.split(params[self._n_own :]))
        dtype = torch.promote_types(torch.promote_types(weight.dtype, var.dtype), torch.float32)
        found, moved, kept = _fold(_cast(first, dtype), *[_cast(v, dtype) for v in vectors], self._norm.eps)
        inner = _outputs_back(_cast(found, weight.dtype), weight, self.linear.output_groups)
        return (inner, _cast(moved, weight.dtype)), (kept, var.dtype)

    def unfolded(self, kept: Tensors, params: Tensors, bars: Tensors) -> Tensors:
        """The gradients of the parameters, from those of W′ and b′ (None: zero)."""
        weight_bar, bias_bar = bars
        if weight_bar is None:
            return (None,) * len(params)
        weight, groups, rows = params[0], self.linear.output_groups, kept[0]
        whole = [_cast(_outputs_first(t, groups), rows.dtype) for t in (weight_bar, weight)]
        found, scale_bar, *own_bias = _unfold(whole[0], _cast(bias_bar, rows.dtype), whole[1], rows)
        own: list[Any] = [_outputs_back(_cast(found, weight.dtype), weight, groups)]
        own += [_cast(own_bias[0], c.dtype) if own_bias else None for c in params[1 : self._n_own]]
        for p, bar in zip(self._norm.split(params[self._n_own :]), (scale_bar, bias_bar), strict=True):
            own += [] if p is None else [_cast(bar, p.dtype)]
        return tuple(own)


class Folded(PerCall):
    """Folded where the outputs are the channels that the norm normalises, dimension 1.

    Of another number of dimensions (a linear layer of a sequence, an unbatched image) the norm takes another dimension
    for its channels: such a call is left to autograd, which runs `in_turn`.
    """

    def __init__(self, together: Layer, rank: int, in_turn: Callable[[Tensors, Tensors, tuple], Tensor]) -> None:
        self._together, self._rank = together, rank
        self._apart = Opaque(in_turn, self.name, "not folded for this number of dimensions")

    @property
    def name(self) -> str:
        return self._together.name

    def chosen(self, inputs: Tensors, params: Tensors) -> Layer:
        return self._together if inputs[0].dim() == self._rank else self._apart


class FoldedNorm(Folded):
    """A linear layer or convolution and the norm behind it."""

    def __init__(self, linear: Linear | Convolution, n_own: int, norm: RunningNorm) -> None:
        self.fold = Fold(linear, n_own, norm)
        self.follows_layout, self.wants_channels_last = linear.follows_layout, linear.wants_channels_last
        super().__init__(_Together(self.fold), linear.batch_rank, self.fold.value_now)

    def link(self, n_params: int) -> str | None:
        return self.fold.linear.link(2)  # W′ and b′

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        return self.fold.linear.image_link(2, ())


class _Together(Layer):
    """The one layer by W′ and b′. Sweep 3 leaves its part of W̄′ with the layer's pair: sweep 4 unfolds the sum once."""

    paired = True

    def __init__(self, fold: Fold) -> None:
        self._fold, self._linear = fold, fold.linear

    @property
    def name(self) -> str:
        return self._fold.name

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        folded, factors = self._fold.folded(inputs[0], params, host)
        y, kept = self._linear.forward(inputs, folded)
        return y, (kept, folded, factors)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self._linear.vjp(saved[0], saved[1], g, wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._linear.jvp(saved[0], saved[1], tangents, record)

    def data_jvp(
        self,
        saved: Any,
        params: Tensors,
        tangents: Tensors,
        record: Any,
        needed: bool,
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Any, Any, Tensors]:
        kept, folded, want = saved[0], saved[1], True in wanted_params
        y_tangent, pair, bars = self._linear.data_jvp(
            kept, folded, tangents, record, needed, (want, False), (None, None)
        )
        return y_tangent, (pair, bars) if want else None, sums

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Any,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        want, x_bars = True in wanted_params, (None,)
        own, bars = split_pairs(pairs, (None, None))
        if zeta is not None or own:
            x_bars, bars = self._linear.reverse(saved[0], saved[1], zeta, own, wanted_inputs, (want, want), bars)
        return x_bars, add_each(sums, self._fold.unfolded(saved[2], params, bars)) if want else sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return self._fold.value_then(inputs, params, saved[2])


def split_pairs(pairs: Any, none: Tensors) -> tuple[list[Any], Tensors]:
    """The pairs of the layer inside, and the sum of what sweep 3 left of its parameters' gradients with them."""
    bars = functools.reduce(add_each, [part for _, part in pairs], none)
    return [pair for pair, _ in pairs if pair is not None], bars


def _outputs_first(weight: Tensor, groups: int | None) -> Tensor:
    """A weight with its outputs in front; `groups` as a layer's `output_groups`."""
    if groups is None:
        return weight
    inputs, outputs, *kernel = weight.shape
    return weight.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).flatten(0, 1)


def _outputs_back(found: Tensor, weight: Tensor, groups: int | None) -> Tensor:
    """The inverse, in the shape of `weight`."""
    if groups is None:
        return found
    return found.unflatten(0, (groups, -1)).transpose(1, 2).reshape(weight.shape)


def _cast(t: Any, dtype: torch.dtype) -> Any:
    return t if t is None or t.dtype == dtype else t.to(dtype)
