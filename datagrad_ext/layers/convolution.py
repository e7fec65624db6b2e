"""Convolution and transposed convolution in one, two and three dimensions: y = w * x + b.

    vjp   gradient of the input from g          jvp   w * t          w̄ = wgrad(ζ, x) + Σ wgrad(δ, t)          b̄ = Σ ζ

PyTorch poses the weight gradient of its double backward as a forward convolution whose kernel is a whole output map.
The same number comes from an ordinary weight gradient of (δ, t), which is what `param_vjp` asks for. The products are
the vendor library's (`aten::convolution`, `aten::convolution_backward` with exact output masks); groups are native.
Small ones are the project's own (`few.py` says where and why).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.chain import word
from .base import Layer, Pairs, Tensors
from .few import Few, few_of
from .registry import Application, Expansion, function_rule, module_rule

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default
_small_forward = torch.ops.datagrad.convolution_forward.default
_small_reverse = torch.ops.datagrad.convolution_reverse.default


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
        fixed = (0,) * dims if isinstance(self.padding, str) else self.padding
        self._fixed = None if self.padding == "same" else self._numbers(fixed)

    @property
    def name(self) -> str:
        return f"Conv{'Transpose' if self.transposed else ''}{self.dims}d"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        if self.dims != 2 or self.transposed or self._groups != 1 or isinstance(self.padding, str):
            return None
        return word("convolution", n_params == 2, (*self._stride, *self.padding, *self._dilation))

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        self._check(inputs[0])
        numbers, pad = self._geometry(params[0])
        x = self._enter(inputs[0], pad)
        dim = inputs[0].dim()
        few = self.few(x, params[0]) if dim == self.batch_rank else None
        weight, *bias = _with_bias(params)
        if few is Few.PIXELS:
            return _small_forward(x, weight, *bias, *numbers[:3]), (x, dim, None, few)
        if self.dims == 2 and not self.transposed:
            weight = followed(x, weight)
        y = _convolution(x, weight, *bias, *numbers)
        return self._leave(y, dim), (x, dim, None if weight is params[0] else weight, few)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._backward(saved, params[0], g, saved[0], True, False)[0],)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        numbers, pad = self._geometry(params[0])
        if saved[3] is Few.PIXELS:
            return _small_forward(tangents[0], params[0], None, *numbers[:3])
        weight = params[0] if saved[2] is None else saved[2]
        return self._leave(_convolution(self._enter(tangents[0], pad), weight, None, *numbers), saved[1])

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        weight, *bias = sums
        if wanted[0]:
            x = saved[0] if tangents is None else self._enter(tangents[0], self._geometry(params[0])[1])
            weight = added(weight, self._backward(saved, params[0], g, x, False, True)[1])
        if tangents is None and True in wanted[1:]:
            bias = [g.sum([d for d in range(g.dim()) if d != g.dim() + self.bias_dim])]
        return weight, *bias

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
        """As composed; where (δ, t) is smaller than the gradient, sweep 4 takes all products at once."""
        is_left = saved[3] is Few.PIXELS and leaves_pair(record, tangents[0], params[0])
        if not is_left or not wanted_params or not wanted_params[0]:
            return super().data_jvp(saved, params, tangents, record, needed, wanted_params, sums)
        return self.jvp(saved, params, tangents, record) if needed else None, (record, tangents), sums

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
        want_x = wanted_inputs[0] and zeta is not None
        if not wanted_params or not wanted_params[0] or not (want_x or pairs):
            return super().reverse(saved, params, zeta, pairs, wanted_inputs, wanted_params, sums)
        x_bar, part = self._backward(saved, params[0], zeta, saved[0], want_x, True, pairs)
        sums = added(sums[0], part), *sums[1:]
        if zeta is not None:
            sums = self.param_vjp(saved, params, zeta, None, (False, *wanted_params[1:]), sums)
        return (x_bar,), sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        numbers, pad = self._geometry(params[0])
        x = self._enter(inputs[0], pad)
        return self._leave(torch.convolution(x, *_with_bias(params), *numbers), inputs[0].dim())

    def plain_numbers(self, x: Tensor, weight: Tensor) -> tuple | None:
        """The numbers that aten::convolution takes if they say all: a batch of images, not transposed, even padding."""
        if self.dims != 2 or self.transposed or x.dim() != 4:
            return None
        numbers, pad = self._geometry(weight)
        return numbers if pad is None else None

    def _backward(
        self, saved: Any, weight: Tensor, g: Any, x: Tensor, want_x: bool, want_w: bool, pairs: Pairs = ()
    ) -> Tensors:
        """x̄ of the cotangent g, and w̄ of (g, x) at the (padded, batched) x and of all pairs; each if wanted."""
        _, dim, followed, few = saved
        numbers, pad = self._geometry(weight)
        if few is Few.PIXELS or (few is Few.CHANNELS and not want_w):
            deltas, tangents = [delta for delta, _ in pairs], [t for _, (t,) in pairs]
            found = _small_reverse(g, x, deltas, tangents, weight, *numbers[:3], want_x, want_w)
            return (found[0] if want_x else None), (found[-1] if want_w else None)
        if dim == self.dims + 1:
            g = g.unsqueeze(0)
        weight = weight if followed is None else followed
        x_bar, w_bar, _ = _convolution_backward(g, x, weight, None, *numbers, [want_x, want_w, False])
        if want_x:
            for d, (before, after) in enumerate(pad or (), start=2):
                x_bar = x_bar.narrow(d, before, x_bar.shape[d] - before - after)
            x_bar = self._leave(x_bar, dim)
        return x_bar, w_bar

    def few(self, x: Tensor, weight: Tensor, rectified: bool = False) -> Few | None:
        """Which own products the convolution of a batch x is for, alone or with a rectifier in one op."""
        if self.dims != 2 or x.dim() != self.batch_rank:
            return None
        numbers, pad = self._geometry(weight)
        return few_of(x, weight, numbers, rectified) if pad is None else None

    def window(self, weight: Tensor) -> tuple:
        """Stride, padding and dilation, as the project's ops take them."""
        return self._geometry(weight)[0][:3]

    def _geometry(self, weight: Tensor) -> tuple[tuple, list[tuple[int, int]] | None]:
        """The numbers that aten::convolution takes, and the explicit padding of an uneven 'same'."""
        if self._fixed is not None:
            return self._fixed, None
        total = [d * (k - 1) for d, k in zip(self._dilation, weight.shape[2:], strict=True)]
        if any(n % 2 for n in total):
            return self._numbers((0,) * self.dims), [(n // 2, n - n // 2) for n in total]
        return self._numbers(tuple(n // 2 for n in total)), None

    def _numbers(self, padding: tuple[int, ...]) -> tuple:
        return self._stride, padding, self._dilation, self.transposed, self._output_padding, self._groups

    def _enter(self, x: Tensor, pad: list[tuple[int, int]] | None) -> Tensor:
        """A batched, explicitly padded x."""
        if x.dim() == self.dims + 1:
            x = x.unsqueeze(0)
        if pad:
            x = F.pad(x, [n for side in reversed(pad) for n in side])
        return x

    def _leave(self, y: Tensor, dim: int) -> Tensor:
        """y without the batch dimension that `_enter` added to an input of `dim` dimensions."""
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


def added(total: Any, part: Any) -> Any:
    """The sum of two gradients, None for zero, in the place of the first."""
    if total is None or part is None:
        return part if total is None else total
    return total.add_(part)


def leaves_pair(delta: Tensor, t: Tensor, weight: Tensor) -> bool:
    """Whether (δ, t) is smaller than the gradient of the weight, so that sweep 4 may take its product, too."""
    return delta.numel() + t.numel() <= weight.numel()


def followed(x: Tensor, weight: Tensor) -> Tensor:
    """The weight in channels_last if only x is: once for all sweeps, where PyTorch would copy it at every call."""
    last = torch.channels_last
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.is_contiguous():
        return weight
    if not x.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last):
        return weight
    return weight.contiguous(memory_format=last)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
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
    ) -> Application | None:
        if isinstance(padding, str) and padding not in ("same", "valid"):
            return None
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
