"""Batch, group, instance and layer normalisation by statistics of the input: y = w x̂ + b, x̂ = (x − μ) r.

    vjp  r P(w g)      jvp  w r P t      w̄ = Σ ζ x̂ + Σ δ r P t      b̄ = Σ ζ      curvature  −r² (c x̂ + b P h + a P t)

`ops.normalisation` has the letters and DESIGN.md ("Normalisation") the derivation. A kind says how it sees x as
(N, C, …) and how many groups of channels of a sample have common statistics (0: a channel of the whole batch). x, μ
and r are saved. Running statistics are updated in sweep 1, once a forward; `running_statistics` normalises by them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.chain import word
from ..ops.normalisation import normalise_forward
from .activation import Rectifier
from .base import FLOAT32_ON_CUDA, Layer, Pairs, Tensors, add

_ops = torch.ops.datagrad


class Affine(Layer):
    """What every normalisation shares: optional weight and bias, and x seen in another shape."""

    def __init__(self, weight: bool, bias: bool, eps: float) -> None:
        self._has_weight, self._has_bias, self.eps = weight, bias, float(eps)

    @property
    def given(self) -> tuple[bool, bool]:
        """Whether there is a weight, and a bias."""
        return self._has_weight, self._has_bias

    def split(self, params: Tensors) -> tuple[Any, Any]:
        """Weight and bias, None for none."""
        return params[0] if self._has_weight else None, params[-1] if self._has_bias else None

    def collect(self, params: Tensors, sums: Tensors, weight: Any, bias: Any) -> Tensors:
        """`sums` plus gradients (vectors, or None), in the shape and dtype of the parameters."""
        found = [*([weight] if self._has_weight else []), *([bias] if self._has_bias else [])]
        return tuple(
            add(total, None if part is None else part.reshape(p.shape).to(p.dtype))
            for total, part, p in zip(sums, found, params, strict=True)
        )


class Normalisation(Affine):
    """Statistics of the input; host values are those of `_running`. A rectifier behind it may be part of it."""

    curved = paired = True
    ops = ("normalise_forward", "normalise_vjp", "normalise_jvp", "normalise_reverse")
    rectifier: Rectifier | None = None

    def with_rectifier(self, rectifier: Rectifier) -> Normalisation:
        """The same normalisation with ReLU or LeakyReLU behind it: its mask gates what the passes read and write."""
        layer = copy.copy(self)
        layer.rectifier, layer.ops = rectifier, ("normalise_relu_forward", *self.ops[1:])
        return layer

    @property
    def name(self) -> str:
        return self._kind if self.rectifier is None else f"{self._kind} + {self.rectifier.name}"

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _image_link(self, groups: int, updates: bool) -> str | None:
        """How chains of images spell it: with so many groups, and running statistics or none."""
        if self.rectifier is not None or self.eps <= 0:
            return None
        return word("normalise" + "+w" * self._has_weight, self._has_bias, (groups, self.eps, updates))

    def _seen(self, x: Tensor) -> tuple[int, tuple[int, ...] | None]:
        """The groups, and the shape (N, C, …) in which x is seen, None for its own; raises for an x of no use."""
        raise NotImplementedError

    def _running(self, x: Tensor, host: tuple) -> tuple[Any, Any, float]:
        """Running mean and variance to be updated, and with which momentum."""
        return None, None, 0.0

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = inputs[0]
        mean, var, momentum = self._running(x, host)
        groups, shape = self._seen(x)
        weight, bias = self.split(params)
        seen = _shaped(x, shape)
        arguments = (seen, _flat(weight), _flat(bias), mean, var, groups, momentum, self.eps)
        bits = None
        if self.rectifier is None:
            y, mu, r = _ops.normalise_forward.default(*arguments)
        else:
            y, mu, r, bits = _ops.normalise_relu_forward.default(*arguments, self.rectifier.slope)
        own = x.shape if shape else None
        return _shaped(y, own), (seen, mu, r, groups, own, bits)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._map(_ops.normalise_vjp.default, g, saved, params),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._map(_ops.normalise_jvp.default, tangents[0], saved, params)

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        zeta, pairs = (g, []) if tangents is None else (None, [(g, tangents)])
        return self.reverse(saved, params, zeta, pairs, (False,), wanted, sums)[1]

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        return self.reverse(saved, params, None, pairs, wanted, (), ())[0]

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
        x, mu, r, groups, shape, bits = saved
        inner = x.shape if shape else None
        want_x, want_params = True in wanted_inputs, True in wanted_params
        x_bar, w_bar, b_bar = _ops.normalise_reverse.default(
            None if zeta is None else _shaped(zeta, inner),
            [_shaped(t, inner) for _, (t,) in pairs],
            [_shaped(delta, inner) for delta, _ in pairs],
            *(x, mu, r, _flat(self.split(params)[0]), groups, bits, self._slope, want_x, want_params),
        )
        if want_params:
            sums = self.collect(params, sums, w_bar, b_bar)
        return (_shaped(x_bar, shape) if want_x else None,), sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        seen, _, _, groups, shape, _ = saved
        x = _shaped(inputs[0], seen.shape if shape else None)
        weight, bias = map(_flat, self.split(params))
        # PyTorch's own take mean and rstd for constants in a third derivative, and not all take a batch of cotangents.
        y = _shaped(normalise_forward(x, weight, bias, None, None, groups, 0.0, self.eps)[0], shape)
        return y if self.rectifier is None else self.rectifier.reference((), (y,), ())

    def _map(self, op: Any, u: Tensor, saved: Any, params: Tensors) -> Tensor:
        """A map of a cotangent or tangent, as x is seen."""
        x, mu, r, groups, shape, bits = saved
        seen, weight = _shaped(u, x.shape if shape else None), _flat(self.split(params)[0])
        return _shaped(op(seen, x, mu, r, weight, groups, bits, self._slope), shape)

    @property
    def _slope(self) -> float:
        """The slope of the rectifier on the negative side."""
        return 0.0 if self.rectifier is None else self.rectifier.slope


class BatchNorm(Normalisation):
    """Statistics of each channel over the batch; host values are those of `running`."""

    follows_layout = True
    autocast = "same"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        return self._image_link(0, host[0].has_statistics if len(host) == 1 else host[0] is not None)

    def _seen(self, x: Tensor) -> tuple[int, None]:
        several_values(x)
        if self.eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")
        return 0, None

    def _running(self, x: Tensor, host: tuple) -> tuple[Any, Any, float]:
        return running(x, host)


class InstanceNorm(Normalisation):
    """Statistics of each channel of each sample; host values are those of `running`.

    `batched` is how many dimensions a batch has, None if x is never anything else.
    """

    follows_layout = True
    autocast = "same"

    def __init__(self, weight: bool, bias: bool, eps: float, batched: int | None = None) -> None:
        super().__init__(weight, bias, eps)
        self._batched = batched

    def _seen(self, x: Tensor) -> tuple[int, tuple[int, ...] | None]:
        shape = batch_of_one(x, self._batched)
        full = shape or x.shape
        if math.prod(full[2:]) == 1:
            raise ValueError(f"Expected more than 1 spatial element when training, got input size {torch.Size(full)}")
        return full[1], shape

    def _running(self, x: Tensor, host: tuple) -> tuple[Any, Any, float]:
        return running(x, host)


class GroupNorm(Normalisation):
    """Statistics of each group of channels of each sample."""

    follows_layout = True
    autocast = FLOAT32_ON_CUDA

    def __init__(self, weight: bool, bias: bool, eps: float, groups: int) -> None:
        super().__init__(weight, bias, eps)
        self._groups = groups

    @property
    def _kind(self) -> str:
        return f"GroupNorm({self._groups})"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        return self._image_link(self._groups, False)

    def _seen(self, x: Tensor) -> tuple[int, None]:
        if x.dim() < 2:
            raise RuntimeError(f"GroupNorm: expected an input (N, C, …) of at least 2 dimensions, got {x.dim()}")
        if x.shape[1] % self._groups:
            raise RuntimeError(f"GroupNorm: {self._groups} groups do not divide the channels of {tuple(x.shape)}")
        n, c = x.shape[:2]
        several_values(x, (n * c // self._groups, self._groups, *x.shape[2:]))
        return self._groups, None


class LayerNorm(Normalisation):
    """Statistics of each element of the leading dimensions, over the `shape` of the last ones."""

    autocast = FLOAT32_ON_CUDA

    def __init__(self, weight: bool, bias: bool, eps: float, shape: Sequence[int]) -> None:
        super().__init__(weight, bias, eps)
        self._shape = torch.Size(shape)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        for p in params:
            if p.shape != self._shape:
                raise RuntimeError(
                    f"LayerNorm: weight and bias must have the shape normalized_shape={tuple(self._shape)}, "
                    f"got {tuple(p.shape)}"
                )
        return super().forward(inputs, params, *host)

    def _seen(self, x: Tensor) -> tuple[int, tuple[int, ...] | None]:
        inner = len(self._shape)
        if inner == 0 or x.shape[-inner:] != self._shape:
            raise RuntimeError(
                f"LayerNorm: expected an input (…, {', '.join(map(str, self._shape))}) for normalized_shape="
                f"{tuple(self._shape)}, got shape {tuple(x.shape)}"
            )
        rows = (math.prod(x.shape[:-inner]), math.prod(self._shape))
        return 1, None if x.shape == rows else rows


def running(x: Tensor, host: tuple) -> tuple[Any, Any, float]:
    """Running mean, running variance and momentum: host values, or what the only one says for x."""
    return host[0](x) if len(host) == 1 else host


def several_values(x: Tensor, shape: Sequence[int] | None = None) -> None:
    """Statistics of one value are refused, as in PyTorch; `shape` is (values, channels, …), x's own if not given."""
    shape = x.shape if shape is None else shape
    if shape[0] * math.prod(shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")


def batch_of_one(x: Tensor, batched: int | None) -> tuple[int, ...] | None:
    """The shape of an unbatched x as a batch of one; None if x is a batch. `batched` counts dimensions of a batch."""
    return (1, *x.shape) if batched is not None and x.dim() == batched - 1 else None


def _shaped(t: Tensor, shape: Any) -> Tensor:
    return t if shape is None else t.reshape(shape)


def _flat(parameter: Any) -> Any:
    """A parameter as a vector."""
    return parameter if parameter is None or parameter.dim() == 1 else parameter.reshape(-1)
