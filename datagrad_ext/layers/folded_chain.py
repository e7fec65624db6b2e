"""Chains some of whose linear layers or convolutions have a norm by running statistics behind them, folded into them.

The ops of chains see W′ and b′ (`folded.py`), which are computed once a forward. Sweep 3 leaves its part of the
weights' gradients with the chain's pair, and sweep 4 unfolds the sums once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from .base import Composition, Layer, Tensors, add_each
from .chain import Chain
from .folded import Fold, Folded, FoldedNorm, split_pairs


class WithFolds(Composition):
    """What a chain of folded layers does besides; the chain is the class behind. Host values are the layers'."""

    def _fold(self, layers: Sequence[Layer], n_params: Sequence[int], n_host: Sequence[int]) -> list[int]:
        """How many parameters of each layer the chain sees."""
        folds = [layer.fold if isinstance(layer, FoldedNorm) else None for layer in layers]
        inner = [n if fold is None else 2 for fold, n in zip(folds, n_params, strict=True)]
        # Of each layer: its fold or None, where its parameters are inside and outside, and its host values.
        self._parts = list(zip(folds, _slices(inner), _slices(n_params), _slices(n_host), strict=True))
        return inner

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        inner: Tensors = ()
        kept: Tensors = ()
        for fold, _, own, given in self._parts:
            part, factors = params[own], ()
            if fold is not None:
                part, factors = fold.folded(_of_rank(fold, inputs[0]), params[own], host[given])
            inner, kept = inner + part, (*kept, factors)
        y, saved = super().forward(inputs, inner)
        return y, (saved, inner, kept)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        return super().data_vjp(saved[0], saved[1], g, wanted)

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
        wanted, none = self._wanted_inside(wanted_params), (None,) * len(saved[1])
        y_tangent, pair, bars = super().data_jvp(saved[0], saved[1], tangents, record, needed, wanted, none)
        return y_tangent, (pair, bars), sums

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Any,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        x_bars: Tensors = (None,)
        (*inner_saved, inner, kept), saved = saved, None
        own, bars = split_pairs(pairs, (None,) * len(inner))
        if zeta is not None or own:
            wanted = self._wanted_inside(wanted_params)
            x_bars, bars = super().reverse(inner_saved.pop(), inner, zeta, own, wanted_inputs, wanted, bars)
        found: Tensors = ()
        for (fold, inside, outside, _), factors in zip(self._parts, kept, strict=True):
            part = bars[inside]
            found += part if fold is None else fold.unfolded(factors, params[outside], part)
        return x_bars, add_each(sums, found)

    def _wanted_inside(self, wanted: Sequence[bool]) -> tuple[bool, ...]:
        """Flags of the chain's own parameters; W′ and b′ are wanted if anything is that they were made of."""
        flags: tuple[bool, ...] = ()
        for fold, _, own, _ in self._parts if wanted else ():
            flags += tuple(wanted[own]) if fold is None else (True in wanted[own],) * 2
        return flags


class _Together(WithFolds, Chain):
    """The chain of the folded layers."""

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int], n_host: Sequence[int]) -> None:
        super().__init__(layers, self._fold(layers, n_params, n_host))

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        (x,) = inputs
        for layer, (fold, _, own, _), factors in zip(self.layers, self._parts, saved[2], strict=True):
            values = params[own]
            x = layer.reference((), (x,), values) if fold is None else fold.value_then((x,), values, factors)
        return x

    def in_turn(self, inputs: Tensors, params: Tensors, host: tuple) -> Tensor:
        """One layer after the other, by the statistics of this call."""
        (x,) = inputs
        for layer, (fold, _, own, given) in zip(self.layers, self._parts, strict=True):
            values = params[own]
            x = layer.reference((), (x,), values) if fold is None else fold.value_now((x,), values, host[given])
        return x


class FoldedChain(Folded):
    """The composition of the layers; params and host values are theirs, in order."""

    ops = Chain.ops

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int], n_host: Sequence[int]) -> None:
        together = _Together(layers, n_params, n_host)
        self.curved = together.curved
        super().__init__(together, 2, together.in_turn)


def _of_rank(fold: Fold, x: Tensor) -> Tensor:
    """Something with as many dimensions as the layer's input: no statistics look at more."""
    return x[..., 0, 0] if x.dim() == fold.linear.batch_rank + 2 else x


def _slices(counts: Sequence[int]) -> list[slice]:
    """Where the parts of a sequence are, which have so many elements."""
    return [slice(begin, end) for begin, end in pairwise(accumulate(counts, initial=0))]
