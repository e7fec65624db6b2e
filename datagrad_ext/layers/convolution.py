"""Convolution and transposed convolution in one, two and three dimensions: y = w * x + b.

    vjp   gradient of the input from g          jvp   w * t          w̄ = wgrad(ζ, x) + Σ wgrad(δ, t)          b̄ = Σ ζ

PyTorch poses the weight gradient of its double backward as a forward convolution whose kernel is a whole output map.
The same number comes from an ordinary weight gradient of (δ, t), which is what `param_vjp` asks for. All products are
the vendor library's (`aten::convolution`, `aten::convolution_backward` with exact output masks); groups are native.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Pairs, Tensors
from .registry import Application, Expansion, function_rule, module_rule

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


class Convolution(Layer):
    """w * x + b; params are (w, b), or (w,) without a bias. x is (N, C, …) or, unbatched, (C, …)."""

    paired = True
    autocast = "low"

    def __init__(
        self,
        dims: int,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        transposed: bool = False,
        output_padding: Any = 0,
    ) -> None:
        self.dims = dims
        self.follows_layout = self.wants_channels_last = dims == 2
        self.bias_dim = -dims - 1  # the dimension of y along which the bias lies
        self.batch_rank = dims + 2  # the dimensions of x for which the outputs are dimension 1 of y
        # None: the outputs are the first dimension of the weight; a number: those of each group are the second
        self.output_groups = groups if transposed else None
        self.transposed = transposed
        self.padding = padding if isinstance(padding, str) else _each(padding, dims)
        self._stride, self._dilation = _each(stride, dims), _each(dilation, dims)
        self._output_padding, self._groups = _each(output_padding, dims), groups

    @property
    def name(self) -> str:
        return f"Conv{'Transpose' if self.transposed else ''}{self.dims}d"

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        self._check(inputs[0])
        numbers, pad = self._geometry(params[0])
        x = self._enter(inputs[0], pad)
        return self._leave(_convolution(x, *_with_bias(params), *numbers), inputs[0]), (x, inputs[0].dim())

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._backward(saved, params[0], g, saved[0], True, False)[0],)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        numbers, pad = self._geometry(params[0])
        t = self._enter(tangents[0], pad)
        return self._leave(_convolution(t, params[0], None, *numbers), tangents[0])

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        weight, *bias = sums
        if wanted[0]:
            x = saved[0] if tangents is None else self._enter(tangents[0], self._geometry(params[0])[1])
            part = self._backward(saved, params[0], g, x, False, True)[1]
            weight = part if weight is None else weight.add_(part)
        if tangents is None and True in wanted[1:]:
            bias = [g.sum([d for d in range(g.dim()) if d != g.dim() + self.bias_dim])]
        return weight, *bias

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
        """As composed, with x̄ and the weight gradient from one call."""
        if zeta is None or not wanted_inputs[0] or not wanted_params[0]:
            return super().reverse(saved, params, zeta, pairs, wanted_inputs, wanted_params, sums)
        x_bar, part, _ = self._backward(saved, params[0], zeta, saved[0], True, True)
        weight = part if sums[0] is None else sums[0].add_(part)
        _, *bias = self.param_vjp(saved, params, zeta, None, (False, *wanted_params[1:]), sums)
        return (x_bar,), (weight, *bias)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        numbers, pad = self._geometry(params[0])
        x = self._enter(inputs[0], pad)
        return self._leave(torch.convolution(x, *_with_bias(params), *numbers), inputs[0])

    def _backward(self, saved: Any, weight: Tensor, g: Tensor, x: Tensor, want_x: bool, want_w: bool) -> tuple:
        """(x̄, w̄, None) of the cotangent g at the (padded, batched) input x."""
        numbers, pad = self._geometry(weight)
        if saved[1] == self.dims + 1:
            g = g.unsqueeze(0)
        x_bar, w_bar, _ = _convolution_backward(g, x, weight, None, *numbers, [want_x, want_w, False])
        if want_x:
            for dim, (before, after) in enumerate(pad or (), start=2):
                x_bar = x_bar.narrow(dim, before, x_bar.shape[dim] - before - after)
            x_bar = self._leave(x_bar, saved[1])
        return x_bar, w_bar, None

    def _geometry(self, weight: Tensor) -> tuple[tuple, list[tuple[int, int]] | None]:
        """The numbers that aten::convolution takes, and the explicit padding of an uneven 'same'."""
        pad = None
        padding = self.padding
        if padding == "valid":
            padding = [0] * self.dims
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(self._dilation, weight.shape[2:], strict=True)]
            padding = [n // 2 for n in total]
            if any(n % 2 for n in total):
                pad = [(n // 2, n - n // 2) for n in total]
                padding = [0] * self.dims
        return (self._stride, padding, self._dilation, self.transposed, self._output_padding, self._groups), pad

    def _enter(self, x: Tensor, pad: list[tuple[int, int]] | None) -> Tensor:
        """A batched, explicitly padded x."""
        if x.dim() == self.dims + 1:
            x = x.unsqueeze(0)
        if pad:
            x = F.pad(x, [n for side in reversed(pad) for n in side])
        return x

    def _leave(self, y: Tensor, like: Tensor | int) -> Tensor:
        """y without the batch dimension that `_enter` added."""
        dim = like if isinstance(like, int) else like.dim()
        return y.squeeze(0) if dim == self.dims + 1 else y

    def _check(self, x: Tensor) -> None:
        if x.dim() not in (self.dims + 1, self.dims + 2):
            raise RuntimeError(
                f"{self.name}: expected a {self.dims + 2}-dimensional input (N, C, …) or a {self.dims + 1}-dimensional "
                f"one (C, …), got shape {tuple(x.shape)}"
            )
        if self.padding == "same" and any(s != 1 for s in self._stride):
            raise RuntimeError(f"{self.name}: padding='same' needs stride 1, got stride {tuple(self._stride)}")


def _with_bias(params: Tensors) -> Tensors:
    return params if len(params) == 2 else (params[0], None)


def _each(value: Any, dims: int) -> list[int]:
    """One number for each dimension."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * dims if len(values) == 1 else values


def _module(module: Any) -> Application | Expansion:
    dims = len(module.kernel_size)
    if module.padding_mode != "zeros":
        return Expansion(lambda x: _padded(module, (F.conv1d, F.conv2d, F.conv3d)[dims - 1], x))
    layer = Convolution(
        dims,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.transposed,
        module.output_padding,
    )
    return Application(layer, params=("weight", "bias"))


def _padded(module: Any, convolution: Any, x: Any) -> Any:
    """A convolution whose padding is not zeros."""
    x = F.pad(x, module._reversed_padding_repeated_twice, module.padding_mode)
    return convolution(x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)


_CONFIG = ("stride", "padding", "dilation", "groups", "output_padding", "padding_mode")
module_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, config=_CONFIG)(_module)
module_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, config=_CONFIG)(_module)


def _functions(dims: int, convolution: Any, transposed: Any) -> None:
    """Register F.conv{dims}d and F.conv_transpose{dims}d."""

    @function_rule(convolution)
    def _(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Application:
        layer = Convolution(dims, stride, padding, dilation, groups)
        return Application(layer, inputs=(input,), params=(weight, bias))

    @function_rule(transposed)
    def _(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Application:
        layer = Convolution(dims, stride, padding, dilation, groups, True, output_padding)
        return Application(layer, inputs=(input,), params=(weight, bias))


_functions(1, F.conv1d, F.conv_transpose1d)
_functions(2, F.conv2d, F.conv_transpose2d)
_functions(3, F.conv3d, F.conv_transpose3d)
