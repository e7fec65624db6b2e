"""Chains: a run of linear layers and activations without branches, each of its four sweeps in one call.

    sweep 1  h_{l+1} = f_l(h_l)          sweep 2  δ_l = f_l′ᵀ δ_{l+1}          sweep 3  t_{l+1} = f_l′ t_l, W̄ = Σ δᵀt
    sweep 4  ζ_l = f_l′ᵀ ζ_{l+1} + Σ f_l″ t_l δ_{l+1},  W̄ += ζᵀh,  b̄ = Σ ζ

With `keep` sweep 3 leaves W̄ to sweep 4, which then takes δᵀt and ζᵀh together: for few rows, whose tangents are smaller
than the weights.

`links` names the run: words "name[+b][:constant…]", "+b" where the link has a bias, for example
"linear relu+b:0.0 linear softplus+b:1.0:20.0 linear+b". Names are linear, relu (its constant is the slope) and the rows
of `activation.ACTIVATIONS`. The first link is linear. All tensors that flow are matrices, (N, width of the link).

`params`   the weight (out, in) and the bias (out,) of each link, in order.
`saved`    [values, bits]: the inputs of all links but the first, and the bits of all relu.
`record`   [g, buffer]: the cotangent sweep 2 began with, and the cotangents of the outputs of all links but the last.
`tangents` [v, buffer]: the tangent sweep 3 began with, and the tangents of the inputs of smooth links, or, with `keep`,
           of the same links as in `values`.
`wanted`   a flag for each parameter. `sums`: the gradients of the wanted weights so far, added to in place, or empty.

A buffer is flat. Matrices lie in it at multiples of 64 elements, in the order the sweep makes them; a relu works in
place, so that its input and its output are one matrix. What lies between two matrices is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import activation
from ._library import op, require, require_alike, require_floating, require_shape

_ALIGN = 64


@dataclass(frozen=True)
class Link:
    """One word of `links`; weight, bias and curve are places in the lists, None where there is none."""

    name: str
    constants: tuple[float, ...]
    weight: int | None
    bias: int | None
    curve: int | None


@lru_cache
def parse(links: str) -> tuple[Link, ...]:
    """The links that a text names."""
    found: list[Link] = []
    counts = dict(params=0, curves=0)

    def place(what: str, there: bool) -> int | None:
        counts[what] += there
        return counts[what] - 1 if there else None

    for text in links.split():
        head, *constants = text.split(":")
        name, _, bias = head.partition("+")
        if name in ("linear", "relu"):
            expected = int(name == "relu")
            require(len(constants) == expected, f"chain: {name} has {expected} constants, got {len(constants)}")
        weight = place("params", name == "linear")
        curve = place("curves", name not in ("linear", "relu"))
        found.append(Link(name, tuple(map(float, constants)), weight, place("params", bool(bias)), curve))
    require(bool(found) and found[0].name == "linear", f"chain: must begin with a linear layer, got '{links}'")
    return tuple(found)


def word(name: str, bias: bool, constants: Sequence[float] = ()) -> str:
    """How `links` spells a link."""
    return ":".join([name + "+b" * bias, *[repr(float(c)) for c in constants]])


@op("chain_forward(Tensor x, Tensor[] params, str links) -> Tensor[]")
def chain_forward(x: Tensor, params: Sequence[Tensor], links: str) -> list[Tensor]:
    """Sweep 1: [y, values, bits]."""
    chain = _Chain("chain_forward", links, params)
    chain.check_parameters(x)
    inputs: dict[int, Tensor] = {}
    masks: dict[int, Tensor] = {}
    for i, link in enumerate(chain.links):
        inputs[i] = x
        if link.name == "linear":
            x = _affine(x, chain.weight(link), chain.bias(link))
        elif link.name == "relu":
            x, masks[i] = activation.relu_forward(x, chain.bias(link), -1, link.constants[0])
        else:
            x = activation.smooth_forward(x, chain.bias(link), -1, link.name, link.constants)
    places, bit_places = chain.input_places(len(x)), chain.bit_places(len(x))
    values = _buffer(inputs, places, like=x)
    return [x, values, _buffer(masks, bit_places, like=x.new_empty(0, dtype=torch.uint8))]


@op("chain_data_vjp(Tensor g, Tensor[] params, Tensor[] saved, str links) -> Tensor[]")
def chain_data_vjp(g: Tensor, params: Sequence[Tensor], saved: Sequence[Tensor], links: str) -> list[Tensor]:
    """Sweep 2: [J, buffer of its record]."""
    chain = _Chain("chain_data_vjp", links, params)
    chain.resume("g", g, chain.widths[-1], saved)
    cotangents: dict[int, Tensor] = {}
    for i, link in reversed(list(enumerate(chain.links))):
        cotangents[i] = g
        g = torch.mm(g, chain.weight(link)) if link.name == "linear" else chain.gate(i, g)
    return [g, _buffer(cotangents, chain.cotangent_places(len(g)), like=g)]


@op(
    "chain_data_jvp(Tensor t, Tensor[] params, Tensor[] saved, Tensor[] record, str links, bool[] wanted,"
    " bool want_y, bool keep, Tensor(a!)[] sums) -> Tensor[]"
)
def chain_data_jvp(
    t: Tensor,
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    record: Sequence[Tensor],
    links: str,
    wanted: Sequence[bool],
    want_y: bool,
    keep: bool,
    sums: Sequence[Tensor],
) -> list[Tensor]:
    """Sweep 3: [buffer of tangents, tangent of y if wanted, *gradients of weights unless they are kept or summed]."""
    chain = _Chain("chain_data_jvp", links, params)
    chain.resume("t", t, chain.widths[0], saved)
    chain.check("flags", wanted, chain.n_params)
    chain.check_record(record)
    chain.check_sums(sums, wanted)
    order = {} if keep else chain.order(wanted)
    places = chain.tangent_places(keep)
    inputs: dict[int, Tensor] = {}
    bars: list[Tensor] = []
    end = chain.tangent_end(wanted, want_y)
    for i in range(end):
        inputs[i] = t
        if i in order:
            bars += _outer([(chain.delta(record, i), t)], sums, order[i])
        if i + 1 == end and not want_y:
            break
        t = torch.mm(t, chain.weight(chain.links[i]).t()) if chain.links[i].name == "linear" else chain.gate(i, t)
    return [_buffer(inputs, places, like=t), *[t] * want_y, *bars]


@op(
    "chain_reverse(Tensor? zeta, Tensor[] records, Tensor[] tangents, Tensor x, Tensor[] params, Tensor[] saved,"
    " str links, bool[] wanted, bool want_x, bool keep, Tensor(a!)[] sums) -> Tensor[]"
)
def chain_reverse(
    zeta: Tensor | None,
    records: Sequence[Tensor],
    tangents: Sequence[Tensor],
    x: Tensor,
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    links: str,
    wanted: Sequence[bool],
    want_x: bool,
    keep: bool,
    sums: Sequence[Tensor],
) -> list[Tensor]:
    """Sweep 4: [cotangent of x if wanted, *gradients of the wanted parameters, in order].

    Without ζ only what lies below the last smooth link has one, and there are no gradients of parameters behind it, but
    for those of weights with `keep`. Gradients of weights are added to `sums` and not returned, if there are any.
    `records` and `tangents` are those of sweeps 2 and 3, data gradient after data gradient.
    """
    chain = _Chain("chain_reverse", links, params)
    chain.resume("x", x, chain.widths[0], saved)
    if zeta is not None:
        chain.check_flow("zeta", zeta, chain.widths[-1])
    chain.check("flags", wanted, chain.n_params)
    records_, tangents_ = chain.check_pairs(records, tangents, keep)
    chain.check_sums(sums, wanted)
    chain.check_zeta(zeta, records, want_x)
    order, stop = chain.order(wanted), 0 if want_x else chain.first_wanted(wanted)
    found: dict[int | None, Tensor] = {}
    for i in range(len(chain.links) - 1, stop - 1, -1):
        link, bias = chain.links[i], None
        pairs = [
            (chain.delta(r, i), chain.tangent(t, keep, i))
            for r, t in zip(records_, tangents_, strict=True)
            if link.curve is not None or (keep and link.name == "linear")
        ]
        if link.name == "linear":
            features = [*([] if zeta is None else [(zeta, chain.input(i, x))]), *pairs]
            if i in order and features:
                found.update(zip([link.weight], _outer(features, sums, order[i]), strict=False))
            if zeta is not None:
                bias = zeta.sum(0)
                zeta = torch.mm(zeta, chain.weight(link)) if want_x or i > stop else zeta
        elif zeta is not None or pairs:
            zeta, bias = chain.reverse(i, zeta, pairs)
        if link.bias is not None and wanted[link.bias] and bias is not None:
            found[link.bias] = bias
    return ([zeta] if want_x and zeta is not None else []) + [found[place] for place in sorted(found)]  # type: ignore[type-var]


class _Chain:
    """The links of a call, with its parameters and what it saved, checked."""

    def __init__(self, op_name: str, links: str, params: Sequence[Tensor]) -> None:
        self.op_name, self.links, self.params = op_name, parse(links), params
        self.n_params = sum((link.weight is not None) + (link.bias is not None) for link in self.links)
        self.check("parameters", params, self.n_params)
        self.widths = [self.weight(self.links[0]).shape[1]]
        for link in self.links:
            self.widths.append(self.weight(link).shape[0] if link.name == "linear" else self.widths[-1])

    def resume(self, name: str, flow: Tensor, columns: int, saved: Sequence[Tensor]) -> None:
        """A later sweep, at the rows of what enters it."""
        self.check("saved buffers", saved, 2)
        require(flow.dim() == 2, f"{self.op_name}: {name} must be a matrix, got shape {list(flow.shape)}")
        self.rows = len(flow)
        self.check_flow(name, flow, columns)
        self.values, self.masks = saved
        self.inputs, self.bits = self.input_places(self.rows), self.bit_places(self.rows)
        self._check_dense("saved values", self.values, (_total(self.inputs),))
        require(
            self.masks.dtype == torch.uint8,
            f"{self.op_name}: saved bits must have dtype uint8, got {str(self.masks.dtype)[6:]}",
        )
        require_shape(self.op_name, "saved bits", self.masks, (_total(self.bits),))

    # where things lie: link -> (offset, size)

    def input_places(self, rows: int) -> dict[int, tuple[int, int]]:
        """The input of each link but the first, unless nothing but relu lies between it and y."""
        last = max(i for i, link in enumerate(self.links) if link.name != "relu")
        places: dict[int, tuple[int, int]] = {}
        for i in range(1, last + 1):
            in_place = i - 1 in places and self.links[i - 1].name == "relu"
            places[i] = places[i - 1] if in_place else (_total(places), rows * self.widths[i])
        return places

    def bit_places(self, rows: int) -> dict[int, tuple[int, int]]:
        """The bits of each relu."""
        places: dict[int, tuple[int, int]] = {}
        for i, link in enumerate(self.links):
            if link.name == "relu":
                places[i] = (_total(places), (rows * self.widths[i] + 7) // 8)
        return places

    def cotangent_places(self, rows: int) -> dict[int, tuple[int, int]]:
        """The cotangent of the output of each link but the last."""
        places: dict[int, tuple[int, int]] = {}
        for i in range(len(self.links) - 2, -1, -1):
            in_place = i + 1 in places and self.links[i + 1].name == "relu"
            places[i] = places[i + 1] if in_place else (_total(places), rows * self.widths[i + 1])
        return places

    def tangent_places(self, keep: bool) -> dict[int, tuple[int, int]]:
        """The tangents that sweep 3 keeps."""
        if keep:
            return self.inputs
        places: dict[int, tuple[int, int]] = {}
        for i, link in enumerate(self.links):
            if link.curve is not None:
                places[i] = (_total(places), self.rows * self.widths[i])
        return places

    def tangent_end(self, wanted: Sequence[bool], want_y: bool) -> int:
        """Links that sweep 3 visits: all for the tangent of y, else up to the last that reads a tangent."""
        readers = [i for i, k in enumerate(self.links) if k.curve is not None or _wants(wanted, k.weight)]
        return len(self.links) if want_y else max(readers, default=-1) + 1

    def first_wanted(self, wanted: Sequence[bool]) -> int:
        """The first link with a parameter that is asked for; behind the last if there is none."""
        asked = [i for i, k in enumerate(self.links) if _wants(wanted, k.weight) or _wants(wanted, k.bias)]
        return min(asked, default=len(self.links))

    def input(self, i: int, x: Tensor) -> Tensor:
        """What link i read in sweep 1."""
        return _part(self.values, self.inputs[i]).view(self.rows, self.widths[i]) if i else x

    def delta(self, record: Sequence[Tensor], i: int) -> Tensor:
        """The cotangent of the output of link i in sweep 2."""
        if i == len(self.links) - 1:
            return record[0]
        return _part(record[1], self.cotangent_places(self.rows)[i]).view(self.rows, self.widths[i + 1])

    def tangent(self, tangents: Sequence[Tensor], keep: bool, i: int) -> Tensor:
        """The tangent of the input of link i in sweep 3."""
        return (
            tangents[0] if i == 0 else _part(tangents[1], self.tangent_places(keep)[i]).view(self.rows, self.widths[i])
        )

    # parameters

    def weight(self, link: Link) -> Tensor:
        return self.params[link.weight]  # type: ignore[index]

    def bias(self, link: Link) -> Tensor | None:
        return None if link.bias is None else self.params[link.bias]

    def order(self, wanted: Sequence[bool]) -> dict[int, int]:
        """Link -> where the gradient of its weight stands among the sums, for each wanted weight."""
        links = [i for i, link in enumerate(self.links) if _wants(wanted, link.weight)]
        return {i: k for k, i in enumerate(links)}

    # checks

    def check(self, what: str, values: Sequence[object], expected: int) -> None:
        require(len(values) == expected, f"{self.op_name}: the chain has {expected} {what}, got {len(values)}")

    def check_parameters(self, x: Tensor) -> None:
        require_floating(self.op_name, "x", x)
        require(x.dim() == 2, f"{self.op_name}: x must be a matrix, got shape {list(x.shape)}")
        columns = x.shape[1]
        for link in self.links:
            if link.name != "linear":
                continue
            weight, bias = self.weight(link), self.bias(link)
            require_alike(self.op_name, "weight", weight, "x", x)
            require(
                weight.dim() == 2 and columns == weight.shape[1],
                f"{self.op_name}: mat1 and mat2 shapes cannot be multiplied: the input has {columns} columns, "
                f"the weight has shape {list(weight.shape)}",
            )
            columns = weight.shape[0]
            if bias is not None:
                require_alike(self.op_name, "bias", bias, "x", x)
                require_shape(self.op_name, "bias", bias, (columns,))

    def check_record(self, record: Sequence[Tensor]) -> None:
        self._check_two("record", record, self.widths[-1], _total(self.cotangent_places(self.rows)))

    def check_pairs(
        self, records: Sequence[Tensor], tangents: Sequence[Tensor], keep: bool
    ) -> tuple[list[Sequence[Tensor]], list[Sequence[Tensor]]]:
        """Records and tangents, two tensors each."""
        require(
            len(records) == len(tangents) and len(tangents) % 2 == 0,
            f"{self.op_name}: needs two tensors of tangents for every record of two, got {len(tangents)} and "
            f"{len(records)}",
        )
        pairs = [[tensors[k : k + 2] for k in range(0, len(tensors), 2)] for tensors in (records, tangents)]
        for record, pair in zip(*pairs, strict=True):
            self.check_record(record)
            self._check_two("tangents", pair, self.widths[0], _total(self.tangent_places(keep)))
        return pairs[0], pairs[1]

    def _check_two(self, name: str, tensors: Sequence[Tensor], width: int, size: int) -> None:
        require(len(tensors) >= 2, f"{self.op_name}: {name} has 2 tensors, got {len(tensors)}")
        self._check_dense(name, tensors[0], (self.rows, width))
        self._check_dense(name, tensors[1], (size,))

    def check_flow(self, name: str, flow: Tensor, columns: int) -> None:
        require_alike(self.op_name, name, flow, "the weight", self.params[0])
        require_shape(self.op_name, name, flow, (self.rows, columns))

    def check_sums(self, sums: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        """No sums, or one for each wanted weight."""
        links = [self.links[i] for i in self.order(wanted)]
        require(
            len(sums) in (0, len(links)),
            f"{self.op_name}: needs a sum for every wanted weight, got {len(sums)}",
        )
        for link, total in zip(links, sums, strict=False):
            self._check_dense("sum", total, self.weight(link).shape)

    def check_zeta(self, zeta: Tensor | None, records: Sequence[Tensor], want_x: bool) -> None:
        """There is something to reverse, and where x̄ is wanted something reaches x."""
        require(zeta is not None or len(records) > 0, f"{self.op_name}: needs a zeta or a record")
        require(
            not want_x or zeta is not None or any(link.curve is not None for link in self.links),
            f"{self.op_name}: without a zeta a chain without smooth links has no cotangent of x",
        )

    def _check_dense(self, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
        require_alike(self.op_name, name, tensor, "the weight", self.params[0])
        require_shape(self.op_name, name, tensor, shape)
        require(tensor.is_contiguous(), f"{self.op_name}: {name} must be contiguous")

    # activations

    def gate(self, i: int, g: Tensor) -> Tensor:
        """f'(z) g."""
        link = self.links[i]
        if link.name == "relu":
            return activation.relu_gate(g, _part(self.masks, self.bits[i]), link.constants[0], False)
        return activation.smooth_gate(g, self.input(i, g), self.bias(link), -1, link.name, link.constants)

    def reverse(
        self, i: int, zeta: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        """Sweep 4: the cotangents of the input and of the bias, if there is one; pairs are (δ, t)."""
        link = self.links[i]
        if link.name == "relu":
            assert zeta is not None
            if link.bias is None:
                return self.gate(i, zeta), None
            return activation.relu_reverse(zeta, _part(self.masks, self.bits[i]), link.constants[0], False, -1)
        cotangents, tangents = [d for d, _ in pairs], [t for _, t in pairs]
        z, with_bias = self.input(i, self.values), link.bias is not None
        return activation.smooth_reverse(
            zeta, tangents, cotangents, z, self.bias(link), -1, link.name, link.constants, with_bias
        )


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _wants(wanted: Sequence[bool], place: int | None) -> bool:
    return place is not None and wanted[place]


def _outer(pairs: Sequence[tuple[Tensor, Tensor]], sums: Sequence[Tensor], place: int) -> list[Tensor]:
    """Σ gᵀx: added to its sum, or alone in a list if there are no sums."""
    bar = sums[place] if sums else None
    for g, x in pairs:
        bar = torch.mm(g.t(), x) if bar is None else bar.addmm_(g.t(), x)
    return [bar] if bar is not None and not sums else []


def _total(places: dict[int, tuple[int, int]]) -> int:
    """The size of the buffer."""
    return max([-(-(offset + size) // _ALIGN) * _ALIGN for offset, size in places.values()], default=0)


def _buffer(matrices: dict[int, Tensor], places: dict[int, tuple[int, int]], like: Tensor) -> Tensor:
    """The matrices in their places; where two share one, the last of them that was made."""
    buffer = like.new_zeros(_total(places))
    for i, matrix in matrices.items():
        if i in places:
            _part(buffer, places[i]).copy_(matrix.reshape(-1))
    return buffer


def _part(buffer: Tensor, place: tuple[int, int]) -> Tensor:
    return buffer.narrow(0, *place)
