"""Layers with a norm by running statistics behind them, folded into them: no sweep has a pass for the norm.

The layer inside sees W′ and b′ (`folds.py`), which are computed once a forward, at the price of products of the
weight's size. Sweep 3 leaves its part of their gradients with the pair of the layer inside, and sweep 4 unfolds the
sums once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import Layer, PerCall, Tensors, add_each
from .chain import Chain
from .convolution import Convolution
from .folds import Fold, Folds
from .linear import Linear
from .opaque import Opaque
from .running_statistics import RunningNorm


class Together(Layer):
    """The layer inside, by W′ and b′. Saves what the folds keep, the parameters inside, and what that layer saves."""

    paired = True

    def __init__(self, inside: Layer, name: str, layers: Sequence[Layer], folds: Folds) -> None:
        self.inside, self.folds, self.curved = inside, folds, inside.curved
        self._name, self._layers = name, tuple(layers)

    @property
    def name(self) -> str:
        return self._name

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        folded, kept = self.folds.folded(inputs[0], params, host)
        y, saved = self.inside.forward(inputs, folded)
        return y, (*kept, folded, saved)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self.inside.vjp(saved[3], saved[2], g, wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.inside.jvp(saved[3], saved[2], tangents, record)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        return self.inside.data_vjp(saved[3], saved[2], g, wanted)

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
        wanted, none = self.folds.wanted_inside(wanted_params), (None,) * len(saved[2])
        y_tangent, pair, bars = self.inside.data_jvp(saved[3], saved[2], tangents, record, needed, wanted, none)
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
        kept, _, folded, *inner = saved
        own = [pair for pair, _ in pairs if pair is not None]
        bars = functools.reduce(add_each, [part for _, part in pairs], (None,) * len(folded))
        del saved, pairs  # the layer inside may let go of a part before it is done
        if zeta is not None or own:
            wanted = self.folds.wanted_inside(wanted_params)
            x_bars, bars = self.inside.reverse(inner.pop(), folded, zeta, own, wanted_inputs, wanted, bars)
        if True not in wanted_params:
            return x_bars, sums
        return x_bars, add_each(sums, self.folds.unfolded(kept, params, bars))

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return self.folds.then(self._layers, inputs[0], params, host, *saved[:2])

    def in_turn(self, inputs: Tensors, params: Tensors, host: tuple) -> Tensor:
        """One layer after the other, by the statistics of this call."""
        return self.folds.now(self._layers, inputs[0], params, host)


class Folded(PerCall):
    """Folded where the outputs are the channels that the norm normalises, dimension 1.

    Of another number of dimensions (a linear layer of a sequence, an unbatched image) the norm takes another dimension
    for its channels: such a call is left to autograd, which runs the layers in turn.
    """

    def __init__(self, together: Together, rank: int) -> None:
        self.together, self._rank = together, rank
        self._apart = Opaque(together.in_turn, together.name, "not folded for this number of dimensions")

    @property
    def name(self) -> str:
        return self.together.name

    def chosen(self, inputs: Tensors, params: Tensors) -> Layer:
        return self.together if inputs[0].dim() == self._rank else self._apart


class FoldedNorm(Folded):
    """A linear layer or convolution and the norm behind it, which together have so many parameters and host values."""

    def __init__(self, linear: Linear | Convolution, n_own: int, norm: RunningNorm, n_params: int, n_host: int) -> None:
        self.fold = Fold(linear, n_own, norm)
        self.follows_layout, self.wants_channels_last = linear.follows_layout, linear.wants_channels_last
        folds = Folds([self.fold], [n_params], [n_host], linear.batch_rank)
        super().__init__(Together(linear, self.fold.name, [linear], folds), linear.batch_rank)

    def link(self, n_params: int) -> str | None:
        return self.fold.linear.link(2)  # W′ and b′

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        return self.fold.linear.image_link(2, ())


class FoldedChain(Folded):
    """A chain some of whose linear layers have a norm behind them; params and host values are theirs, in order."""

    ops = Chain.ops

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int], n_host: Sequence[int]) -> None:
        folds = folds_of(layers, n_params, n_host, 2)
        chain = Chain(layers, folds.n_inside)
        self.curved = chain.curved
        super().__init__(Together(chain, chain.name, layers, folds), 2)
        self.compiled = replace(
            chain.compiled,
            **folds.compiled(),
            operands=lambda x, params, host: folds.operands(x, params, host) if x.dim() == 2 else None,
            saved=lambda kept, *_: (self.together, kept, None),
        )


def folds_of(layers: Sequence[Layer], n_params: Sequence[int], n_host: Sequence[int], rank: int) -> Folds:
    """Those of the layers that are a `FoldedNorm`, in a run whose input has so many dimensions."""
    return Folds([layer.fold if isinstance(layer, FoldedNorm) else None for layer in layers], n_params, n_host, rank)
