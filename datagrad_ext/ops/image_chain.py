"""Chains of images: convolutions, norms, activations, poolings, linear layers and sums, each of its sweeps in one call.

    sweep 1  y = f(h)          sweep 2  δ_h = f′ᵀ δ_y
    sweep 3  t_y = f′ t_h, w̄ = Σ wgrad(δ, t)
    sweep 4  ζ_h = f′ᵀ ζ_y + Σ f″ t_h δ_y,  w̄ += wgrad(ζ, h),  b̄ = Σ ζ

`links` names the links as in `chain.py`. There are also

    convolution:sh:sw:ph:pw:dh:dw            a product of `convolution.py`: its stride, padding and dilation
    max_pool:kh:kw:sh:sw:ph:pw:dh:dw         and kernel
    avg_pool:kh:kw:sh:sw:ph:pw:c             c: 1 where padding counts, else 0; a side of 0 is that of the images
    normalise:g:eps:r                        `normalisation.py`: its groups; "+w" for a weight; r: 1 where it updates
                                             running statistics, else 0
    add                                      the sum of two values of one shape
    flatten

A link reads the value before it, or those that it names: "add<4<7". Value 0 is x, which convolutions alone read, value
k the output of the k-th link; each but the last is read. A cotangent is the sum over the readers.

The first link is a convolution. A rectifier behind a convolution without a bias, a norm or a sum, which alone reads it,
is one unit with it (`convolution_relu_forward`, `normalise_relu_forward` and their kin); any other link is a unit by
itself. Behind x images (N, C, H, W) are in the layout of x, or in channels_last if the first word is marked ("@l"); x,
its tangents and cotangents are read and written as x lies. float32 or float64. "@p" behind a convolution: sweep 3
leaves its pair (δ, t) to sweep 4, because it is smaller than the gradient.

`params`   the weight and the bias of each link, in order.
`running`  the running mean and variance of each norm that has some, updated in place, with `momenta`.
`saved`    of each unit: its input, if it is curved or has a weight, unless it is x or there already; μ and r of a norm;
           bits, or the places of maxima.
`record`   the cotangent of the output of each unit that is curved or has a weight. Sweep 2 returns all but that of the
           last unit, with which it began.
`wanted`   a flag for each parameter. `sums`: the gradients so far of the wanted weights that leave no pair, added to
           in place, or empty.
Pairs      are left by curved units, which are norms and smooth activations, and by marked ones whose weight is wanted:
           `tangents` of their inputs, and `records` of their outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import activation, convolution, normalisation
from ._library import in_layout, is_channels_last, op, require, require_alike, require_shape
from .chain import Link, words
from .image_links import Needs, Unit, parse

_aten = torch.ops.aten

__all__ = ["parse", "sizes", "words"]


def sizes(x: Tensor, params: Sequence[Tensor], links: str) -> list[tuple[Unit, list[int], list[int]]]:
    """Each unit, with the sizes of its input and output; RuntimeError where they do not fit."""
    chain = _Images("image_chain_forward", x, params, links)
    return [(unit, chain.sizes[unit.reads[0]], chain.sizes[unit.output]) for unit in chain.units]


@op(
    "image_chain_forward(Tensor x, Tensor[] params, str links, Tensor(a!)[] running, float[] momenta) -> Tensor[]"
)
def image_chain_forward(
    x: Tensor, params: Sequence[Tensor], links: str, running: Sequence[Tensor], momenta: Sequence[float]
) -> list[Tensor]:
    """Sweep 1: [y, *saved]."""
    chain = _Images("image_chain_forward", x, params, links)
    chain.check_running(running, momenta)
    left = zip(running[::2], running[1::2], momenta, strict=True)
    values, saved = {0: chain.x}, list[Tensor]()
    for unit in chain.units:
        h = [values[value] for value in unit.reads]
        values[unit.output] = chain.forward(unit, h, saved, next(left) if unit.updates else (None, None, 0.0))
    return [values[chain.last.output], *saved]


@op("image_chain_data_vjp(Tensor g, Tensor x, Tensor[] params, Tensor[] saved, str links) -> Tensor[]")
def image_chain_data_vjp(
    g: Tensor, x: Tensor, params: Sequence[Tensor], saved: Sequence[Tensor], links: str
) -> list[Tensor]:
    """Sweep 2: [J, *record without that of the last unit]."""
    chain = _Images("image_chain_data_vjp", x, params, links, saved)
    flow = _Sums({chain.last.output: chain.entering("g", g)})
    record: list[Tensor] = []
    for unit in reversed(chain.units):
        g = flow.pop(unit.output)
        if unit.record is not None and unit is not chain.last:
            record.insert(0, g)
        flow.add(unit.reads, chain.vjp(unit, g))
    return [chain.as_x(flow[0]), *record]


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
    """Sweep 3: [tangent of y if wanted, new sums if `sums` is empty, tangents of the inputs of units behind x that
    keep pairs].
    """
    chain = _Images("image_chain_data_jvp", x, params, links, saved)
    chain.check("flags", wanted, chain.n_params)
    chain.check_record(record)
    chain.check_sums(sums, wanted)
    chain.check_alike("t", t, chain.sizes[0])
    flow = {0: in_layout(t, chain.channels_last)}
    fresh: list[Tensor] = []
    kept: list[Tensor] = []
    totals = iter(sums)
    needed = Needs.of(chain.units, wanted, False, want_y).tangents
    for unit, goes_on in zip(chain.units, needed, strict=True):
        (value, *_) = unit.reads
        if unit.keeps(wanted):
            kept += [flow[value]] if value else []
        elif unit.wants(wanted):
            part = chain.weight_bar(unit, record[unit.record], flow[value])  # type: ignore[index]
            if sums:
                next(totals).add_(part)
            else:
                fresh.append(part)
        if goes_on:
            flow[unit.output] = chain.jvp(unit, [flow[value] for value in unit.reads])
    return [*([flow[chain.last.output]] if want_y else []), *fresh, *kept]


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
    keeping = [unit for unit in chain.units if unit.keeps(wanted)]
    chain.check_pairs(records, tangents, keeping)
    chain.check_sums(sums, wanted)
    require(zeta is not None or len(records) > 0, f"{chain.op_name}: needs a zeta or a record")
    flow = _Sums({} if zeta is None else {chain.last.output: chain.entering("zeta", zeta)})
    with_sums = [unit.link.weight for unit in chain.units if sums and unit.wants(wanted) and not unit.keeps(wanted)]
    bars: dict[int, Tensor] = {}
    needed = Needs.of(chain.units, wanted, want_x, False).cotangents
    for unit in reversed(chain.units):
        if not needed[unit.output]:
            continue
        pairs: list[tuple[Tensor, Tensor]] = []
        if unit in keeping:
            own = slice(keeping.index(unit), None, len(keeping))
            pairs = list(zip(records[own], tangents[own], strict=True))
        asked = [needed[value] for value in unit.reads]
        parts, weight, bias = chain.reverse(unit, flow.pop(unit.output, None), pairs, True in asked, unit.wants(wanted))
        flow.add(unit.reads, [part if want else None for part, want in zip(parts, asked, strict=True)])
        if weight is not None and unit.link.weight in with_sums:
            sums[with_sums.index(unit.link.weight)].add_(weight)
        elif weight is not None and unit.wants(wanted):
            bars[unit.link.weight] = weight  # type: ignore[index]
        if bias is not None and unit.wants_bias(wanted):
            bars[unit.bias] = bias  # type: ignore[index]
    sentence = f"{chain.op_name}: without a zeta a chain without curved links has no cotangent of x"
    require(0 in flow or not want_x, sentence)
    places = [p for p, want in enumerate(wanted) if want and p not in with_sums]
    found = [bars[p] if p in bars else torch.zeros_like(params[p]) for p in places]
    return [chain.as_x(flow[0]), *found] if want_x else found


class _Sums(dict[int, Tensor]):
    """Cotangents of values."""

    def add(self, values: Iterable[int], parts: Iterable[Tensor | None]) -> None:
        """Add what goes to each value; None is zero."""
        for value, part in zip(values, parts, strict=True):
            if part is not None:
                self[value] = self[value] + part if value in self else part


class _Images:
    """The units of a call, with their sizes, parameters and what they saved, checked."""

    def __init__(
        self, op_name: str, x: Tensor, params: Sequence[Tensor], links: str, saved: Sequence[Tensor] | None = None
    ) -> None:
        self.op_name, self.params, self.units = op_name, params, parse(links)
        places = [p for u in self.units for p in (u.link.weight, u.bias) if p is not None]
        self.n_params, self.last = len(places), self.units[-1]
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
        self.sizes = {0: list(x.shape)}
        for unit in self.units:
            self.sizes[unit.output] = self._output_of(unit, [self.sizes[value] for value in unit.reads])
        self.saved: Sequence[Tensor] = []
        if saved is not None:
            self._check_saved(saved)
            self.saved = saved

    # the maps of a unit

    def forward(self, unit: Unit, h: Sequence[Tensor], saved: list[Tensor], running: tuple[Any, Any, float]) -> Tensor:
        link, bias, x = unit.link, self._bias(unit), h[0]
        if unit.saves_input:
            saved.append(x)
        if link.name == "max_pool":
            y, places = _aten.max_pool2d_with_indices(x, *self._pool(unit))
            saved.append(self._in_layout(places))
            return self._in_layout(y)
        if link.name == "relu":
            y, bits = activation.relu_forward(x, bias, 1, link.constants[0])
            saved.append(bits)
            return y
        if link.smooth:
            return activation.smooth_forward(x, bias, 1, link.name, link.constants)
        if link.name == "linear":
            return torch.mm(x, self._weight(unit).t()) if bias is None else torch.addmm(bias, x, self._weight(unit).t())
        if link.name == "convolution":
            y = self._convolution(unit, x, bias)
        elif link.name == "normalise":
            groups, eps = int(link.constants[0]), link.constants[1]
            mean, var, momentum = running
            y, *statistics = normalisation.normalise_forward(
                x, self._scale(unit), bias, mean, var, groups, momentum, eps
            )
            saved += statistics
        else:
            y = self._linear_map(unit, h)
        if unit.rectifier is None:
            return y
        y, bits = activation.relu_forward(y, None, 1, unit.rectifier.constants[0])
        saved.append(bits)
        return y

    def vjp(self, unit: Unit, g: Tensor) -> list[Tensor]:
        link, sizes = unit.link, self.sizes[unit.reads[0]]
        if link.name == "convolution":
            return self._convolution_reverse(unit, g, [], True, False)
        if link.name == "normalise":
            return [normalisation.normalise_vjp(g, *self._normalised(unit))]
        if link.name == "add":
            return [self._rectified(unit, g)] * 2
        if link.name == "linear":
            return [torch.mm(g, self._weight(unit))]
        if link.name == "flatten":
            return [in_layout(g.view(sizes), self.channels_last)]
        x = self._in_layout(g.new_empty(sizes))
        if link.name == "max_pool":
            places = self.saved[unit.extra]  # type: ignore[index]
            return [self._in_layout(_aten.max_pool2d_with_indices_backward(g, x, *self._pool(unit), places))]
        if link.name == "avg_pool":
            return [self._in_layout(_aten.avg_pool2d_backward(g, x, *self._pool(unit)))]
        return [self._gate(unit, g)]

    def jvp(self, unit: Unit, tangents: Sequence[Tensor]) -> Tensor:
        link, t = unit.link, tangents[0]
        if link.name == "convolution":
            return self._rectified(unit, self._convolution(unit, t, None))
        if link.name == "normalise":
            return normalisation.normalise_jvp(t, *self._normalised(unit))
        if link.name == "linear":
            return torch.mm(t, self._weight(unit).t())
        if link.name == "max_pool":
            places = self.saved[unit.extra]  # type: ignore[index]
            return self._in_layout(t.flatten(2).gather(2, places.flatten(2)).view(places.shape))
        if link.name in ("avg_pool", "flatten", "add"):
            return self._rectified(unit, self._linear_map(unit, tangents))
        return self._gate(unit, t)

    def weight_bar(self, unit: Unit, delta: Tensor, t: Tensor) -> Tensor:
        if unit.link.name == "linear":
            return torch.mm(delta.t(), t)
        return self._convolution_reverse(unit, None, [(delta, t)], False, True)[0]

    def reverse(
        self, unit: Unit, zeta: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]], want_x: bool, want_weight: bool
    ) -> tuple[Sequence[Tensor | None], Tensor | None, Tensor | None]:
        """Sweep 4: cotangents of inputs, weight and bias, None where nothing reaches them or they are not wanted."""
        link, nothing = unit.link, [None] * len(unit.reads)
        if zeta is None and not pairs:
            return nothing, None, None
        deltas, tangents = [delta for delta, _ in pairs], [t for _, t in pairs]
        if link.smooth:
            has_bias = unit.bias is not None
            z, bias = self._input(unit), self._bias(unit)
            x_bar, bias_bar = activation.smooth_reverse(
                zeta, tangents, deltas, z, bias, 1, link.name, link.constants, has_bias
            )
            return [x_bar], None, bias_bar
        if link.name == "normalise":
            point: Any = (*self._normalised(unit), want_x, True)
            x_bar, *bars = normalisation.normalise_reverse(zeta, tangents, deltas, *point)
            return [x_bar], bars[0], bars[1]
        if link.name == "convolution":
            if not want_weight and zeta is None:
                return nothing, None, None
            want_x = want_x and zeta is not None
            found = self._convolution_reverse(unit, zeta, pairs, want_x, want_weight)
            sums = None if zeta is None else self._rectified(unit, zeta).sum((0, 2, 3))
            return [found[0] if want_x else None], found[-1] if want_weight else None, sums
        if zeta is None:
            return nothing, None, None
        if link.name == "relu":
            gated = self._gate(unit, zeta)
            return [gated], None, gated.sum([d for d in range(gated.dim()) if d != 1])
        weight_bar = torch.mm(zeta.t(), self._input(unit)) if want_weight else None
        return self.vjp(unit, zeta) if want_x else nothing, weight_bar, zeta.sum(0) if link.name == "linear" else None

    # what they are made of

    def _convolution(self, unit: Unit, h: Tensor, bias: Tensor | None) -> Tensor:
        return self._in_layout(convolution.convolution_forward(h, self._weight(unit), bias, *_window(unit.link)))

    def _normalised(self, unit: Unit) -> tuple[Any, ...]:
        """The point at which a norm is linearised, as its ops take it."""
        place, rectifier = unit.statistics, unit.rectifier
        mean, rstd = self.saved[place : place + 2]  # type: ignore[operator]
        bits, slope = (None, 0.0) if rectifier is None else (self.saved[unit.extra], rectifier.constants[0])  # type: ignore[index]
        return self._input(unit), mean, rstd, self._scale(unit), int(unit.link.constants[0]), bits, slope

    def _linear_map(self, unit: Unit, h: Sequence[Tensor]) -> Tensor:
        """A link without parameters that is its own derivative."""
        if unit.link.name == "add":
            return h[0] + h[1]
        if unit.link.name == "flatten":
            return h[0].flatten(1)
        return self._in_layout(_aten.avg_pool2d(h[0], *self._pool(unit)))

    def _rectified(self, unit: Unit, g: Tensor) -> Tensor:
        """g behind the gate of the rectifier that the unit took in, if any."""
        return g if unit.rectifier is None else self._gate(unit, g)

    def _gate(self, unit: Unit, g: Tensor) -> Tensor:
        """f'(z) g."""
        link = unit.link
        if link.smooth:
            return activation.smooth_gate(g, self._input(unit), self._bias(unit), 1, link.name, link.constants)
        slope, is_image = (unit.rectifier or link).constants[0], g.dim() == 4
        return activation.relu_gate(g, self.saved[unit.extra], slope, is_image and self.channels_last)  # type: ignore[index]

    def _convolution_reverse(
        self, unit: Unit, zeta: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]], want_x: bool, want_weight: bool
    ) -> list[Tensor]:
        deltas, tangents = [self._rectified(unit, d) for d, _ in pairs], [t for _, t in pairs]
        zeta = None if zeta is None else self._rectified(unit, zeta)
        x, weight, window = self._input(unit), self._weight(unit), _window(unit.link)
        return convolution.convolution_reverse(zeta, x, deltas, tangents, weight, *window, want_x, want_weight)

    def _input(self, unit: Unit) -> Tensor:
        return self.x if unit.input is None else self.saved[unit.input]

    def _weight(self, unit: Unit) -> Tensor:
        return self.params[unit.link.weight]  # type: ignore[index]

    def _scale(self, unit: Unit) -> Tensor | None:
        """The weight of a norm, if it has one."""
        return None if unit.link.weight is None else self._weight(unit)

    def _bias(self, unit: Unit) -> Tensor | None:
        return None if unit.bias is None else self.params[unit.bias]

    def _in_layout(self, t: Tensor) -> Tensor:
        return in_layout(t, self.channels_last and t.dim() == 4)

    def _output_of(self, unit: Unit, inputs: Sequence[list[int]]) -> list[int]:
        name, link, sizes = unit.link.name, unit.link, inputs[0]
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
            kernel, stride, padding, *rest = self._pool(unit)
            return self._behind(sizes, sizes[1], kernel, stride, padding, rest[0] if name == "max_pool" else [1, 1])
        if name == "normalise":
            groups = int(link.constants[0])
            require(
                groups >= 0 and (groups == 0 or sizes[1] % groups == 0),
                f"{self.op_name}: groups must be 0 (statistics over the batch) or divide C = {sizes[1]}, got {groups}",
            )
            values = math.prod(sizes) // (groups or sizes[1])
            require(values > 1, f"{self.op_name}: normalise needs several values, got shape {sizes}")
        if name == "add":
            other = inputs[1]
            require(sizes == other, f"{self.op_name}: add needs two values of one shape, got {sizes} and {other}")
        return sizes

    def _pool(self, unit: Unit) -> tuple[Any, ...]:
        """What ATen's functions of a pooling take behind the input."""
        numbers = [int(n) for n in unit.link.constants]
        kernel, stride, padding, rest = numbers[:2], numbers[2:4], numbers[4:6], numbers[6:]
        if unit.link.name == "max_pool":
            return kernel, stride, padding, rest, False
        sides = self.sizes[unit.reads[0]][2:]
        return [k or n for k, n in zip(kernel, sides, strict=True)], stride, padding, False, rest[0] != 0, None

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
        self.check_alike(name, g, self.sizes[self.last.output])
        return self._in_layout(g)

    def as_x(self, x_bar: Tensor) -> Tensor:
        """x̄ in the layout of x."""
        return in_layout(x_bar, self._outer)

    def check_running(self, running: Sequence[Tensor], momenta: Sequence[float]) -> None:
        updating = [unit for unit in self.units if unit.updates]
        self.check("momenta", momenta, len(updating))
        self.check("running statistics", running, 2 * len(updating))

    def check_record(self, record: Sequence[Tensor]) -> None:
        readers = [unit for unit in self.units if unit.record is not None]
        self.check("tensors in a record", record, len(readers))
        for unit, delta in zip(readers, record, strict=True):
            self._check_dense("record", delta, self.sizes[unit.output])

    def check_pairs(self, records: Sequence[Tensor], tangents: Sequence[Tensor], keeping: Sequence[Unit]) -> None:
        n = len(keeping)
        require(
            len(records) == len(tangents) and (len(records) % n == 0 if n else not records),
            f"{self.op_name}: needs pairs of {n} links, got {len(records)} records and {len(tangents)} tangents",
        )
        for k, (delta, t) in enumerate(zip(records, tangents, strict=True)):
            unit = keeping[k % n]
            (value, *_) = unit.reads
            self._check_dense("record", delta, self.sizes[unit.output])
            (self._check_dense if value else self.check_alike)("tangent", t, self.sizes[value])

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
        self.check("saved tensors", saved, sum(unit.n_saved for unit in self.units))
        for unit in self.units:
            if unit.saves_input:
                self._check_dense("saved input", saved[unit.input], self.sizes[unit.reads[0]])  # type: ignore[index]
            if unit.link.name == "max_pool":
                places = saved[unit.extra]  # type: ignore[index]
                require(
                    places.dtype == torch.int64,
                    f"{self.op_name}: saved places must have dtype int64, got {str(places.dtype)[6:]}",
                )
                require_shape(self.op_name, "saved places", places, self.sizes[unit.output])

    def _check_dense(self, name: str, t: Tensor, sizes: list[int]) -> None:
        self.check_alike(name, t, sizes)
        last = self.channels_last and len(sizes) == 4
        dense = t.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        require(dense, f"{self.op_name}: {name} must be dense in the layout of the chain")


def _window(link: Link) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation of a convolution."""
    numbers = [int(n) for n in link.constants]
    return numbers[:2], numbers[2:4], numbers[4:]
