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
from ..ops.chain import parse, with_marks, word
from . import product_choices
from .base import Composition, Layer, Pairs, Tensors, reader, with_found
from .compiled import ChainSweeps, Compiled

_forward, _data_vjp = direct("chain_forward"), direct("chain_data_vjp")
_data_jvp, _reverse = direct("chain_data_jvp"), direct("chain_reverse")


class Chain(Composition):
    """The composition of the layers, the first of them linear; params are theirs, in order."""

    ops = ("chain_forward", "chain_data_vjp", "chain_data_jvp", "chain_reverse")

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int]) -> None:
        super().__init__(layers, n_params)
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
        self._weights = reader([link.weight for link in links if link.weight is not None])
        self._known_texts: dict[Any, tuple[str, str]] = {}
        places = list(self._inner(range(len(params))))
        of_params = self._is_weight, self._is_below
        sweeps = ChainSweeps(self.links, self._inner_links, places, *of_params, self.curved), None
        self.compiled = Compiled(lambda x: sweeps)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = inputs[0]
        leading = None if x.dim() == 2 else x.shape[:-1]
        rows = x if leading is None else x.reshape(-1, x.shape[-1])
        y, *saved = _forward(rows, params, self._texts(rows, params)[0])
        return y if leading is None else _unflat(y, leading), (rows, leading, *saved)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        leading = saved[1]
        rows = _rows(g, leading)
        x_bar, *buffers = _data_vjp(rows, self._inner(params), saved[2:], self._texts(rows, params)[1])
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
        links = self._texts(rows, params)[1]
        found = _data_jvp(rows, weights, saved[2:], record, links, wants, needed, known)
        y_tangent: Any = found.pop(0) if needed else None
        if needed and leading is not None:
            y_tangent = _unflat(y_tangent, leading)
        places = () if known else self._places("tangent", tuple(wanted))
        pair = (record, (rows, *found[len(places) :])) if self.curved else None
        return y_tangent, pair, with_found(sums, places, found[: len(places)]) if places else sums

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
        links = self._texts(x, params)[0]
        found = _reverse(rows, records, tangents, x, params, saved[2:], links, wanted, want_x, known)
        x_bar: Any = found.pop(0) if want_x else None
        if want_x and leading is not None:
            x_bar = _unflat(x_bar, leading)
        places = self._places("reverse", tuple(wanted), zeta is not None, bool(known))
        return (x_bar,), with_found(sums, places, found)

    def _texts(self, rows: Tensor, params: Tensors) -> tuple[str, str]:
        """The links, and those of sweeps 2 and 3, with marks where a GPU has a faster way at so many rows."""
        if not product_choices.gpu.covers(rows):
            return self.links, self._inner_links
        key = rows.shape[0], rows.dtype, rows.device, rows.dtype == torch.float32 and product_choices.gpu.tf32()
        found = self._known_texts.get(key)
        if found is None:
            marks = product_choices.marks(parse(self.links), self._weights(params), rows)
            if marks is None:
                return self.links, self._inner_links
            found = with_marks(self.links, marks), with_marks(self._inner_links, marks)
            if len(self._known_texts) < product_choices.CHOICES_OF_A_CHAIN:
                self._known_texts[key] = found
        return found

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


def _rows(g: Tensor, leading: torch.Size | None) -> Tensor:
    """A dense matrix: all leading dimensions as one."""
    return (g if leading is None else g.reshape(-1, g.shape[-1])).contiguous()


def _unflat(rows: Tensor, leading: torch.Size) -> Tensor:
    """The rows in the leading dimensions they had."""
    return rows.view(*leading, rows.shape[-1])
