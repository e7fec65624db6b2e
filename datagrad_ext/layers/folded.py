"""A linear layer or convolution with a norm by running statistics behind it: one layer by W′ = s W, b′ = s (c − μ) + b.

    s = w r      W̄ = s W̄′      c̄ = s b̄′      w̄ = r s̄      b̄ = b̄′      s̄ = Σ W W̄′ + (c − μ) b̄′

for the layer's own bias c, the sum over all but the output channel. W̄′ and b̄′ are the parameter gradients of the one
layer, from (ζ, x) and from every (δ, t), so that these are exact in both orders, at the price of products of the
weight's size. No sweep has a pass for the norm.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, Tensors, add_each
from .convolution import Convolution
from .linear import Linear
from .opaque import Opaque
from .running_statistics import RunningNorm


class _Parts(Layer):
    """The two layers; params are those of the linear one, the first `n_own`, and of the norm, whose the host is."""

    paired = True

    def __init__(self, linear: Linear | Convolution, n_own: int, norm: RunningNorm) -> None:
        self._linear, self._n_own, self._norm = linear, n_own, norm

    @property
    def name(self) -> str:
        return f"{self._linear.name} + {self._norm.name}"

    def value(self, inputs: Tensors, params: Tensors, mean: Tensor, var: Tensor) -> Tensor:
        """One layer after the other, as differentiable PyTorch."""
        y = self._linear.reference((), inputs, params[: self._n_own])
        return F.batch_norm(y, mean, var, *self._norm.split(params[self._n_own :]), False, 0.0, self._norm.eps)


class FoldedNorm(_Parts):
    """Folded where the outputs are the channels that the norm normalises, dimension 1.

    Of another number of dimensions (a linear layer of a sequence, an unbatched image) the norm takes another dimension
    for its channels: such a call is left to autograd.
    """

    def __init__(self, linear: Linear | Convolution, n_own: int, norm: RunningNorm) -> None:
        super().__init__(linear, n_own, norm)
        self.follows_layout, self.wants_channels_last = linear.follows_layout, linear.wants_channels_last
        self._together = _Together(linear, n_own, norm)
        self._apart = Opaque(self._in_turn, self.name, "not folded for this number of dimensions")

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        layer: Layer = self._together if inputs[0].dim() == self._linear.batch_rank else self._apart
        y, kept = layer.forward(inputs, params, *host)
        return y, (layer, *kept)

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        return saved[0].vjp(saved[1:], params, g, wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        return saved[0].jvp(saved[1:], params, tangents, record)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        return saved[0].data_vjp(saved[1:], params, g, wanted)

    def data_jvp(self, saved: Any, *arguments: Any) -> tuple[Any, Any, Tensors]:
        return saved[0].data_jvp(saved[1:], *arguments)

    def reverse(self, saved: Any, *arguments: Any) -> tuple[Tensors, Tensors]:
        return saved[0].reverse(saved[1:], *arguments)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Any:
        return saved[0].reference(saved[1:], inputs, params, *host)

    def _in_turn(self, inputs: Tensors, params: Tensors, host: tuple) -> Tensor:
        return self.value(inputs, params, *self._norm.statistics(inputs[0], host))


class _Together(_Parts):
    """The one layer by W′ and b′. Sweep 3 leaves its part of W̄′ with the layer's pair: sweep 4 unfolds the sum once."""

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        mean, var = (t.clone() for t in self._norm.statistics(inputs[0], host))
        folded, factors = self._fold(params, mean, var)
        y, kept = self._linear.forward(inputs, folded)
        return y, (kept, folded, factors, mean, var)

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
        bars = functools.reduce(add_each, [part for _, part in pairs], (None, None))
        own = [pair for pair, _ in pairs if pair is not None]
        if zeta is not None or own:
            x_bars, bars = self._linear.reverse(saved[0], saved[1], zeta, own, wanted_inputs, (want, want), bars)
        return x_bars, self._unfold(saved, params, bars, sums) if want else sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return self.value(inputs, params, *saved[3:])

    def _fold(self, params: Tensors, mean: Tensor, var: Tensor) -> tuple[Tensors, Tensors]:
        """(W′, b′), and r, s and c − μ."""
        weight, *bias = params[: self._n_own]
        norm_weight, norm_bias = self._norm.split(params[self._n_own :])
        groups = self._linear.output_groups
        outputs = weight.shape[0] if groups is None else weight.shape[1] * groups
        if mean.shape != (outputs,):
            raise RuntimeError(
                f"{self.name}: running_mean should contain {outputs} elements, one for each output channel of "
                f"the layer before, not {mean.numel()}"
            )
        r = (var.to(torch.promote_types(var.dtype, torch.float32)) + self._norm.eps).rsqrt()
        s = r if norm_weight is None else r * norm_weight
        shift = bias[0] - mean if bias else -mean
        moved = shift * s if norm_bias is None else shift * s + norm_bias
        return ((weight * _along(s, weight, groups)).to(weight.dtype), moved.to(weight.dtype)), (r, s, shift)

    def _unfold(self, saved: Any, params: Tensors, bars: Tensors, sums: Tensors) -> Tensors:
        """`sums` plus the gradients of the parameters, from those of W′ and b′ (None: zero)."""
        weight_bar, bias_bar = bars
        r, s, shift = saved[2]
        weight, own, groups = params[0], params[: self._n_own], self._linear.output_groups
        s_bar = _sums_of_outputs(weight_bar.to(r.dtype) * weight, groups)
        found = [(weight_bar * _along(s, weight, groups)).to(weight.dtype)]
        if bias_bar is not None:
            s_bar = s_bar + bias_bar * shift
        found += [None if bias_bar is None else (bias_bar * s).to(c.dtype) for c in own[1:]]
        of_norm = params[self._n_own :]
        found += self._norm.collect(of_norm, (None,) * len(of_norm), r * s_bar, bias_bar)
        return add_each(sums, tuple(found))


def _along(s: Tensor, weight: Tensor, groups: int | None) -> Tensor:
    """One number an output, shaped for products with a weight whose outputs lie as `output_groups` says."""
    if groups is None:
        return s.view(-1, *[1] * (weight.dim() - 1))
    inputs, outputs = weight.shape[:2]
    rows = s.view(groups, 1, outputs).expand(groups, inputs // groups, outputs).reshape(inputs, outputs)
    return rows.view(inputs, outputs, *[1] * (weight.dim() - 2))


def _sums_of_outputs(products: Tensor, groups: int | None) -> Tensor:
    """For each output the sum of a tensor like the weight."""
    if groups is None:
        return products.sum(list(range(1, products.dim())))
    rows = products.sum(list(range(2, products.dim())))
    return rows.view(groups, -1, rows.shape[1]).sum(1).view(-1)
