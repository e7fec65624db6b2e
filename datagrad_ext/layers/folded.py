"""A convolution with a norm by running statistics behind it: one convolution by W′ = s W, b′ = s (c − μ) + b, s = w r.

    W̄ = s W̄′      c̄ = s b̄′      w̄ = r s̄      b̄ = b̄′      s̄ = Σ W W̄′ + (c − μ) b̄′

for the convolution's own bias c, the sum over all but the output channel. W̄′ and b̄′ are the parameter gradients of the
one convolution, from (ζ, x) and from every (δ, t), so that these are exact in both orders, at the price of products of
the weight's size. No sweep has a pass for the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, Tensors, add_each
from .convolution import Convolution
from .normalisation import running
from .running_statistics import RunningNorm


class FoldedConvolution(Layer):
    """Params are those of the convolution, the first `n_own`, and those of the norm; host values are the norm's."""

    paired = True

    def __init__(self, convolution: Convolution, n_own: int, norm: RunningNorm) -> None:
        self._convolution, self._n_own, self._norm = convolution, n_own, norm
        self.follows_layout, self.wants_channels_last = convolution.follows_layout, convolution.wants_channels_last

    @property
    def name(self) -> str:
        return f"{self._convolution.name} + {self._norm.name}"

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        mean, var, _ = running(inputs[0], host)
        mean, var = mean.clone(), var.clone()
        folded, factors = self._fold(params, mean, var)
        y, kept = self._convolution.forward(inputs, folded)
        return y, (kept, folded, factors, mean, var)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self._convolution.vjp(saved[0], saved[1], g, wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._convolution.jvp(saved[0], saved[1], tangents, record)

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        bars = self._convolution.param_vjp(saved[0], saved[1], g, tangents, (True, True), (None, None))
        return self._unfold(saved, params, bars, sums)

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
        want = True in wanted_params
        x_bars, bars = self._convolution.reverse(
            saved[0], saved[1], zeta, pairs, wanted_inputs, (want, want), (None, None)
        )
        return x_bars, self._unfold(saved, params, bars, sums) if want else sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        kept, _, _, mean, var = saved
        own, of_norm = params[: self._n_own], params[self._n_own :]
        y = self._convolution.reference(kept, inputs, own)
        return F.batch_norm(y, mean, var, *self._norm.split(of_norm), False, 0.0, self._norm.eps)

    def _fold(self, params: Tensors, mean: Tensor, var: Tensor) -> tuple[Tensors, Tensors]:
        """(W′, b′), and r, s and c − μ."""
        weight, *bias = params[: self._n_own]
        norm_weight, norm_bias = self._norm.split(params[self._n_own :])
        if mean.shape != weight.shape[:1]:
            raise RuntimeError(
                f"{self.name}: running_mean should contain {weight.shape[0]} elements, one for each output channel of "
                f"the convolution, not {mean.numel()}"
            )
        r = (var.to(torch.promote_types(var.dtype, torch.float32)) + self._norm.eps).rsqrt()
        s = r if norm_weight is None else r * norm_weight
        shift = bias[0] - mean if bias else -mean
        moved = shift * s if norm_bias is None else shift * s + norm_bias
        return ((weight * _along(s, weight)).to(weight.dtype), moved.to(weight.dtype)), (r, s, shift)

    def _unfold(self, saved: Any, params: Tensors, bars: Tensors, sums: Tensors) -> Tensors:
        """`sums` plus the gradients of the parameters, from those of W′ and b′ (None: zero)."""
        weight_bar, bias_bar = bars
        r, s, shift = saved[2]
        weight, own = params[0], params[: self._n_own]
        s_bar = (weight_bar.to(r.dtype) * weight).flatten(1).sum(1)
        found = [(weight_bar * _along(s, weight)).to(weight.dtype)]
        if bias_bar is not None:
            s_bar = s_bar + bias_bar * shift
        found += [None if bias_bar is None else (bias_bar * s).to(c.dtype) for c in own[1:]]
        of_norm = params[self._n_own :]
        found += self._norm.collect(of_norm, (None,) * len(of_norm), r * s_bar, bias_bar)
        return add_each(sums, tuple(found))


def _along(s: Tensor, weight: Tensor) -> Tensor:
    """One number an output channel, shaped for products with the weight."""
    return s.view(-1, *[1] * (weight.dim() - 1))
