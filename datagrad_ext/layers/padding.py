"""Padding: constant, reflect, replicate, circular; one or more of the last dimensions.

    jvp  the padding of t with zeros for a constant, else the padding itself
    vjp  the middle of g, plus what the borders of g were copies of (a constant's borders are nobody's copies)

A padding is its dimensions one after the other, and so is its transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Parameterless, Tensors
from .registry import Application, function_rule, module_rule


class Pad(Parameterless):
    """F.pad; host values are the padding (last dimension first, before and after) and the constant's value."""

    follows_layout = True

    def __init__(self, mode: str) -> None:
        self._mode = mode

    @property
    def name(self) -> str:
        return f"Pad({self._mode})"

    def apply(self, *inputs: Any) -> Tensor:
        x, padding, value = inputs
        return F.pad(x, list(padding), self._mode, value)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(inputs[0], *host), (tuple(host[0]),)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        (padding,) = saved
        if self._mode == "constant":
            return (F.pad(g, [-n for n in padding]),)
        for i in range(0, len(padding), 2):
            g = _FOLDS[self._mode](g, -1 - i // 2, *padding[i : i + 2])
        return (g,)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.apply(tangents[0], saved[0], None)


def _middle(g: Tensor, dim: int, before: int, after: int) -> tuple[Tensor, Tensor, Tensor]:
    """What lies before x, at x (a copy), and after x."""
    first, x, last = g.split([before, g.shape[dim] - before - after, after], dim)
    return first, x.clone(), last


def _fold_reflect(g: Tensor, dim: int, before: int, after: int) -> Tensor:
    first, x, last = _middle(g, dim, before, after)
    n = x.shape[dim]
    x.narrow(dim, 1, first.shape[dim]).add_(first.flip(dim))
    x.narrow(dim, n - 1 - last.shape[dim], last.shape[dim]).add_(last.flip(dim))
    return x


def _fold_replicate(g: Tensor, dim: int, before: int, after: int) -> Tensor:
    first, x, last = _middle(g, dim, before, after)
    x.narrow(dim, 0, 1).add_(first.sum(dim, keepdim=True))
    x.narrow(dim, x.shape[dim] - 1, 1).add_(last.sum(dim, keepdim=True))
    return x


def _fold_circular(g: Tensor, dim: int, before: int, after: int) -> Tensor:
    first, x, last = _middle(g, dim, before, after)
    n = x.shape[dim]
    x.narrow(dim, n - first.shape[dim], first.shape[dim]).add_(first)
    x.narrow(dim, 0, last.shape[dim]).add_(last)
    return x


_FOLDS = {"reflect": _fold_reflect, "replicate": _fold_replicate, "circular": _fold_circular}


@function_rule(F.pad)
def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Application | None:
    if mode != "constant" and not all(isinstance(n, int) and n >= 0 for n in pad):
        return None
    return Application(Pad(mode), inputs=(input,), host=(pad, value))


def _register(mode: str, *modules: type[nn.Module]) -> None:
    constant = mode == "constant"

    @module_rule(*modules, config=("padding", "value") if constant else ("padding",))
    def _(module: Any) -> Application | None:
        return _pad(None, module.padding, mode, module.value if constant else None)


_register("constant", nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_register("reflect", nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
_register("replicate", nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
_register("circular", nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
