"""A convolution and the rectifier behind it as one layer; small ones run each sweep in one op.

    vjp  wᵀ * m g      jvp  m (w * t)      w̄ = wgrad(m ζ, x) + Σ wgrad(m g, t)      b̄ = Σ m ζ

with the mask m of y = f(w * x + b), which products apply as they read a cotangent and write a tangent. Which
convolutions are small says `few.py`; others run as the two layers that they are. A fusion pass makes the layer, after
the bias has moved to the rectifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .activation import Rectifier
from .base import Layer, Pairs, PerCall, Tensors
from .convolution import Convolution, added, leaves_pair
from .few import Few

_ops = torch.ops.datagrad
_forward, _vjp = _ops.convolution_relu_forward.default, _ops.convolution_relu_vjp.default
_jvp, _reverse = _ops.convolution_relu_jvp.default, _ops.convolution_relu_reverse.default


class _Parts(Layer):
    """The two layers; params are (w,), or (w, b) with the bias of the rectifier."""

    paired = True

    def __init__(self, convolution: Convolution, rectifier: Rectifier) -> None:
        self._convolution, self._rectifier = convolution, rectifier

    @property
    def name(self) -> str:
        return f"{self._convolution.name} + {self._rectifier.name}"

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        z = self._convolution.reference((), inputs, params[:1])
        return self._rectifier.reference((), (z,), params[1:])


class RectifiedConvolution(PerCall):
    """In one op a sweep, or in turn: as the shapes of the call say."""

    ops = Rectifier.ops  # those of the layers in turn: small ones run together only where the kernels are

    def __init__(self, convolution: Convolution, rectifier: Rectifier) -> None:
        self._convolution = convolution
        self.follows_layout, self.wants_channels_last = convolution.follows_layout, convolution.wants_channels_last
        self._together, self._in_turn = _Together(convolution, rectifier), _InTurn(convolution, rectifier)

    @property
    def name(self) -> str:
        return self._together.name

    def chosen(self, inputs: Tensors, params: Tensors) -> Layer:
        is_small = self._convolution.few(inputs[0], params[0], rectified=True) is Few.PIXELS
        return self._together if is_small else self._in_turn


class _Together(_Parts):
    """The project's own products, with the rectifier in their passes. Saves bits, slope, x, and the geometry."""

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x, (weight, *bias) = inputs[0], params
        geometry, slope = self._convolution.window(weight), self._rectifier.slope
        y, bits = _forward(x, weight, bias[0] if bias else None, slope, *geometry)
        return y, (bits, slope, x, geometry)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        *gate, geometry = saved
        return (_vjp(g, *gate, params[0], *geometry),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        *gate, geometry = saved
        return _jvp(tangents[0], *gate, params[0], *geometry)

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
        y_tangent = self.jvp(saved, params, tangents, record) if needed else None
        if not wanted_params or not wanted_params[0]:
            return y_tangent, None, sums
        pairs = [(record, tangents)]
        if leaves_pair(record, tangents[0], params[0]):
            return y_tangent, pairs[0], sums
        return y_tangent, None, self.reverse(saved, params, None, pairs, (False,), (True, False), sums)[1]

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Pairs,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        *gate, geometry = saved
        want_x, (want_weight, want_bias) = wanted_inputs[0] and zeta is not None, (*wanted_params, False, False)[:2]
        want_bias = want_bias and zeta is not None
        want_weight = want_weight and (zeta is not None or len(pairs) > 0)
        if not (want_x or want_weight or want_bias):
            return (None,), sums
        cotangents, tangents = [g for g, _ in pairs], [t for _, (t,) in pairs]
        wants = want_x, want_weight, want_bias
        found = iter(_reverse(zeta, *gate, params[0], cotangents, tangents, *geometry, *wants))
        x_bar, *bars = [next(found) if want else None for want in wants]
        return (x_bar,), tuple(map(added, sums, bars))


class _InTurn(_Parts):
    """The maps of the two layers, one after the other."""

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        z, first = self._convolution.forward(inputs, params[:1])
        y, second = self._rectifier.forward((z,), params[1:])
        return y, (first, second)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self.data_vjp(saved, params, g, wanted)[0]

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        (delta,) = self._rectifier.vjp(saved[1], params[1:], g, (True,))
        return self._convolution.vjp(saved[0], params[:1], delta, wanted), delta

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        tangent = self._convolution.jvp(saved[0], params[:1], tangents, record)
        return self._rectifier.jvp(saved[1], params[1:], (tangent,), None)

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
        y_tangent = self.jvp(saved, params, tangents, record) if needed else None
        if wanted_params and wanted_params[0]:
            weight = self._convolution.param_vjp(saved[0], params[:1], record, tangents, (True,), sums[:1])
            sums = (*weight, *sums[1:])
        return y_tangent, None, sums

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Pairs,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        (zeta,), bias = self._rectifier.reverse(saved[1], params[1:], zeta, (), (True,), wanted_params[1:], sums[1:])
        wanted = wanted_params[:1]
        bars, weight = self._convolution.reverse(saved[0], params[:1], zeta, (), wanted_inputs, wanted, sums[:1])
        return bars, (*weight, *bias)
