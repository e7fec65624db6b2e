"""Index: y = x[i], a part of a tensor (ints, slices, None, …) or one tensor of a layer's tuple.

    tensor   vjp  g at i and zero elsewhere      jvp  t[i]
    tuple    vjp  g at i and None elsewhere      jvp  t[i]
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Parameterless, Tensors
from .registry import Application, function_rule


class Index(Parameterless):
    """x[i] for a constant i."""

    aliases = True
    autocast = "same"

    def __init__(self, index: Any) -> None:
        self._index = index

    def apply(self, *inputs: Any) -> Any:
        return inputs[0][self._index]

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Any, tuple]:
        x = inputs[0]
        return self.apply(x), (x.shape if isinstance(x, Tensor) else len(x),)

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        if isinstance(saved[0], int):
            return (tuple(g if i == self._index % saved[0] else None for i in range(saved[0])),)
        x_bar = g.new_zeros(saved[0])
        x_bar[self._index] = g
        return (x_bar,)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        return self.apply(tangents[0])


def _constant(index: Any) -> bool:
    if isinstance(index, tuple):
        return all(map(_constant, index))
    if isinstance(index, slice):
        return all(map(_constant, (index.start, index.stop, index.step)))
    return index is None or index is Ellipsis or (isinstance(index, int) and not isinstance(index, bool))


@function_rule(operator.getitem)
def _getitem(input: Any, index: Any) -> Application | None:
    return Application(Index(index), inputs=(input,)) if _constant(index) else None
