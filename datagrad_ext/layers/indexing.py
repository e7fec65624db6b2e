"""A part of a value: y = x[i], or a value in parts: split, chunk, unbind; and parts in one: stack.

    x[i]     vjp  g at i and zero elsewhere      jvp  t[i]
    tuple    vjp  g at i and None elsewhere      jvp  t[i]            one tensor of a layer's tuple
    split    vjp  the parts of g in one          jvp  t in parts
    stack    vjp  g in parts                     jvp  the parts of t in one

An index is made of ints, slices, None, … and tensors or lists of ints or bools.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Parameterless, Tensors
from .registry import Application, function_rule


class Index(Parameterless):
    """x[i]; the host value is i."""

    aliases = True
    autocast = "same"

    def apply(self, *inputs: Any) -> Any:
        return inputs[0][inputs[1]]

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Any, tuple]:
        x = inputs[0]
        return x[host[0]], (x.shape if isinstance(x, Tensor) else len(x), host[0])

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        shape, index = saved
        if isinstance(shape, int):
            return (_placed(g, shape, index),)
        if _repeats(index):
            places = torch.arange(shape.numel(), device=g.device).view(shape)[index]
            return (g.new_zeros(shape.numel()).index_add_(0, places.flatten(), g.flatten()).view(shape),)
        x_bar = g.new_zeros(shape)
        x_bar[index] = g
        return (x_bar,)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        return tangents[0][saved[1]]


def _placed(g: Any, n: int, index: Any) -> Tensors:
    """A tuple of n cotangents with g, one or those of a slice, in its places, and None elsewhere."""
    places = range(n)[index]
    known = {places: g} if isinstance(places, int) else dict(zip(places, g, strict=True))
    return tuple(known.get(i) for i in range(n))


class Split(Parameterless):
    """x in parts along `dim`: `method(x, *host)` gives them, `join` puts them together."""

    aliases = True
    autocast = "same"

    def __init__(self, method: Callable[..., Tensors], dim: int, join: Callable[..., Tensor]) -> None:
        self._method, self._dim, self._join = method, dim, join

    @property
    def name(self) -> str:
        return self._method.__name__.capitalize()

    def apply(self, *inputs: Any) -> Tensors:
        return self._method(*inputs, dim=self._dim)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensors, tuple]:
        parts = tuple(self.apply(inputs[0], *host))
        return parts, (tuple(part.shape for part in parts), host)

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        return (self._join(_filled(g, saved[0]), self._dim),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensors:
        return tuple(self.apply(tangents[0], *saved[1]))


class Stack(Parameterless):
    """Tensors of one shape as parts of one along a new dimension."""

    autocast = "widest"

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def apply(self, *inputs: Any) -> Tensor:
        return torch.stack(inputs, self._dim)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(*inputs), ()

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return g.unbind(self._dim)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        shape = next(t.shape for t in tangents if t is not None)
        return self.apply(*_filled(tangents, [shape] * len(tangents)))


def _filled(parts: Tensors, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The parts, with zeros for None."""
    like = next(part for part in parts if part is not None)
    return [like.new_zeros(s) if part is None else part for part, s in zip(parts, shapes, strict=True)]


def _repeats(index: Any) -> bool:
    """Whether the index may name a place more than once."""
    return any(isinstance(i, (Tensor, list, bool)) for i in (index if isinstance(index, tuple) else (index,)))


@function_rule(operator.getitem)
def _getitem(input: Any, index: Any) -> Application:
    return Application(Index(), inputs=(input,), host=(index,))


@function_rule(torch.select, methods=("select",))
def _select(input: Any, dim: Any, index: Any) -> Application | None:
    if not (isinstance(dim, int) and dim >= 0):
        return None
    return Application(Index(), inputs=(input,), host=((slice(None),) * dim + (index,),))


@function_rule(torch.split, methods=("split",))
def _split(tensor: Any, split_size_or_sections: Any, dim: int = 0) -> Application | None:
    return _parts(torch.split, torch.cat, tensor, dim, split_size_or_sections)


@function_rule(methods=("split",))
def _split_method(input: Any, split_size: Any, dim: int = 0) -> Application | None:
    return _split(input, split_size, dim)


@function_rule(torch.chunk, methods=("chunk",))
def _chunk(input: Any, chunks: Any, dim: int = 0) -> Application | None:
    return _parts(torch.chunk, torch.cat, input, dim, chunks)


@function_rule(torch.unbind, methods=("unbind",))
def _unbind(input: Any, dim: int = 0) -> Application | None:
    return _parts(torch.unbind, torch.stack, input, dim)


@function_rule(torch.stack)
def _stack(tensors: Any, dim: int = 0) -> Application | None:
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    return Application(Stack(dim), inputs=tuple(tensors))


def _parts(method: Callable, join: Callable, input: Any, dim: Any, *host: Any) -> Application | None:
    return Application(Split(method, dim, join), inputs=(input,), host=host) if isinstance(dim, int) else None
