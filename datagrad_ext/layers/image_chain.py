"""ImageChain: convolutions, norms, activations, poolings, linear layers and sums; each sweep of them is one op
(`ops/image_chain.py`).

A fusion pass makes one of a whole network that has nothing else. It covers the inputs for which all convolutions are
the project's own products (`few.py`); for others the network runs layer by layer, where the work is so much that calls
cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import direct
from ..ops import is_native
from ..ops._library import in_layout, is_channels_last
from ..ops.image_chain import parse, sizes
from ..ops.image_links import Unit
from .base import Composition, Layer, Pairs, Tensors, reader, with_found
from .compiled import Compiled, ImageSweeps, Moving, UnitOfSweeps
from .few import Few, few_of
from .memory_format import pays

Norm = Callable[[], tuple[Any, Any, float]]
"""Counts a call; the running mean and variance that it updates, or None, and the momentum."""

_SHAPES = 64  # that a chain remembers
_forward, _data_vjp = direct("image_chain_forward"), direct("image_chain_data_vjp")
_data_jvp = direct("image_chain_data_jvp", given=(4,))  # the record
_reverse = direct("image_chain_reverse", given=(1, 2, 5))  # the pairs, and what was saved


class ImageChain(Composition):
    """The composition of the layers, the first of them a convolution; params are theirs, in order.

    `reads` are the values that each reads: 0 is x, k the output of the k-th layer. Saves the links, whether what leaves
    and what is inside is in channels_last, x, and what the op saves.
    """

    curved = True  # it may leave pairs
    ops = ("image_chain_forward", "image_chain_data_vjp", "image_chain_data_jvp", "image_chain_reverse")

    def __init__(
        self,
        layers: Sequence[Layer],
        n_params: Sequence[int],
        hosts: Sequence[tuple[Any, ...]],
        reads: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__(layers, n_params)
        self._hosts, self._reads = tuple(hosts), tuple(reads)
        words = [str(layer.image_link(n, host)) for layer, n, host in zip(layers, n_params, hosts, strict=True)]
        self._words = [
            word + _named(i, values)
            for i, (word, values) in enumerate(zip(_biases_with_rectifiers(words, reads), reads, strict=True))
        ]
        self._known: dict[Any, _Form | None] = {}
        self.compiled = Compiled(self.sweeps, saved=_saved)

    @property
    def name(self) -> str:
        return " → ".join(layer.name + _named(i, self._reads[i]) for i, layer in enumerate(self.layers))

    def covers(self, x: Any, params: Callable[[], Sequence[Tensor]]) -> bool:
        """Whether the ops are for such an input; `params` are asked for if none like it was there before."""
        return isinstance(x, Tensor) and self._form(x, params) is not None

    def sweeps(self, x: Tensor) -> tuple[ImageSweeps, Callable[[], Moving] | None] | None:
        """How an input is run that it covers, for nodes in C++; None where another thread has let go of that."""
        form = self._known.get(_key(x))
        return None if form is None else (form.sweeps, form.moving if form.norms else None)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        form = self._form(inputs[0], lambda: params)
        assert form is not None  # it covers the input
        links, outer, inner = form.sweeps.links, form.sweeps.outer, form.sweeps.inner
        x = in_layout(inputs[0], outer)
        y, *saved = _forward(x, params, links, *form.moving())
        return _laid(y, outer), (links, outer, inner, x, *saved)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        links, _, inner, x, *kept = saved
        g = _laid(g, inner)
        J, *record = _data_vjp(g, x, params, kept, links)
        return (J,), (*record, g) if parse(links)[-1].record is not None else tuple(record)

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
        links, outer, _, x, *kept = saved
        (t,), wanted = tangents, tuple(wanted_params) or (False,) * len(params)
        plan = _plan(links, wanted)
        known, deltas, given = plan.sums(sums), plan.kept(record), list(record)
        del record
        found = _data_jvp(t, x, params, kept, given, links, wanted, needed, known)
        y_tangent = _laid(found.pop(0), outer) if needed else None
        if not known and plan.with_sums:
            n = len(plan.with_sums)
            sums, found = with_found(sums, plan.with_sums, found[:n]), found[n:]
        if not plan.keeping:
            return y_tangent, None, sums
        rest = iter(found)
        return y_tangent, (deltas, tuple([t if of_x else next(rest) for of_x in plan.of_x])), sums

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
        links, _, _, x, *kept = saved
        del saved
        wanted = tuple(wanted_params) or (False,) * len(params)
        plan = _plan(links, wanted)
        known = plan.sums(sums)
        records = [delta for record, _ in pairs for delta in record]
        tangents = [t for _, kept_tangents in pairs for t in kept_tangents]
        del pairs
        want_x = wanted_inputs[0] and (zeta is not None or plan.curved)
        found = _reverse(zeta, records, tangents, x, params, kept, links, wanted, want_x, known)
        x_bar = found.pop(0) if want_x else None
        return (x_bar,), with_found(sums, plan.without_sums if known else plan.wanted, found)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        places = [0, *accumulate(self.n_params)]

        def value(i: int, own: Tensors, operands: Tensors) -> Tensor:
            return self.layers[i].reference(own, operands, params[places[i] : places[i + 1]], *self._hosts[i])

        return self.value(saved, inputs[0], value)

    def value(self, saved: Any, x: Tensor, value: Callable[[int, Tensors, Tensors], Tensor]) -> Tensor:
        """The value of the last layer, where `value` is that of one, by its number, what it saved, and its inputs."""
        own: Tensors
        values, units = [x], {unit.word: unit for unit in parse(saved[0])}
        for i, reads in enumerate(self._reads):
            unit, own = units.get(i), ()
            if unit is not None and unit.link.name == "max_pool":
                own = (saved[4 + unit.extra],)  # type: ignore[operator]
            elif unit is not None and unit.link.name == "normalise":
                own = (None, None, None, int(unit.link.constants[0]), None, None)
            values.append(value(i, own, tuple([values[v] for v in reads])))
        return values[-1]

    def _form(self, x: Tensor, params: Callable[[], Sequence[Tensor]]) -> _Form | None:
        """How such an input is run, None where it is not for the ops."""
        key = _key(x)
        try:
            return self._known[key]
        except KeyError:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            found = self._known[key] = self._find_form(x, params())
            return found

    def _find_form(self, x: Tensor, params: Sequence[Tensor]) -> _Form | None:
        dense = x.dim() == 4 and x.is_cpu and x.layout == torch.strided
        if not dense or not all(is_native(op, "cpu") for op in self.ops):
            return None
        try:
            units = sizes(x, params, " ".join(self._words))
        except RuntimeError:  # the layers themselves say what is wrong
            return None
        outer, enters = is_channels_last(x), pays(x)
        marks: list[str] = []
        norms: list[Norm] = []
        for unit, before, after in units:
            if unit.link.name == "normalise" and self._hosts[unit.word]:
                norms.append(_norm(self._hosts[unit.word], x.new_empty(1).expand(before)))
            if unit.link.weight is None or unit.link.name != "convolution":
                continue
            weight, numbers = params[unit.link.weight], tuple(map(int, unit.link.constants))
            geometry = (numbers[:2], numbers[2:4], numbers[4:], False, (0, 0), 1)
            if few_of(x.new_empty(1).expand(before), weight, geometry, unit.rectifier is not None) is not Few.PIXELS:
                return None
            mark = "l" * (enters and not marks) + "p" * (math.prod(before) + math.prod(after) <= weight.numel())
            marks.append("@" * bool(mark) + mark)
        left = iter(marks)
        links = [word + next(left) if word.startswith("convolution") else word for word in self._words]
        text = " ".join(links)
        sweeps = ImageSweeps(text, outer, outer or enters, [_described(unit) for unit in parse(text)])
        return _Form(sweeps, tuple(norms))


class _Form(NamedTuple):
    """How an input is run."""

    sweeps: ImageSweeps
    norms: tuple[Norm, ...]

    def moving(self) -> Moving:
        """The running statistics that a call updates, and the momenta; each norm counts the call."""
        found = [each for norm in self.norms if (each := norm())[0] is not None]
        return [t for mean, var, _ in found for t in (mean, var)], [momentum for _, _, momentum in found]


class _Plan(NamedTuple):
    """Which parameters and tensors of a record the sweeps are about."""

    wanted: tuple[int, ...]  # parameters
    with_sums: tuple[int, ...]  # wanted weights whose products sweep 3 takes
    without_sums: tuple[int, ...]
    keeping: tuple[int, ...]  # the cotangents of the units that leave pairs, as places in a record
    of_x: tuple[bool, ...]  # whether those units read x, whose tangent the op does not return
    curved: bool

    def sums(self, sums: Tensors) -> Tensors:
        """Those that are there for sweep 3's weights: all or none."""
        return tuple([sums[p] for p in self.with_sums if sums[p] is not None]) if sums else ()

    def kept(self, record: Sequence[Tensor]) -> Tensors:
        return reader(self.keeping)(record)


@lru_cache(maxsize=1024)
def _plan(links: str, wanted: tuple[bool, ...]) -> _Plan:
    units = parse(links)
    keeping = [unit for unit in units if unit.keeps(wanted)]
    every = tuple([p for p, want in enumerate(wanted) if want])
    with_sums = tuple([p for u in units if (p := u.link.weight) in every and p is not None and not u.keeps(wanted)])
    return _Plan(
        every,
        with_sums,
        tuple([p for p in every if p not in with_sums]),
        tuple([unit.record for unit in keeping if unit.record is not None]),
        tuple([unit.reads == (0,) for unit in keeping]),
        any(unit.curved for unit in units),
    )


def _norm(host: tuple[Any, ...], seen: Tensor) -> Norm:
    """The running statistics of a norm; `seen` has the sizes of its input."""
    if len(host) > 1:
        return lambda: host
    host[0].check(seen)
    return host[0].counted


def _key(x: Tensor) -> Any:
    """What of an input decides how it is run."""
    return x.shape, x.stride(), x.dtype, x.is_cpu


def _described(unit: Unit) -> UnitOfSweeps:
    """A unit as `ImageSweeps` has it."""
    return unit.reads == (0,), unit.link.weight, unit.record, unit.curved, "p" in unit.link.marks


def _saved(folds: Any, links: str, x: Tensor, saved: Sequence[Tensor]) -> tuple:
    """What a forward saves, without the layouts, which `reference` does not read."""
    return links, None, None, x, *saved


def _biases_with_rectifiers(words: list[str], reads: Sequence[tuple[int, ...]]) -> list[str]:
    """The links with the bias of a convolution at the rectifier that alone reads it, whose pass adds it."""
    words = list(words)
    for i, following in enumerate(words[1:]):
        is_read_once = reads[i + 1] == (i + 1,) and sum(values.count(i + 1) for values in reads) == 1
        if is_read_once and words[i].startswith("convolution+b") and following.startswith("relu:"):
            words[i : i + 2] = words[i].replace("+b", "", 1), following.replace("relu", "relu+b", 1)
    return words


def _named(place: int, values: tuple[int, ...]) -> str:
    """How a link names the values that it reads, if it must."""
    return "" if values == (place,) else "".join([f"<{value}" for value in values])


def _laid(t: Tensor, channels_last: bool) -> Tensor:
    """An image in that layout, or a dense matrix."""
    return in_layout(t, channels_last and t.dim() == 4)
