"""A run of convolutions and rectifiers without branches, two of them in one pass where cuDNN has a plan for that.

    sweep 1   h_i = f(w_i * h_{i-1} + b_i)                  sweep 3   t_i = f′_i (w_i * t_{i-1})
    sweeps 2 and 4   δ_{i-1} = f′_{i-1} (w_iᵀ δ_i), δ_i the cotangent of w_i * h_{i-1} + b_i

f′ is s where h is not positive, else 1, so the saved activations are the gates: h_i is saved as the input of the next
convolution anyway. Where no plan is taken (`fused_passes.py`), the layers' own maps run, with the rectifier's bits; a
link decides for itself, in each sweep. Weight gradients are the convolution's own; a bias gradient is a sum over the
gated cotangent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ops.fused_convolution import gate_by_value
from . import fused_passes
from .activation import Rectifier
from .base import Composition, Layer, Pairs, Tensors, add
from .convolution import Convolution

_CONVOLUTION_KEEPS = 4


class _Link:
    """A convolution and the rectifier behind it, if there is one; the place of its parameters among the chain's.

    What is kept is what the convolution's forward keeps, four things, and the gate: what the rectifier's keeps, (y,) of
    a fused forward, or nothing without a rectifier.
    """

    def __init__(
        self, convolution: Convolution, rectifier: Rectifier | None, n_params: tuple[int, int], place: int
    ) -> None:
        self.convolution, self.rectifier = convolution, rectifier
        self.own = slice(place, place + n_params[0])
        self.bias = slice(self.own.stop, self.own.stop + n_params[1])
        self.slope = 0.0 if rectifier is None else rectifier.slope

    def forward(self, x: Tensor, params: Tensors) -> tuple[Tensor, tuple]:
        own, bias = params[self.own], params[self.bias]
        if self.rectifier is None:
            y, kept = self.convolution.forward((x,), own)
            return y, (kept, ())
        numbers = self.convolution.plain_numbers(x, own[0])
        if numbers is not None:
            fused = fused_passes.forward(x, own[0], bias[0] if bias else None, numbers, self.slope)
            if fused is not None:
                return fused, ((x, x.dim(), None, None), (fused,))
        z, kept = self.convolution.forward((x,), own)
        y, gate = self.rectifier.forward((z,), bias)
        return y, (kept, gate)

    def gated(self, kept: Any, g: Tensor) -> Tensor:
        """f′ g; g itself without a rectifier."""
        if self.rectifier is None:
            return g
        gate = kept[1]
        return gate_by_value(g, gate[0], self.slope) if len(gate) == 1 else self.rectifier.vjp(gate, (), g, (True,))[0]

    def gated_sum(self, kept: Any, zeta: Tensor, wanted: Sequence[bool], sums: Tensors) -> tuple[Tensor, Tensors]:
        """f′ ζ, and the bias gradient added to `sums`."""
        if self.rectifier is None:
            return zeta, sums
        if len(kept[1]) == 1:
            zeta = self.gated(kept, zeta)
            return zeta, _with_sum(zeta, wanted, sums)
        (bar,), sums = self.rectifier.reverse(kept[1], (), zeta, (), (True,), wanted, sums)
        return bar, sums


class ConvolutionChain(Composition):
    """The composition of convolutions, each but maybe the last followed by a rectifier; params are theirs, in order."""

    ops = ("relu_forward", "relu_gate", "relu_reverse")

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int]) -> None:
        super().__init__(layers, n_params)
        self._links: list[_Link] = []
        place = 0
        for i, layer in enumerate(layers):
            if isinstance(layer, Convolution):
                behind = layers[i + 1] if i + 1 < len(layers) else None
                counts = n_params[i], 0 if behind is None else n_params[i + 1]
                self._links.append(_Link(layer, behind, counts, place))  # type: ignore[arg-type]
                place += sum(counts)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x, saved = inputs[0], []
        for link in self._links:
            x, kept = link.forward(x, params)
            saved.append(kept)
        return x, _flat(saved)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        kept, links = _nested(saved), self._links
        delta, deltas = links[-1].gated(kept[-1], g), []
        for i in reversed(range(1, len(links))):
            deltas.append(delta)
            below = self._fused_below(i, kept, params, delta)
            if below is None:
                (bar,) = links[i].convolution.vjp(kept[i][0], params[links[i].own], delta, (True,))
                below = links[i - 1].gated(kept[i - 1], bar)
            delta = below
        x_bars = links[0].convolution.vjp(kept[0][0], params[links[0].own], delta, wanted)
        return x_bars, (delta, *deltas[::-1])

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
        kept, t, totals = _nested(saved), tangents[0], list(sums)
        pairs: list[Any] = []
        for i, link in enumerate(self._links):
            wants, own = tuple(wanted_params[link.own]), link.own
            reads = needed or link is not self._links[-1]
            y = self._fused_tangent(i, kept, params, t) if reads else None
            arguments = kept[i][0], params[own]
            pair: Any = None
            if y is None:
                known = tuple(totals[own])
                z, pair, found = link.convolution.data_jvp(*arguments, (t,), record[i], reads, wants, known)
                y = link.gated(kept[i], z) if reads else None
            else:
                found = tuple(totals[own])
                if True in wants:
                    found = link.convolution.param_vjp(*arguments, record[i], (t,), wants, found)
            totals[own] = found
            pairs.append(pair)
            t = y
        return t, pairs if any(pair is not None for pair in pairs) else None, tuple(totals)

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
        kept, links, totals = _nested(saved), self._links, list(sums)
        wanted = tuple(wanted_params) or (False,) * len(params)
        last = links[-1]
        if zeta is not None:
            zeta, totals[last.bias] = last.gated_sum(kept[-1], zeta, wanted[last.bias], tuple(totals[last.bias]))
        for i in reversed(range(len(links))):
            own, pairs_here = links[i].own, [found[i] for found in pairs if found[i] is not None]
            needs = wanted_inputs[0] or True in wanted[: own.start]
            bias = links[i - 1].bias if i > 0 else slice(0)
            below = None
            if needs and zeta is not None:
                below = self._fused_below(i, kept, params, zeta)
            (bar,), totals[own] = links[i].convolution.reverse(
                kept[i][0],
                params[own],
                zeta,
                pairs_here,
                (needs and below is None,),
                wanted[own],
                tuple(totals[own]),
            )
            if not needs:
                return (None,), tuple(totals)
            if below is not None:
                totals[bias] = _with_sum(below, wanted[bias], tuple(totals[bias]))
            elif i > 0 and bar is not None:
                below, totals[bias] = links[i - 1].gated_sum(kept[i - 1], bar, wanted[bias], tuple(totals[bias]))
            zeta = below
        return (bar,), tuple(totals)

    def _fused_below(self, i: int, kept: Sequence[Any], params: Tensors, g: Tensor) -> Tensor | None:
        """f′_{i-1} (w_iᵀ g) in one pass, if a plan is taken."""
        if i == 0:
            return None
        h, weight, under = kept[i][0][0], params[self._links[i].own.start], self._links[i - 1]
        numbers = self._links[i].convolution.plain_numbers(h, weight)
        has_bias = under.bias.start < under.bias.stop
        return None if numbers is None else fused_passes.vjp(g, weight, h, numbers, under.slope, has_bias)

    def _fused_tangent(self, i: int, kept: Sequence[Any], params: Tensors, t: Tensor) -> Tensor | None:
        """f′_i (w_i * t) in one pass, if a plan is taken and the value of the rectifier was kept."""
        link, weight = self._links[i], params[self._links[i].own.start]
        numbers, y = link.convolution.plain_numbers(t, weight), self._value(i, kept, params)
        return None if numbers is None or y is None else fused_passes.jvp(t, weight, y, numbers, link.slope)

    def _value(self, i: int, kept: Sequence[Any], params: Tensors) -> Tensor | None:
        """The value of rectifier i, if it was kept: for the gate, or as the input of the next convolution as it is."""
        if len(kept[i][1]) == 1:
            return kept[i][1][0]
        if i + 1 == len(kept):
            return None
        after, x = self._links[i + 1], kept[i + 1][0][0]
        return None if after.convolution.plain_numbers(x, params[after.own.start]) is None else x


def _flat(saved: Sequence[tuple[tuple, tuple]]) -> tuple:
    """What all links keep as one tuple; the first element tells how many things each gate is.

    A gate that the next link keeps as its input is None.
    """
    inputs = [*[kept[0] for kept, _ in saved[1:]], None]
    items = [(*kept, *[None if t is x else t for t in gate]) for (kept, gate), x in zip(saved, inputs, strict=True)]
    return tuple(len(gate) for _, gate in saved), *itertools.chain.from_iterable(items)


def _nested(saved: tuple) -> list[tuple[tuple, tuple]]:
    """What each link keeps, from `_flat`."""
    found, place = [], 1
    for n in saved[0]:
        gate = place + _CONVOLUTION_KEEPS
        place, own = gate + n, saved[gate : gate + n]
        found.append((saved[gate - _CONVOLUTION_KEEPS : gate], own if own != (None,) else (saved[place],)))
    return found


def _with_sum(zeta: Tensor, wanted: Sequence[bool], sums: Tensors) -> Tensors:
    """The sums, with the bias gradient of a gated cotangent (N, C, H, W) added where it is wanted."""
    return (add(sums[0], zeta.sum((0, 2, 3))),) if True in wanted else sums
