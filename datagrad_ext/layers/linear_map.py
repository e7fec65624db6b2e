"""LinearMap: y = A x for a map A that its arguments fix, given as a function and its transpose.

    vjp  Aᵀ g      jvp  A t

`call(x, *arguments)` is A; `transpose(g, shape, *arguments)` is Aᵀ, for an x of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .base import Parameterless, Tensors


class LinearMap(Parameterless):
    """One linear function of one value; the host values are its arguments."""

    def __init__(
        self,
        name: str,
        call: Callable[..., Tensor],
        transpose: Callable[..., Tensor],
        aliases: bool = False,
        follows_layout: bool = False,
        autocast: str | Mapping[str, str] = "same",
    ) -> None:
        self._name, self._call, self._transpose = name, call, transpose
        self.aliases, self.follows_layout, self.autocast = aliases, follows_layout, autocast

    @property
    def name(self) -> str:
        return self._name

    def apply(self, *inputs: Any) -> Tensor:
        return self._call(*inputs)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self._call(inputs[0], *host), (inputs[0].shape, host)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        shape, arguments = saved
        return (self._transpose(g, shape, *arguments),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._call(tangents[0], *saved[1])
