"""Chain: a run of linear layers and activations without branches; each sweep of the run is one op (`ops/chain.py`).

A fusion pass builds chains from layers that say what their `link` is. A chain has no maps of its own to compose sweeps
from: it overrides the sweeps whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._native import direct
from ..ops.chain import parse, word
from .base import Layer, Pairs, Tensors, reader

_forward, _data_vjp = direct("chain_forward"), direct("chain_data_vjp")
_data_jvp, _reverse = direct("chain_data_jvp"), direct("chain_reverse")


class Chain(Layer):
    """The composition of the layers, the first of them linear; params are theirs, in order."""

    paired = True
    ops = ("chain_forward", "chain_data_vjp", "chain_data_jvp", "chain_reverse")

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int]) -> None:
        self.layers, self.n_params = tuple(layers), tuple(n_params)
        self.links = " ".join(str(layer.link(n)) for layer, n in zip(layers, n_params, strict=True))
        links = parse(self.links)
        # Sweeps 2 and 3 read no bias but those of smooth links, and a small network notices every tensor of a call.
        self._inner_links = " ".join([word(k.name, k.smooth and k.bias is not None, k.constants) for k in links])
        self._inner = reader([p for k in links for p in (k.weight, k.bias if k.smooth else None) if p is not None])
        params = [(i, link, p) for i, link in enumerate(links) for p in (link.weight, link.bias) if p is not None]
        self._is_weight = [p == link.weight for _, link, p in params]
        curves = [i for i, link in enumerate(links) if link.smooth]
        self.curved = bool(curves)
        # Without a ζ sweep 4 has one below the last smooth link.
        self._is_below = [i <= max(curves, default=-1) for i, _, _ in params]
        self._known_places: dict[Any, tuple[int, ...]] = {}

    @property
    def name(self) -> str:
        return " → ".join(layer.name for layer in self.layers)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = inputs[0]
        leading = None if x.dim() == 2 else x.shape[:-1]
        rows = x if leading is None else x.reshape(-1, x.shape[-1])
        y, *saved = _forward(rows, params, self.links)
        return y if leading is None else _unflat(y, leading), (rows, leading, *saved)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self.data_vjp(saved, params, g, wanted)[0]

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.data_jvp(saved, params, tangents, record, True, (False,) * len(params), ())[0]

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        leading = saved[1]
        rows = _rows(g, leading)
        x_bar, *buffers = _data_vjp(rows, self._inner(params), saved[2:], self._inner_links)
        return (x_bar if leading is None else _unflat(x_bar, leading),), (rows, *buffers)

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
        leading = saved[1]
        rows, wanted = _rows(tangents[0], leading), wanted_params or (False,) * len(params)
        known = [total for total in sums if total is not None]
        weights, wants = self._inner(params), self._inner(wanted)
        found = _data_jvp(rows, weights, saved[2:], record, self._inner_links, wants, needed, known)
        y_tangent: Any = found.pop(0) if needed else None
        if needed and leading is not None:
            y_tangent = _unflat(y_tangent, leading)
        places = () if known else self._places("tangent", tuple(wanted))
        pair = (record, (rows, *found[len(places) :])) if self.curved else None
        return y_tangent, pair, _filled(sums, places, found[: len(places)]) if places else sums

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
        x, leading = saved[:2]
        wanted = wanted_params or (False,) * len(params)
        known = [total for total in sums if total is not None]
        records = [tensor for record, _ in pairs for tensor in record]
        tangents = [tensor for _, kept in pairs for tensor in kept]
        rows = None if zeta is None else _rows(zeta, leading)
        want_x = wanted_inputs[0] and (zeta is not None or self.curved)
        found = _reverse(rows, records, tangents, x, params, saved[2:], self.links, wanted, want_x, known)
        x_bar: Any = found.pop(0) if want_x else None
        if want_x and leading is not None:
            x_bar = _unflat(x_bar, leading)
        places = self._places("reverse", tuple(wanted), zeta is not None, bool(known))
        return (x_bar,), _filled(sums, places, found)

    def _places(
        self, sweep: str, wanted: tuple[bool, ...], with_zeta: bool = False, known: bool = False
    ) -> tuple[int, ...]:
        """Which parameters an op returns gradients of."""
        key = sweep, wanted, with_zeta, known
        if key not in self._known_places:
            flags = zip(wanted, self._is_weight, self._is_below, strict=True)
            found = [
                want and (is_weight if sweep == "tangent" else (with_zeta or below) and not (known and is_weight))
                for want, is_weight, below in flags
            ]
            self._known_places[key] = tuple(i for i, here in enumerate(found) if here)
        return self._known_places[key]

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        (x,), place = inputs, 0
        for layer, n in zip(self.layers, self.n_params, strict=True):
            x = layer.reference((), (x,), params[place : place + n])
            place += n
        return x


def _rows(g: Tensor, leading: torch.Size | None) -> Tensor:
    """A dense matrix: all leading dimensions as one."""
    return (g if leading is None else g.reshape(-1, g.shape[-1])).contiguous()


def _unflat(rows: Tensor, leading: torch.Size) -> Tensor:
    """The rows in the leading dimensions they had."""
    return rows.view(*leading, rows.shape[-1])


def _filled(sums: Tensors, places: Sequence[int], found: Sequence[Tensor]) -> Tensors:
    """The sums with what was found in its places."""
    if len(places) == len(sums):
        return tuple(found)
    bars = list(sums)
    for place, bar in zip(places, found, strict=True):
        bars[place] = bar
    return tuple(bars)
