"""Chain: a run of linear layers and activations without branches; each sweep of the run is one op (`ops/chain.py`).

A fusion pass builds chains from layers that say what their `link` is. A chain has no maps of its own to compose sweeps
from: it overrides the sweeps whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.chain import parse
from .base import Layer, Pairs, Tensors

_ops = torch.ops.datagrad


class Chain(Layer):
    """The composition of the layers, the first of them linear; params are theirs, in order."""

    paired = True
    ops = ("chain_forward", "chain_data_vjp", "chain_data_jvp", "chain_reverse")

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int]) -> None:
        self.layers, self.n_params = tuple(layers), tuple(n_params)
        self.links = " ".join(str(layer.link(n)) for layer, n in zip(layers, n_params, strict=True))
        links = parse(self.links)
        places = [(i, link, p) for i, link in enumerate(links) for p in (link.weight, link.bias) if p is not None]
        self.is_weight = tuple(p == link.weight for _, link, p in places)
        curves = [i for i, link in enumerate(links) if link.curve is not None]
        self.curved = bool(curves)
        # Without a ζ sweep 4 has one below the last smooth link.
        self._is_below = tuple(i <= max(curves, default=-1) for i, _, _ in places)

    @property
    def name(self) -> str:
        return " → ".join(layer.name for layer in self.layers)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = inputs[0]
        rows = _rows(x)
        y, values, bits = _ops.chain_forward.default(rows, params, self.links)
        leading = x.shape[:-1]
        return _unflat(y, leading), (values, bits, rows, leading)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self.data_vjp(saved, params, g, wanted)[0]

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.data_jvp(saved, params, tangents, record, True, (False,) * len(params), ())[0]

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        rows = _rows(g).contiguous()
        x_bar, buffer = _ops.chain_data_vjp.default(rows, params, saved[:2], self.links)
        return (_unflat(x_bar, saved[-1]),), (rows, buffer)

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
        known, wanted = _known(sums), wanted_params or (False,) * len(params)
        rows = _rows(tangents[0]).contiguous()
        keep = _keeps(rows, params)
        kept, *found = _ops.chain_data_jvp.default(
            rows, params, saved[:2], record, self.links, wanted, needed, keep, known
        )
        y_tangent = _unflat(found[0], saved[-1]) if needed else None
        if not known and not keep:
            bars = iter(found[needed:])
            sums = tuple([next(bars) if w and is_w else None for w, is_w in zip(wanted, self.is_weight, strict=True)])
        return y_tangent, (record, (rows, kept)) if self.curved or keep else None, sums

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
        known, wanted = _known(sums), wanted_params or (False,) * len(params)
        records = [tensor for record, _ in pairs for tensor in record]
        tangents = [tensor for _, kept in pairs for tensor in kept]
        rows, x, keep = None if zeta is None else _rows(zeta), saved[2], _keeps(saved[2], params)
        want_x = wanted_inputs[0] and (zeta is not None or self.curved)
        found = iter(
            _ops.chain_reverse.default(
                rows, records, tangents, x, params, saved[:2], self.links, wanted, want_x, keep, known
            )
        )
        x_bar = _unflat(next(found), saved[-1]) if want_x else None
        bars: list[Any] = list(sums)
        for i, (want, is_weight, below) in enumerate(zip(wanted, self.is_weight, self._is_below, strict=True)):
            has_one = zeta is not None or below or (keep and is_weight)
            if want and has_one and not (known and is_weight):
                bars[i] = next(found)
        return (x_bar,), tuple(bars)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        (x,), place = inputs, 0
        for layer, n in zip(self.layers, self.n_params, strict=True):
            x = layer.reference((), (x,), params[place : place + n])
            place += n
        return x


def _keeps(rows: Tensor, params: Tensors) -> bool:
    """Whether (δ, t) are kept for sweep 4: if the tangents are smaller than the gradients that replace them."""
    return len(rows) <= params[0].shape[0]


def _rows(x: Tensor) -> Tensor:
    """A matrix: all leading dimensions as one."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _unflat(rows: Tensor, leading: torch.Size) -> Tensor:
    """The rows in the leading dimensions they had."""
    return rows if len(leading) == 1 else rows.view(*leading, rows.shape[-1])


def _known(sums: Tensors) -> list[Tensor]:
    return [s for s in sums if s is not None]
