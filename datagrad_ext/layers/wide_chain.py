"""WideChain: a chain under autocast that computes in float32 between an input and an output of autocast's dtypes.

What a narrow chain spends on products in a low dtype on the CPU is mostly their start, and most processors emulate
arithmetic in float16. In float32 such a chain is faster, no less exact, and its parameters need no casts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Layer, Pairs, Tensors
from .cast import cast
from .chain import Chain


class WideChain(Chain):
    """A chain with float32 parameters whose output has the dtype `low`."""

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int], low: torch.dtype) -> None:
        super().__init__(layers, n_params)
        self._low, self.compiled = low, None

    @property
    def name(self) -> str:
        return f"{super().name} (in float32)"

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y, saved = super().forward((_wide(inputs[0]),), params)
        return cast(y, self._low), (saved, inputs[0].dtype)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        bars, record = super().data_vjp(saved[0], params, _wide(g), wanted)
        return (bars[0].to(saved[1]),), record

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
        wide = (_wide(tangents[0]),)
        y_tangent, pair, sums = super().data_jvp(saved[0], params, wide, record, needed, wanted_params, sums)
        return cast(y_tangent, self._low) if needed else None, pair, sums

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
        wide = None if zeta is None else _wide(zeta)
        (x_bar,), sums = super().reverse(saved[0], params, wide, pairs, wanted_inputs, wanted_params, sums)
        return (None if x_bar is None else x_bar.to(saved[1]),), sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return cast(super().reference(saved, (_wide(inputs[0]),), params), self._low)


def _wide(x: Tensor) -> Tensor:
    return cast(x, torch.float32)
