"""Borders of a part of the network that runs in channels_last although its input is contiguous.

    enter   y = x in channels_last      leave   y = x in contiguous memory      both the identity, forth and back

The host value of a border says whether the part pays (`pays`): where it does not, or the input is in channels_last
already, the borders do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Parameterless, Tensors

_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def pays(x: Any) -> bool:
    """Whether convolutions of x are faster in channels_last, by more than the copies at the borders cost.

    On processors with AVX-512 they are, in float32: their convolutions of contiguous tensors copy at every call. On
    those without, the contiguous ones are the faster (docs/performance.md has both). CUDA was not measured.
    """
    return (
        isinstance(x, Tensor)
        and x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[0] > 1
        and not x.is_contiguous(memory_format=torch.channels_last)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


class Border(Parameterless):
    """The identity into memory format `inner`, and back into `outer` for cotangents; host: whether it is a border."""

    aliases = True

    def __init__(self, inner: str, outer: str) -> None:
        self._inner, self._outer = inner, outer

    @property
    def name(self) -> str:
        return f"to {self._inner}"

    def acted(self, saved: Any) -> bool:
        return saved[0]

    def apply(self, *inputs: Any) -> Tensor:
        return inputs[0]

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        (x,), (crosses,) = inputs, host
        return _to(x, self._inner, crosses), (crosses,)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (_to(g, self._outer, saved[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return _to(tangents[0], self._inner, saved[0])


def _to(x: Tensor, memory_format: str, crosses: bool) -> Tensor:
    return x.contiguous(memory_format=_FORMATS[memory_format]) if crosses and x.dim() == 4 else x


def enter() -> Border:
    """The border into channels_last."""
    return Border("channels_last", "contiguous")


def leave() -> Border:
    """The border out of channels_last."""
    return Border("contiguous", "channels_last")
