"""A peer: 2-D convolution whose double backward stays inside its own three operations.

    y  = convolution(x, w)        gx = input_gradient(g, w)        gw = weight_gradient(g, x)

Each is bilinear, and the gradient of each is again one of the three. So the second pass gets its weight
gradient from an ordinary call on (g, v), where PyTorch convolves with a kernel as large as the map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F


class Geometry(NamedTuple):
    """What a convolution is told besides its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


_weight_gradients_wanted = True


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Within it, backward leaves weight gradients out: the data-gradient pass does not use them."""
    global _weight_gradients_wanted
    before, _weight_gradients_wanted = _weight_gradients_wanted, False
    try:
        yield
    finally:
        _weight_gradients_wanted = before


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, wanted: list[bool]
) -> list[Tensor]:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        g, x, w, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )


class Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return F.conv2d(x, w, None, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        gx = InputGradient.apply(g, w, x, ctx.geometry) if ctx.needs_input_grad[0] else None
        wanted = ctx.needs_input_grad[1] and _weight_gradients_wanted
        return gx, WeightGradient.apply(g, x, w, ctx.geometry) if wanted else None, None


class InputGradient(Function):
    """gx(g, w); `x` is there for its shape and layout."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.geometry = geometry
        return _convolution_backward(g, x.detach(), w, geometry, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        return Convolution.apply(v, w, ctx.geometry), WeightGradient.apply(g, v, w, ctx.geometry), None, None


class WeightGradient(Function):
    """gw(g, x); `w` is there for its shape and layout."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.geometry = geometry
        return _convolution_backward(g, x, w.detach(), geometry, [False, True, False])[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        return Convolution.apply(x, v, ctx.geometry), InputGradient.apply(g, v, x, ctx.geometry), None, None


class FixedConv2d(nn.Conv2d):
    """nn.Conv2d (zero padding given as numbers) computed by `Convolution`."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple), "the benchmark's networks pad by numbers"
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)
        y = Convolution.apply(input, self.weight, geometry)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def fix_convolutions(model: nn.Module) -> nn.Module:
    """Give every nn.Conv2d of `model` the fixed double backward, in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FixedConv2d
    return model
