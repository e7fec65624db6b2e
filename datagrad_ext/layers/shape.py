"""Layers that only rearrange: reshape, flatten, view, squeeze, permute, transpose, expand, repeat, roll, flip.

    reshape   vjp  g.reshape(x.shape)      jvp  t.reshape(y.shape)
    permute   vjp  inverse permutation     jvp  the permutation
    expand    vjp  sum over the copies     jvp  the expansion

All are linear, without parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Parameterless, Tensors, reduce_to
from .linear_map import LinearMap
from .registry import Application, Expansion, expansion, function_rule, module_rule


class Reshape(Parameterless):
    """The same elements in the same order under another shape: `method(x, *host)` of torch.Tensor."""

    aliases = True
    autocast = "same"

    def __init__(self, method: Callable[..., Tensor]) -> None:
        self._method = method

    @property
    def name(self) -> str:
        return self._method.__name__.capitalize()

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        return "flatten" if self._method is torch.Tensor.flatten and host == (1, -1) else None

    def apply(self, *inputs: Any) -> Tensor:
        return self._method(*inputs)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self._method(inputs[0], *host)
        return y, (inputs[0].shape, y.shape)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (g.reshape(saved[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return tangents[0].reshape(saved[1])


class Permute(Parameterless):
    """Dimensions in another order; `order(dims)` gives it for a tensor of that many dimensions."""

    aliases = True
    autocast = "same"

    def __init__(self, order: Callable[[int], list[int]]) -> None:
        self._order = order

    def apply(self, *inputs: Any) -> Tensor:
        return inputs[0].permute(self._order(inputs[0].dim()))

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        order = self._order(inputs[0].dim())
        return inputs[0].permute(order), (order,)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        inverse = sorted(range(len(saved[0])), key=saved[0].__getitem__)
        return (g.permute(inverse),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return tangents[0].permute(saved[0])


@module_rule(nn.Flatten, config=("start_dim", "end_dim"))
def _flatten(module: nn.Flatten) -> Application:
    return Application(Reshape(torch.Tensor.flatten), host=(module.start_dim, module.end_dim))


@module_rule(nn.Unflatten, config=("dim", "unflattened_size"))
def _unflatten(module: nn.Unflatten) -> Application | None:
    if isinstance(module.dim, str):
        return None
    return Application(Reshape(torch.Tensor.unflatten), host=(module.dim, module.unflattened_size))


def _reshape_rule(method: Callable, *functions: Callable) -> None:
    """Register a reshaping tensor method (and functions with the same arguments)."""

    @function_rule(*functions, methods=(method.__name__,))
    def _(input: Any, *sizes: Any, **named: Any) -> Application | None:
        sizes += tuple(named.values()) if len(named) <= 1 else (None,)
        if any(size is None or isinstance(size, torch.dtype) for size in sizes):
            return None
        return Application(Reshape(method), inputs=(input,), host=sizes)


_reshape_rule(torch.Tensor.reshape, torch.reshape)
_reshape_rule(torch.Tensor.view)
_reshape_rule(torch.Tensor.squeeze, torch.squeeze)
_reshape_rule(torch.Tensor.unsqueeze, torch.unsqueeze)
_reshape_rule(torch.Tensor.unflatten, torch.unflatten)


@function_rule(torch.flatten, methods=("flatten",))
def _flatten_call(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Application:
    return Application(Reshape(torch.Tensor.flatten), inputs=(input,), host=(start_dim, end_dim))


@function_rule(methods=("contiguous",))
def _contiguous(input: Any) -> Application:
    return Application(Reshape(torch.Tensor.contiguous), inputs=(input,))


@function_rule(torch.permute, methods=("permute",))
def _permute(input: Any, *dims: Any) -> Application | None:
    order = list(dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims)
    if not all(isinstance(d, int) for d in order):
        return None
    return Application(Permute(lambda n: [_counted(d, n) for d in order]), inputs=(input,))


@function_rule(torch.transpose, torch.swapaxes, methods=("transpose", "swapaxes"))
def _transpose(input: Any, dim0: Any, dim1: Any) -> Application | None:
    if not (isinstance(dim0, int) and isinstance(dim1, int)):
        return None
    return Application(Permute(lambda n: _swapped(n, dim0, dim1)), inputs=(input,))


@function_rule(torch.t, methods=("t",))
def _t(input: Any) -> Application:
    return Application(Permute(_transposed), inputs=(input,))


@function_rule(getattr)
def _attribute(input: Any, name: str) -> Application | None:
    if name == "mT":
        return _transpose(input, -2, -1)
    return Application(Permute(lambda n: list(range(n))[::-1]), inputs=(input,)) if name == "T" else None


@function_rule(torch.movedim, torch.moveaxis, methods=("movedim", "moveaxis"))
def _movedim(input: Any, source: Any, destination: Any) -> Application | None:
    if not (isinstance(source, int) and isinstance(destination, int)):
        return None
    return Application(Permute(lambda n: _moved(n, source, destination)), inputs=(input,))


_EXPAND = LinearMap("Expand", Tensor.expand, lambda g, shape, *sizes: reduce_to(g, shape), aliases=True)
_ROLL = LinearMap("Roll", torch.roll, lambda g, shape, shifts, dims: torch.roll(g, _negated(shifts), dims))
_FLIP = LinearMap("Flip", torch.flip, lambda g, shape, dims: torch.flip(g, dims))


@function_rule(methods=("expand",))
def _expand(input: Any, *sizes: Any) -> Application:
    return Application(_EXPAND, inputs=(input,), host=sizes)


@function_rule(methods=("repeat",))
def _repeat(input: Any, *sizes: Any) -> Application:
    return Application(LinearMap("Repeat", Tensor.repeat, _sum_of_copies), inputs=(input,), host=sizes)


@function_rule(torch.roll, methods=("roll",))
def _roll(input: Any, shifts: Any, dims: Any = None) -> Application:
    return Application(_ROLL, inputs=(input,), host=(shifts, dims))


@function_rule(torch.flip, methods=("flip",))
def _flip(input: Any, *dims: Any) -> Application:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return Application(_FLIP, inputs=(input,), host=(tuple(order),))


@expansion(F.channel_shuffle)
def _channel_shuffle(input: Any, groups: int) -> Any:
    return input.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


@module_rule(nn.ChannelShuffle, config=("groups",))
def _channel_shuffle_module(module: nn.ChannelShuffle) -> Expansion:
    groups = module.groups
    return Expansion(lambda input: _channel_shuffle(input, groups))


def _sum_of_copies(g: Tensor, shape: torch.Size, *sizes: Any) -> Tensor:
    """The transpose of x.repeat(*sizes)."""
    counts = list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes)
    sides = [1] * (len(counts) - len(shape)) + list(shape)
    pairs = [n for pair in zip(counts, sides, strict=True) for n in pair]
    return g.reshape(pairs).sum(list(range(0, len(pairs), 2))).reshape(shape)


def _negated(shifts: Any) -> Any:
    return -shifts if isinstance(shifts, int) else [-n for n in shifts]


def _counted(dim: int, n: int) -> int:
    """The dimension, counted from the front; an IndexError in PyTorch's words if there is none. A number has one."""
    n = max(n, 1)
    if not -n <= dim < n:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {dim})")
    return dim % n


def _moved(n: int, source: int, destination: int) -> list[int]:
    source, destination = _counted(source, n), _counted(destination, n)
    order = [d for d in range(n) if d != source]
    order.insert(destination, source)
    return order[:n]


def _swapped(n: int, a: int, b: int) -> list[int]:
    swap = {_counted(a, n): _counted(b, n), _counted(b, n): _counted(a, n)}
    return [swap.get(d, d) for d in range(n)]


def _transposed(n: int) -> list[int]:
    if n > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {n}D")
    return list(range(n))[::-1]
