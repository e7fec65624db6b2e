"""Chains of images: a run of convolutions, activations, poolings and linear layers, each of its sweeps in one call.

    sweep 1  h_{l+1} = f_l(h_l)          sweep 2  δ_l = f_l′ᵀ δ_{l+1}
    sweep 3  t_{l+1} = f_l′ t_l, w̄ = Σ wgrad(δ, t)
    sweep 4  ζ_l = f_l′ᵀ ζ_{l+1} + Σ f_l″ t_l δ_{l+1},  w̄ += wgrad(ζ, h),  b̄ = Σ ζ

`links` names the run as in `chain.py`. There are also

    convolution:sh:sw:ph:pw:dh:dw            a product of `convolution.py`: its stride, padding and dilation
    max_pool:kh:kw:sh:sw:ph:pw:dh:dw         and kernel
    avg_pool:kh:kw:sh:sw:ph:pw:c             c: 1 where padding counts, else 0
    flatten

The first link is a convolution. A rectifier behind a convolution without a bias is one unit with it
(`convolution_relu_forward` and its kin); any other link is a unit by itself. Behind the first convolution images
(N, C, H, W) are in the layout of x, or in channels_last if the first word is marked ("@l"); x, its tangents and
cotangents are read and written as x lies. float32 or float64. "@p" behind a convolution: sweep 3 leaves its pair (δ, t)
to sweep 4, because it is smaller than the gradient.

`params`   the weight and the bias of each link, in order.
`saved`    of each unit: its input, if it is not the first and has a weight or is smooth; bits, or the places of maxima.
`record`   the cotangent of the output of each unit that has a weight or is smooth. Sweep 2 returns all but that of the
           last unit, with which it began.
`wanted`   a flag for each parameter. `sums`: the gradients so far of the wanted weights that leave no pair, added to
           in place, or empty.
Pairs      are left by smooth units, and by marked ones whose weight is wanted: `tangents` of their inputs, and
           `records` of their outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import activation, convolution
from ._library import in_layout, is_channels_last, op, require, require_alike, require_shape
from .chain import Link, words

_aten = torch.ops.aten


@dataclass(frozen=True)
class Unit:
    """A link, or a convolution and the rectifier behind it; the places of its tensors in lists, None for none."""

    link: Link
    rectifier: Link | None
    input: int | None
    extra: int | None
    record: int | None

    @property
    def bias(self) -> int | None:
        """Its place among the parameters."""
        return (self.rectifier or self.link).bias

    def keeps(self, wanted: Sequence[bool]) -> bool:
        """Whether sweep 3 leaves (δ, t) to sweep 4."""
        return self.link.smooth or ("p" in self.link.marks and self.wants(wanted))

    def wants(self, wanted: Sequence[bool]) -> bool:
        """Whether the gradient of its weight is asked for."""
        return self.link.weight is not None and wanted[self.link.weight]

    def wants_bias(self, wanted: Sequence[bool]) -> bool:
        """Whether the gradient of its bias is."""
        return self.bias is not None and wanted[self.bias]


@lru_cache
def parse(links: str) -> tuple[Unit, ...]:
    """The units of the links that a text names."""
    found: list[Unit] = []
    left = words(links)
    require(
        bool(left) and left[0].name == "convolution", f"image chain: must begin with a convolution, got '{links}'"
    )
    saved = records = 0
    while left:
        link, rectifier = left.pop(0), None
        if link.name == "convolution" and link.bias is None and left and left[0].name == "relu":
            rectifier = left.pop(0)
        reads = link.smooth or link.weight is not None
        has_input, has_extra = reads and bool(found), bool(rectifier) or link.name in ("relu", "max_pool")
        unit = Unit(
            link,
            rectifier,
            saved if has_input else None,
            saved + has_input if has_extra else None,
            records if reads else None,
        )
        saved, records = saved + has_input + has_extra, records + reads
        found.append(unit)
    return tuple(found)


def sizes(x: Tensor, params: Sequence[Tensor], links: str) -> list[tuple[Unit, list[int], list[int]]]:
    """Each unit, with the sizes of its input and output; RuntimeError where they do not fit."""
    chain = _Images("image_chain_forward", x, params, links)
    return list(zip(chain.units, chain.sizes, chain.sizes[1:], strict=False))


@op("image_chain_forward(Tensor x, Tensor[] params, str links) -> Tensor[]")
def image_chain_forward(x: Tensor, params: Sequence[Tensor], links: str) -> list[Tensor]:
    """Sweep 1: [y, *saved]."""
    chain = _Images("image_chain_forward", x, params, links)
    h, saved = chain.x, list[Tensor]()
    for unit in chain.units:
        h = chain.forward(unit, h, saved)
    return [h, *saved]


@op("image_chain_data_vjp(Tensor g, Tensor x, Tensor[] params, Tensor[] saved, str links) -> Tensor[]")
def image_chain_data_vjp(
    g: Tensor, x: Tensor, params: Sequence[Tensor], saved: Sequence[Tensor], links: str
) -> list[Tensor]:
    """Sweep 2: [J, *record without that of the last unit]."""
    chain = _Images("image_chain_data_vjp", x, params, links, saved)
    g = chain.entering("g", g)
    record: list[Tensor] = []
    for i, unit in reversed(list(enumerate(chain.units))):
        if unit.record is not None and i + 1 < len(chain.units):
            record.insert(0, g)
        g = chain.vjp(i, g)
    return [chain.as_x(g), *record]


@op(
    "image_chain_data_jvp(Tensor t, Tensor x, Tensor[] params, Tensor[] saved, Tensor[] record, str links,"
    " bool[] wanted, bool want_y, Tensor(a!)[] sums) -> Tensor[]"
)
def image_chain_data_jvp(
    t: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    record: Sequence[Tensor],
    links: str,
    wanted: Sequence[bool],
    want_y: bool,
    sums: Sequence[Tensor],
) -> list[Tensor]:
    """Sweep 3: [tangent of y if wanted, new sums if `sums` is empty, tangents of the inputs of units behind the first
    that keep pairs].
    """
    chain = _Images("image_chain_data_jvp", x, params, links, saved)
    chain.check("flags", wanted, chain.n_params)
    chain.check_record(record)
    chain.check_sums(sums, wanted)
    chain.check_alike("t", t, chain.sizes[0])
    t = in_layout(t, chain.channels_last)
    fresh: list[Tensor] = []
    kept: list[Tensor] = []
    totals = iter(sums)
    readers = [i for i, unit in enumerate(chain.units) if unit.keeps(wanted) or unit.wants(wanted)]
    end = len(chain.units) if want_y else max(readers, default=-1) + 1
    for i, unit in enumerate(chain.units[:end]):
        if unit.keeps(wanted):
            kept += [t] if i else []
        elif unit.wants(wanted):
            part = chain.weight_bar(i, record[unit.record], t)  # type: ignore[index]
            if sums:
                next(totals).add_(part)
            else:
                fresh.append(part)
        if want_y or i + 1 < end:
            t = chain.jvp(i, t)
    return [*([t] if want_y else []), *fresh, *kept]


@op(
    "image_chain_reverse(Tensor? zeta, Tensor[] records, Tensor[] tangents, Tensor x, Tensor[] params, Tensor[] saved,"
    " str links, bool[] wanted, bool want_x, Tensor(a!)[] sums) -> Tensor[]"
)
def image_chain_reverse(
    zeta: Tensor | None,
    records: Sequence[Tensor],
    tangents: Sequence[Tensor],
    x: Tensor,
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    links: str,
    wanted: Sequence[bool],
    want_x: bool,
    sums: Sequence[Tensor],
) -> list[Tensor]:
    """Sweep 4: [x̄ if wanted, the gradient of each wanted parameter that has no sum].

    `records` and `tangents` are those of the units that keep pairs, data gradient after data gradient.
    """
    chain = _Images("image_chain_reverse", x, params, links, saved)
    chain.check("flags", wanted, chain.n_params)
    keeping = [i for i, unit in enumerate(chain.units) if unit.keeps(wanted)]
    chain.check_pairs(records, tangents, keeping)
    chain.check_sums(sums, wanted)
    require(zeta is not None or len(records) > 0, f"{chain.op_name}: needs a zeta or a record")
    if zeta is not None:
        zeta = chain.entering("zeta", zeta)
    with_sums = [unit.link.weight for unit in chain.units if sums and unit.wants(wanted) and not unit.keeps(wanted)]
    bars: dict[int, Tensor] = {}
    asked = [i for i, unit in enumerate(chain.units) if unit.wants(wanted) or unit.wants_bias(wanted)]
    stop = 0 if want_x else min(asked, default=len(chain.units))
    for i in range(len(chain.units) - 1, stop - 1, -1):
        unit, pairs = chain.units[i], list[tuple[Tensor, Tensor]]()
        if i in keeping:
            own = slice(keeping.index(i), None, len(keeping))
            pairs = list(zip(records[own], tangents[own], strict=True))
        zeta, weight, bias = chain.reverse(i, zeta, pairs, want_x or i > stop, unit.wants(wanted))
        if weight is not None and unit.link.weight in with_sums:
            sums[with_sums.index(unit.link.weight)].add_(weight)
        elif weight is not None:
            bars[unit.link.weight] = weight  # type: ignore[index]
        if bias is not None and unit.wants_bias(wanted):
            bars[unit.bias] = bias  # type: ignore[index]
    sentence = f"{chain.op_name}: without a zeta a chain without smooth links has no cotangent of x"
    require(zeta is not None or not want_x, sentence)
    places = [p for p, want in enumerate(wanted) if want and p not in with_sums]
    found = [bars[p] if p in bars else torch.zeros_like(params[p]) for p in places]
    return [chain.as_x(zeta), *found] if want_x and zeta is not None else found


class _Images:
    """The units of a call, with their sizes, parameters and what they saved, checked."""

    def __init__(
        self, op_name: str, x: Tensor, params: Sequence[Tensor], links: str, saved: Sequence[Tensor] | None = None
    ) -> None:
        self.op_name, self.params, self.units = op_name, params, parse(links)
        places = [p for u in self.units for p in (u.link.weight, u.bias) if p is not None]
        self.n_params = len(places)
        self.check("parameters", params, self.n_params)
        require(x.dim() == 4, f"{op_name}: x must be (N, C, H, W), got shape {list(x.shape)}")
        require(
            x.dtype in (torch.float32, torch.float64),
            f"{op_name}: x must be float32 or float64, got {str(x.dtype).removeprefix('torch.')}; convert it first",
        )
        for parameter in params:
            require_alike(op_name, "every parameter", parameter, "x", x)
        self._outer = is_channels_last(x)
        self.channels_last = self._outer or "l" in self.units[0].link.marks
        self.x = in_layout(x, self.channels_last)
        self.sizes = [list(x.shape)]
        for unit in self.units:
            self.sizes.append(self._output_of(unit, self.sizes[-1]))
        self.saved: Sequence[Tensor] = []
        if saved is not None:
            self._check_saved(saved)
            self.saved = saved

    # the maps of unit i

    def forward(self, unit: Unit, h: Tensor, saved: list[Tensor]) -> Tensor:
        link, bias = unit.link, self._bias(unit)
        if unit.input is not None:
            saved.append(h)
        if link.name == "convolution" and unit.rectifier is None:
            return self._convolution(unit, h, bias)
        if link.name in ("max_pool", "relu", "convolution"):
            y, extra = self._marking(unit, h, bias)
            saved.append(extra)
            return y
        if link.smooth:
            return activation.smooth_forward(h, bias, 1, link.name, link.constants)
        if link.name == "linear":
            return torch.mm(h, self._weight(unit).t()) if bias is None else torch.addmm(bias, h, self._weight(unit).t())
        return self._linear_map(link, h)

    def vjp(self, i: int, g: Tensor) -> Tensor:
        unit, link = self.units[i], self.units[i].link
        if link.name == "convolution":
            return self._convolution_reverse(i, g, [], True, False)[0]
        if link.name == "linear":
            return torch.mm(g, self._weight(unit))
        if link.name == "flatten":
            return in_layout(g.view(self.sizes[i]), self.channels_last)
        x = self._in_layout(g.new_empty(self.sizes[i]))
        if link.name == "max_pool":
            places = self.saved[unit.extra]  # type: ignore[index]
            return self._in_layout(_aten.max_pool2d_with_indices_backward(g, x, *_pool(link), places))
        if link.name == "avg_pool":
            return self._in_layout(_aten.avg_pool2d_backward(g, x, *_pool(link)))
        return self._gate(i, g)

    def jvp(self, i: int, t: Tensor) -> Tensor:
        unit, link = self.units[i], self.units[i].link
        if link.name == "convolution":
            y = self._convolution(unit, t, None)
            return y if unit.rectifier is None else self._gate(i, y)
        if link.name == "linear":
            return torch.mm(t, self._weight(unit).t())
        if link.name == "max_pool":
            places = self.saved[unit.extra]  # type: ignore[index]
            return self._in_layout(t.flatten(2).gather(2, places.flatten(2)).view(places.shape))
        return self._linear_map(link, t) if link.name in ("avg_pool", "flatten") else self._gate(i, t)

    def weight_bar(self, i: int, delta: Tensor, t: Tensor) -> Tensor:
        if self.units[i].link.name == "linear":
            return torch.mm(delta.t(), t)
        return self._convolution_reverse(i, None, [(delta, t)], False, True)[0]

    def reverse(
        self, i: int, zeta: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]], want_x: bool, want_weight: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Sweep 4: the cotangents of input, weight and bias, None where nothing reaches them or they are not wanted."""
        unit, link = self.units[i], self.units[i].link
        if link.smooth and (zeta is not None or pairs):
            cotangents, tangents = [d for d, _ in pairs], [t for _, t in pairs]
            z, has_bias = self._input(i), unit.bias is not None
            found = activation.smooth_reverse(
                zeta, tangents, cotangents, z, self._bias(unit), 1, link.name, link.constants, has_bias
            )
            return found[0], None, found[1]
        if link.name == "convolution" and zeta is None and pairs and want_weight:
            return None, self._convolution_reverse(i, None, pairs, False, True)[0], None
        if zeta is None:
            return None, None, None
        if link.name == "convolution":
            bars = self._convolution_reverse(i, zeta, pairs, want_x, want_weight)
            gated = zeta if unit.rectifier is None else self._gate(i, zeta)
            return bars[0] if want_x else None, bars[-1] if want_weight else None, gated.sum((0, 2, 3))
        weight_bar = torch.mm(zeta.t(), self._input(i)) if want_weight else None
        if link.name == "relu":
            gated = self._gate(i, zeta)
            return gated, None, gated.sum([d for d in range(gated.dim()) if d != 1])
        return self.vjp(i, zeta) if want_x else None, weight_bar, zeta.sum(0) if link.name == "linear" else None

    # what they are made of

    def _marking(self, unit: Unit, h: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output of a unit and its bits or places."""
        if unit.rectifier is not None:
            return activation.relu_forward(self._convolution(unit, h, bias), None, 1, unit.rectifier.constants[0])
        if unit.link.name == "relu":
            return activation.relu_forward(h, bias, 1, unit.link.constants[0])
        y, places = _aten.max_pool2d_with_indices(h, *_pool(unit.link))
        return self._in_layout(y), self._in_layout(places)

    def _convolution(self, unit: Unit, h: Tensor, bias: Tensor | None) -> Tensor:
        return self._in_layout(convolution.convolution_forward(h, self._weight(unit), bias, *_window(unit.link)))

    def _linear_map(self, link: Link, h: Tensor) -> Tensor:
        """A link without parameters that is its own derivative."""
        return h.flatten(1) if link.name == "flatten" else self._in_layout(_aten.avg_pool2d(h, *_pool(link)))

    def _gate(self, i: int, g: Tensor) -> Tensor:
        """f'(z) g."""
        unit, link = self.units[i], self.units[i].link
        if link.smooth:
            return activation.smooth_gate(g, self._input(i), self._bias(unit), 1, link.name, link.constants)
        slope, is_image = (unit.rectifier or link).constants[0], g.dim() == 4
        return activation.relu_gate(g, self.saved[unit.extra], slope, is_image and self.channels_last)  # type: ignore[index]

    def _convolution_reverse(
        self, i: int, zeta: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]], want_x: bool, want_weight: bool
    ) -> list[Tensor]:
        unit, gated = self.units[i], (lambda g: g) if self.units[i].rectifier is None else (lambda g: self._gate(i, g))
        deltas, tangents = [gated(d) for d, _ in pairs], [t for _, t in pairs]
        zeta = None if zeta is None else gated(zeta)
        x, weight, window = self._input(i), self._weight(unit), _window(unit.link)
        return convolution.convolution_reverse(zeta, x, deltas, tangents, weight, *window, want_x, want_weight)

    def _input(self, i: int) -> Tensor:
        place = self.units[i].input
        return self.x if place is None else self.saved[place]

    def _weight(self, unit: Unit) -> Tensor:
        return self.params[unit.link.weight]  # type: ignore[index]

    def _bias(self, unit: Unit) -> Tensor | None:
        return None if unit.bias is None else self.params[unit.bias]

    def _in_layout(self, t: Tensor) -> Tensor:
        return in_layout(t, self.channels_last and t.dim() == 4)

    def _output_of(self, unit: Unit, sizes: list[int]) -> list[int]:
        name, link = unit.link.name, unit.link
        if name == "linear":
            weight = self._weight(unit)
            require(
                len(sizes) == 2 and weight.dim() == 2 and weight.shape[1] == sizes[1],
                f"{self.op_name}: a linear link needs a matrix of as many columns as its weight has, got shapes "
                f"{sizes} and {list(weight.shape)}",
            )
            return [sizes[0], weight.shape[0]]
        if name == "convolution":
            weight = self._weight(unit)
            require(
                len(sizes) == 4 and weight.dim() == 4 and weight.shape[1] == sizes[1],
                f"{self.op_name}: a weight of shape {list(weight.shape)} does not fit an input of shape {sizes}",
            )
            return self._behind(sizes, weight.shape[0], list(weight.shape[2:]), *_window(link))
        if name in ("max_pool", "avg_pool", "flatten"):
            what = name if name == "flatten" else "pooling"
            require(len(sizes) == 4, f"{self.op_name}: {what} needs images, got shape {sizes}")
        if name == "flatten":
            return [sizes[0], sizes[1] * sizes[2] * sizes[3]]
        if name in ("max_pool", "avg_pool"):
            kernel, stride, padding, *rest = _pool(link)
            return self._behind(sizes, sizes[1], kernel, stride, padding, rest[0] if name == "max_pool" else [1, 1])
        return sizes

    def _behind(
        self, sizes: list[int], channels: int, kernel: list[int], stride: Any, padding: Any, dilation: Any
    ) -> list[int]:
        """Sizes behind a window."""
        found = [sizes[0], channels]
        for size, k, s, p, d in zip(sizes[2:], kernel, stride, padding, dilation, strict=True):
            require(
                s > 0 and p >= 0 and d > 0 and k > 0,
                f"{self.op_name}: kernel, stride and dilation must be positive, padding must not be negative",
            )
            free = size + 2 * p - d * (k - 1) - 1
            require(
                free >= 0, f"{self.op_name}: a kernel of {kernel} does not fit into a padded input of shape {sizes}"
            )
            found.append(free // s + 1)
        return found

    # checks

    def check(self, what: str, values: Sequence[object], expected: int) -> None:
        require(len(values) == expected, f"{self.op_name}: the chain has {expected} {what}, got {len(values)}")

    def check_alike(self, name: str, t: Tensor, sizes: list[int]) -> None:
        require_alike(self.op_name, name, t, "the weight", self.params[0])
        require_shape(self.op_name, name, t, sizes)

    def entering(self, name: str, g: Tensor) -> Tensor:
        """A cotangent of y in the chain's layout."""
        self.check_alike(name, g, self.sizes[-1])
        return self._in_layout(g)

    def as_x(self, x_bar: Tensor) -> Tensor:
        """x̄ in the layout of x."""
        return in_layout(x_bar, self._outer)

    def check_record(self, record: Sequence[Tensor]) -> None:
        readers = [i for i, unit in enumerate(self.units) if unit.record is not None]
        self.check("tensors in a record", record, len(readers))
        for i, delta in zip(readers, record, strict=True):
            self._check_dense("record", delta, self.sizes[i + 1])

    def check_pairs(self, records: Sequence[Tensor], tangents: Sequence[Tensor], keeping: Sequence[int]) -> None:
        n = len(keeping)
        require(
            len(records) == len(tangents) and (len(records) % n == 0 if n else not records),
            f"{self.op_name}: needs pairs of {n} links, got {len(records)} records and {len(tangents)} tangents",
        )
        for k, (delta, t) in enumerate(zip(records, tangents, strict=True)):
            i = keeping[k % n]
            self._check_dense("record", delta, self.sizes[i + 1])
            (self._check_dense if i else self.check_alike)("tangent", t, self.sizes[i])

    def check_sums(self, sums: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        weights = [self._weight(unit) for unit in self.units if unit.wants(wanted) and not unit.keeps(wanted)]
        require(
            len(sums) in (0, len(weights)),
            f"{self.op_name}: needs a sum for every wanted weight, got {len(sums)}",
        )
        for weight, total in zip(weights, sums, strict=False):
            require_alike(self.op_name, "sum", total, "the weight", weight)
            require_shape(self.op_name, "sum", total, weight.shape)
            dense = total.is_contiguous(memory_format=torch.channels_last) if is_channels_last(weight) else None
            dense = total.is_contiguous() if dense is None else dense
            require(dense, f"{self.op_name}: sum must be dense in its weight's layout")

    def _check_saved(self, saved: Sequence[Tensor]) -> None:
        self.check("saved tensors", saved, sum((u.input is not None) + (u.extra is not None) for u in self.units))
        for unit, before, after in zip(self.units, self.sizes, self.sizes[1:], strict=False):
            if unit.input is not None:
                self._check_dense("saved input", saved[unit.input], before)
            if unit.link.name == "max_pool":
                places = saved[unit.extra]  # type: ignore[index]
                require(
                    places.dtype == torch.int64,
                    f"{self.op_name}: saved places must have dtype int64, got {str(places.dtype)[6:]}",
                )
                require_shape(self.op_name, "saved places", places, after)

    def _check_dense(self, name: str, t: Tensor, sizes: list[int]) -> None:
        self.check_alike(name, t, sizes)
        last = self.channels_last and len(sizes) == 4
        dense = t.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        require(dense, f"{self.op_name}: {name} must be dense in the layout of the chain")


def _window(link: Link) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation of a convolution."""
    numbers = [int(n) for n in link.constants]
    return numbers[:2], numbers[2:4], numbers[4:]


def _pool(link: Link) -> tuple[Any, ...]:
    """What ATen's functions of a pooling take behind the input."""
    numbers = [int(n) for n in link.constants]
    kernel, stride, padding, rest = numbers[:2], numbers[2:4], numbers[4:6], numbers[6:]
    last = (rest, False) if link.name == "max_pool" else (False, rest[0] != 0, None)
    return kernel, stride, padding, *last
