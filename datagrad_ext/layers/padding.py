"""Padding: constant, reflect, replicate, circular; one or more of the last dimensions.

    jvp  the padding of t, with zeros for a constant
    vjp  the middle of g, plus the borders of g at what they are copies of (a constant is nobody's copy)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FLOAT32_ON_CPU, Parameterless, Tensors, blank
from .registry import Application, function_rule, module_rule


class Pad(Parameterless):
    """F.pad; host values are the padding (last dimension first, before and after) and the constant's value."""

    follows_layout = True

    def __init__(self, mode: str, dims: int) -> None:
        self._mode = mode
        listed = mode == "replicate" or (mode == "reflect" and dims < 3)
        self.autocast = FLOAT32_ON_CPU if listed else "same"

    @property
    def name(self) -> str:
        return f"Pad({self._mode})"

    def apply(self, *inputs: Any) -> Tensor:
        x, padding, value = inputs
        return F.pad(x, list(padding), self._mode, value)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = inputs[0]
        return self.apply(x, *host), (tuple(host[0]), x.new_empty(0), x.shape, x.stride())

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        padding, *like = saved
        if self._mode == "constant":
            return (F.pad(g, [-n for n in padding]),)
        if self._mode == "circular":
            for i in range(0, len(padding), 2):
                g = _unwrapped(g, -1 - i // 2, *padding[i : i + 2])
            return (g,)
        kernel = {"reflect": "reflection", "replicate": "replication"}[self._mode]
        backward = getattr(torch.ops.aten, f"{kernel}_pad{len(padding) // 2}d_backward").default
        return (backward(g, blank(like), list(padding)),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.apply(tangents[0], saved[0], None)


def _unwrapped(g: Tensor, dim: int, before: int, after: int) -> Tensor:
    """The transpose of circular padding along one dimension: the borders are added to where they came from."""
    first, middle, last = g.split([before, g.shape[dim] - before - after, after], dim)
    x_bar = middle.clone()
    x_bar.narrow(dim, x_bar.shape[dim] - before, before).add_(first)
    x_bar.narrow(dim, 0, after).add_(last)
    return x_bar


@function_rule(F.pad)
def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Application | None:
    if mode != "constant" and not all(isinstance(n, int) and n >= 0 for n in pad):
        return None
    dims = 0 if mode == "constant" else len(pad) // 2
    return Application(Pad(mode, dims), inputs=(input,), host=(pad, value))


def _register(mode: str, *modules: type[nn.Module]) -> None:
    constant = mode == "constant"

    @module_rule(*modules, config=("padding", "value") if constant else ("padding",))
    def _(module: Any) -> Application | None:
        return _pad(None, module.padding, mode, module.value if constant else None)


_register("constant", nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_register("reflect", nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
_register("replicate", nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
_register("circular", nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
