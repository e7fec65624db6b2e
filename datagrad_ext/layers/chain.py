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
        places = [(link, p) for link in links for p in (link.weight, link.bias) if p is not None]
        self.is_weight = [p == link.weight for link, p in places]
        self.n_curves = sum(link.curve is not None for link in links)
        self.curved = self.n_curves > 0
        # Without a ζ sweep 4 begins at the last curved link; this many parameters have a gradient there.
        last = max([i for i, link in enumerate(links) if link.curve is not None], default=-1)
        self.n_below = sum(n_params[: last + 1])

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
        found = _ops.chain_data_jvp.default(
            _rows(tangents[0]), params, saved[:2], record, self.links, wanted, needed, known
        )
        n = self.n_curves
        y_tangent = _unflat(found[n], saved[-1]) if needed else None
        if not known:
            bars = iter(found[n + needed :])
            sums = tuple([next(bars) if w and is_w else None for w, is_w in zip(wanted, self.is_weight, strict=True)])
        return y_tangent, (record, found[:n]) if self.curved else None, sums

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
        tangents = [t for _, kept in pairs for t in kept]
        rows = None if zeta is None else _rows(zeta)
        found = iter(
            _ops.chain_reverse.default(
                rows, records, tangents, saved[2], params, saved[:2], self.links, wanted, wanted_inputs[0], known
            )
        )
        x_bar = _unflat(next(found), saved[-1]) if wanted_inputs[0] else None
        end = len(params) if zeta is not None else self.n_below
        bars: list[Any] = []
        for i, want in enumerate(wanted):
            is_known = i >= end or (known and self.is_weight[i])
            bars.append(None if not want else sums[i] if is_known else next(found))
        return (x_bar,), tuple(bars)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        (x,), place = inputs, 0
        for layer, n in zip(self.layers, self.n_params, strict=True):
            x = layer.reference((), (x,), params[place : place + n])
            place += n
        return x


def _rows(x: Tensor) -> Tensor:
    """A matrix: all leading dimensions as one."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _unflat(rows: Tensor, leading: torch.Size) -> Tensor:
    """The rows in the leading dimensions they had."""
    return rows if len(leading) == 1 else rows.view(*leading, rows.shape[-1])


def _known(sums: Tensors) -> list[Tensor]:
    return [s for s in sums if s is not None]
