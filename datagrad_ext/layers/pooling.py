"""Average, adaptive average and max pooling in one, two and three dimensions.

    average   linear: jvp is the pooling itself, vjp spreads g over the windows
    max       jvp gathers the tangent at the maximal places, vjp scatters g to them; the places are saved

One-dimensional pooling is two-dimensional pooling of height one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.chain import word
from .base import FLOAT32_ON_CPU, Layer, Parameterless, Tensors, blank
from .registry import Application, function_rule, module_rule

_aten = torch.ops.aten


class AvgPool(Parameterless):
    """Mean over windows."""

    follows_layout = True

    def __init__(self, dims: int, kernel: Any, stride: Any, padding: Any, ceil: bool, count: bool, divisor: Any = None):
        self._dims, self.autocast = dims, _autocast(dims)
        stride = kernel if stride in (None, [], ()) else stride
        self._numbers = (_each(kernel, dims, 1), _each(stride, dims, 1), _each(padding, dims, 0), ceil, count, divisor)
        self._pool = _aten.avg_pool3d.default if dims == 3 else _aten.avg_pool2d.default
        self._spread = _aten.avg_pool3d_backward.default if dims == 3 else _aten.avg_pool2d_backward.default

    @property
    def name(self) -> str:
        return f"AvgPool{self._dims}d"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        kernel, stride, padding, ceil, count, divisor = self._numbers
        if self._dims != 2 or ceil or divisor is not None or _is_refused(kernel, padding):
            return None
        return word("avg_pool", False, (*kernel, *stride, *padding, count))

    def apply(self, *inputs: Any) -> Tensor:
        return _narrow(self._pool(_widen(inputs[0], self._dims), *self._numbers), self._dims)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(*inputs), (inputs[0].new_empty(0), inputs[0].shape, inputs[0].stride())

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        x = _widen(blank(saved), self._dims)
        return (_narrow(self._spread(_as_dense_as(x, _widen(g, self._dims)), x, *self._numbers), self._dims),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.apply(tangents[0])


class AdaptiveAvgPool(Parameterless):
    """Mean over windows that give an output of a wanted size."""

    follows_layout = True

    def __init__(self, dims: int, size: Any) -> None:
        self._dims, self.autocast = dims, _autocast(dims)
        self._size = [size] * dims if isinstance(size, int) or size is None else list(size)
        three = dims == 3
        self._spread = (_aten._adaptive_avg_pool3d_backward if three else _aten._adaptive_avg_pool2d_backward).default

    @property
    def name(self) -> str:
        return f"AdaptiveAvgPool{self._dims}d"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        is_mean = self._dims == 2 and all(side == 1 for side in _each(self._size, 2, 1))
        return word("avg_pool", False, (0, 0, 1, 1, 0, 0, True)) if is_mean else None

    def apply(self, *inputs: Any) -> Tensor:
        x = inputs[0]
        size = [n if s is None else s for s, n in zip(self._size, x.shape[-self._dims :], strict=True)]
        pool: Any = F.adaptive_avg_pool3d if self._dims == 3 else F.adaptive_avg_pool2d
        size = [1, *size] if self._dims == 1 else size
        return _narrow(pool(_widen(x, self._dims), size), self._dims)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(*inputs), (inputs[0].new_empty(0), inputs[0].shape, inputs[0].stride())

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        x = _widen(blank(saved), self._dims)
        return (_narrow(self._spread(_as_dense_as(x, _widen(g, self._dims)), x), self._dims),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.apply(tangents[0])


class MaxPool(Layer):
    """Maximum over windows; saves the places of the maxima."""

    follows_layout = True

    def __init__(self, dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> None:
        self._dims, self.autocast = dims, _autocast(dims)
        stride = kernel if stride in (None, [], ()) else stride
        self._numbers = (
            _each(kernel, dims, 1),
            _each(stride, dims, 1),
            _each(padding, dims, 0),
            _each(dilation, dims, 1),
            ceil,
        )
        three = dims == 3
        self._pool = (_aten.max_pool3d_with_indices if three else _aten.max_pool2d_with_indices).default
        self._scatter = (
            _aten.max_pool3d_with_indices_backward if three else _aten.max_pool2d_with_indices_backward
        ).default

    @property
    def name(self) -> str:
        return f"MaxPool{self._dims}d"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        *windows, ceil = self._numbers
        if self._dims != 2 or ceil or _is_refused(windows[0], windows[2]):
            return None
        return word("max_pool", False, [n for pair in windows for n in pair])

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = _widen(inputs[0], self._dims)
        y, places = self._pool(x, *self._numbers)
        return _narrow(y, self._dims), (places, x.shape, x.stride())

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        places, shape, stride = saved
        x = blank((g, shape, stride))
        return (_narrow(self._scatter(_widen(g, self._dims), x, *self._numbers, places), self._dims),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._gather(tangents[0], saved[0])

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return self._gather(inputs[0], saved[0])

    def _gather(self, x: Tensor, places: Tensor) -> Tensor:
        """The elements of x at the saved places."""
        start = -max(self._dims, 2)
        x = _widen(x, self._dims)
        return _narrow(x.flatten(start).gather(-1, places.flatten(start)).view(places.shape), self._dims)


def _is_refused(kernel: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether torch may refuse the padding, which it says best where the layer runs by itself."""
    return any(2 * p > k for p, k in zip(padding, kernel, strict=True))


def _autocast(dims: int) -> str | Mapping[str, str]:
    """Only in three dimensions, and for CPUs, does torch's autocast have a rule for pooling."""
    return FLOAT32_ON_CPU if dims == 3 else "same"


def _widen(x: Tensor, dims: int) -> Tensor:
    return x.unsqueeze(-2) if dims == 1 else x


def _narrow(x: Tensor, dims: int) -> Tensor:
    return x.squeeze(-2) if dims == 1 else x


def _as_dense_as(x: Tensor, g: Tensor) -> Tensor:
    """g in channels_last if x is: torch takes maps of one pixel for contiguous, and would copy its result twice."""
    last = torch.channels_last
    if x.dim() != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=last) or g.shape[2:].numel() != 1:
        return g
    channels = g.shape[1]
    return g.contiguous().as_strided(g.shape, (channels, 1, channels, channels))


def _each(value: Any, dims: int, unit: int) -> list[int]:
    """One number for each dimension, with `unit` for the added dimension of one-dimensional pooling."""
    values = [value] if isinstance(value, int) else list(value)
    values = values * dims if len(values) == 1 else values
    return [unit, *values] if dims == 1 else values


def _register(dims: int, avg_module: Any, avg: Any, max_module: Any, maximum: Any, ada_module: Any, ada: Any) -> None:
    """Modules and functions of one dimensionality."""
    has_divisor = dims > 1
    config = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

    @module_rule(avg_module, config=config + (("divisor_override",) if has_divisor else ()))
    def _(m: Any) -> Application:
        divisor = m.divisor_override if has_divisor else None
        return Application(AvgPool(dims, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor))

    @function_rule(avg)
    def _(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Application:
        layer = AvgPool(dims, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return Application(layer, inputs=(input,))

    @module_rule(max_module, config=("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"))
    def _(m: Any) -> Application | None:
        if m.return_indices:
            return None
        return Application(MaxPool(dims, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode))

    @function_rule(maximum)
    def _(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Application | None:
        if return_indices:
            return None
        return Application(MaxPool(dims, kernel_size, stride, padding, dilation, ceil_mode), inputs=(input,))

    @module_rule(ada_module, config=("output_size",))
    def _(m: Any) -> Application:
        return Application(AdaptiveAvgPool(dims, m.output_size))

    @function_rule(ada)
    def _(input: Any, output_size: Any) -> Application:
        return Application(AdaptiveAvgPool(dims, output_size), inputs=(input,))


_register(1, nn.AvgPool1d, F.avg_pool1d, nn.MaxPool1d, F.max_pool1d, nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d)
_register(2, nn.AvgPool2d, F.avg_pool2d, nn.MaxPool2d, F.max_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
_register(3, nn.AvgPool3d, F.avg_pool3d, nn.MaxPool3d, F.max_pool3d, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d)
