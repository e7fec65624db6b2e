"""Chains: a run of linear layers and activations without branches, each of its four sweeps in one call.

    sweep 1  h_{l+1} = f_l(h_l)          sweep 2  δ_l = f_l′ᵀ δ_{l+1}          sweep 3  t_{l+1} = f_l′ t_l, W̄ = Σ δᵀt
    sweep 4  ζ_l = f_l′ᵀ ζ_{l+1} + Σ f_l″ t_l δ_{l+1},  W̄ += ζᵀh,  b̄ = Σ ζ

`links` names the run: words "name[+b][:constant…]", "+b" where the link has a bias, for example
"linear relu+b:0.0 linear softplus+b:1.0:20.0 linear+b". Names are linear, relu (its constant is the slope) and the rows
of `activation.ACTIVATIONS`. "@marks" behind a word ask for another way to the same result where the device has it
(`layers/marked.py`); the reference looks at none. The first link is linear. All tensors that flow are
matrices, (N, width of the link).

`params`   the weight (out, in) and the bias (out,) of each link, in order.
`saved`    [bits, *buffers]: the bits of all relu, and the inputs of all links but the first.
`record`   [g, *buffers]: the cotangent sweep 2 began with, and the cotangents of the outputs of all links but the last,
           and but those that a slim head leaves out.
`tangents` [v, *buffers]: the tangent sweep 3 began with, and the tangents of the inputs of smooth links.
`wanted`   a flag for each parameter. `sums`: the gradients of the wanted weights so far, added to in place, or empty.

A buffer is flat and holds up to 2^20 elements, or one larger matrix. Matrices lie in it at multiples of 64 elements, in
the order the sweep makes them; a relu works in place, so that its input and its output are one matrix. What lies
between two matrices is not defined. The bits are one buffer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from . import activation
from ._library import op, require, require_alike, require_floating, require_shape

_ALIGN, _LARGEST = 64, 2**20
_SLIM = 4
_CONSTANTS = {
    "linear": 0, "relu": 1, "convolution": 6, "flatten": 0, "max_pool": 8, "avg_pool": 7, "normalise": 3, "add": 0,
}  # fmt: skip
NARROW = 128
"""Up to this width the CPU walks through a sweep tile by tile (float32, float64); wider, a vendor's products win."""


@dataclass(frozen=True)
class Link:
    """One word of `links`; weight and bias are places among the parameters, None where there is none."""

    name: str
    constants: tuple[float, ...]
    weight: int | None
    bias: int | None
    marks: str = field(default="", compare=False)
    reads: tuple[int, ...] = ()
    """The values that the word names."""

    @property
    def smooth(self) -> bool:
        """Whether its second derivative is not zero."""
        return self.name not in _CONSTANTS


def words(links: str) -> list[Link]:
    """The links that a text names, of matrices or of images."""
    found: list[Link] = []
    params = itertools.count()
    for text in links.split():
        spelled, _, marks = text.partition("@")
        spelled, *reads = spelled.split("<")
        head, *constants = spelled.split(":")
        name, *own = head.split("+")
        expected = _CONSTANTS.get(name, len(constants))
        require(len(constants) == expected, f"chain: {name} has {expected} constants, got {len(constants)}")
        weight = next(params) if name in ("linear", "convolution") or "w" in own else None
        bias = next(params) if "b" in own else None
        found.append(Link(name, tuple(map(float, constants)), weight, bias, marks, tuple(map(int, reads))))
    return found


@lru_cache
def parse(links: str) -> tuple[Link, ...]:
    """The links of matrices that a text names."""
    found = words(links)
    require(bool(found) and found[0].name == "linear", f"chain: must begin with a linear layer, got '{links}'")
    for link in found:
        of_matrices = link.smooth or link.name in ("linear", "relu")
        require(of_matrices, f"chain: a link of matrices cannot be {link.name}")
        require(not link.reads, f"chain: a link of matrices reads what is before it, got '{links}'")
    return tuple(found)


def word(name: str, bias: bool, constants: Sequence[float] = ()) -> str:
    """How `links` spells a link."""
    return ":".join([name + "+b" * bias, *[repr(float(c)) for c in constants]])


def with_marks(links: str, marks: Sequence[str]) -> str:
    """The same links, each with its marks."""
    return " ".join(text + "@" * bool(mark) + mark for text, mark in zip(links.split(), marks, strict=True))


@op("chain_forward(Tensor x, Tensor[] params, str links) -> Tensor[]")
def chain_forward(x: Tensor, params: Sequence[Tensor], links: str) -> list[Tensor]:
    """Sweep 1: [y, *saved]."""
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
    bits = x.new_zeros(bit_places.size(0), dtype=torch.uint8)
    bit_places.fill([bits], masks)
    return [x, bits, *places.fill(places.buffers(x), inputs)]


@op("chain_data_vjp(Tensor g, Tensor[] params, Tensor[] saved, str links) -> Tensor[]")
def chain_data_vjp(g: Tensor, params: Sequence[Tensor], saved: Sequence[Tensor], links: str) -> list[Tensor]:
    """Sweep 2: [J, *buffers of its record]."""
    chain = _Chain("chain_data_vjp", links, params)
    chain.resume("g", g, chain.widths[-1], saved)
    cotangents: dict[int, Tensor] = {}
    for i, link in reversed(list(enumerate(chain.links))):
        cotangents[i] = g
        g = torch.mm(g, chain.weight(link)) if link.name == "linear" else chain.gate(i, g)
    places = chain.cotangent_places(len(g))
    return [g, *places.fill(places.buffers(g), cotangents)]


@op(
    "chain_data_jvp(Tensor t, Tensor[] params, Tensor[] saved, Tensor[] record, str links, bool[] wanted,"
    " bool want_y, Tensor(a!)[] sums) -> Tensor[]"
)
def chain_data_jvp(
    t: Tensor,
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    record: Sequence[Tensor],
    links: str,
    wanted: Sequence[bool],
    want_y: bool,
    sums: Sequence[Tensor],
) -> list[Tensor]:
    """Sweep 3: [tangent of y if wanted, *gradients of weights unless they are summed, *buffers of tangents]."""
    chain = _Chain("chain_data_jvp", links, params)
    chain.resume("t", t, chain.widths[0], saved)
    chain.check("flags", wanted, chain.n_params)
    chain.check_record(record)
    chain.check_sums(sums, wanted)
    order, places = chain.order(wanted), chain.tangent_places()
    inputs: dict[int, Tensor] = {}
    bars: list[Tensor] = []
    end = chain.tangent_end(wanted, want_y)
    for i in range(end):
        inputs[i] = t
        if i in order:
            bars += _outer(chain.delta(record, i), t, sums, order[i])
        if i + 1 == end and not want_y:
            break
        t = torch.mm(t, chain.weight(chain.links[i]).t()) if chain.links[i].name == "linear" else chain.gate(i, t)
    return [*[t] * want_y, *bars, *places.fill(places.buffers(t), inputs)]


@op(
    "chain_reverse(Tensor? zeta, Tensor[] records, Tensor[] tangents, Tensor x, Tensor[] params, Tensor[] saved,"
    " str links, bool[] wanted, bool want_x, Tensor(a!)[] sums) -> Tensor[]"
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
    sums: Sequence[Tensor],
) -> list[Tensor]:
    """Sweep 4: [cotangent of x if wanted, *gradients of the wanted parameters, in order].

    Without ζ only what lies below the last smooth link has one, and there are no gradients of parameters behind it.
    Gradients of weights are added to `sums` and not returned, if there are any.
    `records` and `tangents` are those of sweeps 2 and 3, data gradient after data gradient.
    """
    chain = _Chain("chain_reverse", links, params)
    chain.resume("x", x, chain.widths[0], saved)
    if zeta is not None:
        chain.check_flow("zeta", zeta, chain.widths[-1])
    chain.check("flags", wanted, chain.n_params)
    records_, tangents_ = chain.check_pairs(records, tangents)
    chain.check_sums(sums, wanted)
    chain.check_zeta(zeta, records, want_x)
    order, stop = chain.order(wanted), 0 if want_x else chain.first_wanted(wanted)
    found: dict[int | None, Tensor] = {}
    for i in range(len(chain.links) - 1, stop - 1, -1):
        link, bias = chain.links[i], None
        both = zip(records_, tangents_, strict=True) if link.smooth else ()
        pairs = [(chain.delta(record, i), chain.tangent(kept, i)) for record, kept in both]
        if zeta is not None and link.name == "linear":
            if i in order:
                found.update(zip([link.weight], _outer(zeta, chain.input(i, x), sums, order[i]), strict=False))
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
        require(flow.dim() == 2, f"{self.op_name}: {name} must be a matrix, got shape {list(flow.shape)}")
        self.rows = len(flow)
        self.check_flow(name, flow, columns)
        self.inputs, self.bits = self.input_places(self.rows), self.bit_places(self.rows)
        self.check("saved buffers", saved, 1 + len(self.inputs.sizes))
        self.masks, *self.values = saved
        require(
            self.masks.dtype == torch.uint8,
            f"{self.op_name}: saved bits must have dtype uint8, got {str(self.masks.dtype)[6:]}",
        )
        require_shape(self.op_name, "saved bits", self.masks, (self.bits.size(0),))
        self._check_buffers("saved values", self.values, self.inputs)

    # where things lie

    def input_places(self, rows: int) -> _Places:
        """The input of each link but the first, unless nothing but relu lies between it and y."""
        last = max(i for i, link in enumerate(self.links) if link.name != "relu")
        places = _Places()
        for i in range(1, last + 1):
            places.add(i, rows * self.widths[i], i - 1 if self.links[i - 1].name == "relu" else None)
        return places

    def bit_places(self, rows: int) -> _Places:
        """The bits of each relu."""
        places = _Places(largest=math.inf)
        for i, link in enumerate(self.links):
            if link.name == "relu":
                places.add(i, (rows * self.widths[i] + 7) // 8)
        return places

    @property
    def slim_head(self) -> bool:
        """Whether sweep 2 leaves out the cotangent in front of the last linear link and its rectifier: where y is much
        narrower, sweep 3 computes it again for less than a matrix in memory costs. On the CPU, and not in 16 bits.
        """
        ends, weight = [link.name for link in self.links[-3:]], self.params[0]
        covered = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        return covered and ends == ["linear", "relu", "linear"] and _SLIM * self.widths[-1] <= self.widths[-2]

    def cotangent_places(self, rows: int) -> _Places:
        """The cotangent of the output of each link but the last, and but those that a slim head leaves out."""
        places = _Places()
        for i in range(len(self.links) - (4 if self.slim_head else 2), -1, -1):
            places.add(i, rows * self.widths[i + 1], i + 1 if self.links[i + 1].name == "relu" else None)
        return places

    def tangent_places(self) -> _Places:
        """The tangents that sweep 3 keeps."""
        places = _Places()
        for i, link in enumerate(self.links):
            if link.smooth:
                places.add(i, self.rows * self.widths[i])
        return places

    def tangent_end(self, wanted: Sequence[bool], want_y: bool) -> int:
        """Links that sweep 3 visits: all for the tangent of y, else up to the last that reads a tangent."""
        readers = [i for i, k in enumerate(self.links) if k.smooth or _wants(wanted, k.weight)]
        return len(self.links) if want_y else max(readers, default=-1) + 1

    def first_wanted(self, wanted: Sequence[bool]) -> int:
        """The first link with a parameter that is asked for; behind the last if there is none."""
        asked = [i for i, k in enumerate(self.links) if _wants(wanted, k.weight) or _wants(wanted, k.bias)]
        return min(asked, default=len(self.links))

    def input(self, i: int, x: Tensor) -> Tensor:
        """What link i read in sweep 1."""
        return self.inputs.part(self.values, i).view(self.rows, self.widths[i]) if i else x

    def delta(self, record: Sequence[Tensor], i: int) -> Tensor:
        """The cotangent of the output of link i in sweep 2."""
        if i == len(self.links) - 1:
            return record[0]
        places = self.cotangent_places(self.rows)
        if i not in places.of:
            return self.gate(len(self.links) - 2, torch.mm(record[0], self.weight(self.links[-1])))
        return places.part(record[1:], i).view(self.rows, self.widths[i + 1])

    def tangent(self, tangents: Sequence[Tensor], i: int) -> Tensor:
        """The tangent of the input of link i in sweep 3."""
        if i == 0:
            return tangents[0]
        return self.tangent_places().part(tangents[1:], i).view(self.rows, self.widths[i])

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
        places = self.cotangent_places(self.rows)
        self.check("tensors in a record", record, 1 + len(places.sizes))
        self._check_part("record", record, self.widths[-1], places)

    def check_pairs(
        self, records: Sequence[Tensor], tangents: Sequence[Tensor]
    ) -> tuple[list[Sequence[Tensor]], list[Sequence[Tensor]]]:
        """Records and tangents, one of each for every data gradient."""
        deltas, places = self.cotangent_places(self.rows), self.tangent_places()
        a, b = 1 + len(deltas.sizes), 1 + len(places.sizes)
        require(
            len(records) % a == 0 and len(records) // a * b == len(tangents),
            f"{self.op_name}: a record has {a} tensors here and its tangents have {b}, got {len(records)} and "
            f"{len(tangents)}",
        )
        found = [records[k : k + a] for k in range(0, len(records), a)]
        kept = [tangents[k : k + b] for k in range(0, len(tangents), b)]
        for record, pair in zip(found, kept, strict=True):
            self._check_part("record", record, self.widths[-1], deltas)
            self._check_part("tangents", pair, self.widths[0], places)
        return found, kept

    def _check_part(self, name: str, tensors: Sequence[Tensor], width: int, places: _Places) -> None:
        self._check_dense(name, tensors[0], (self.rows, width))
        self._check_buffers(name, tensors[1:], places)

    def _check_buffers(self, name: str, tensors: Sequence[Tensor], places: _Places) -> None:
        for tensor, size in zip(tensors, places.sizes, strict=True):
            self._check_dense(name, tensor, (size,))

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
            not want_x or zeta is not None or any(link.smooth for link in self.links),
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
            return activation.relu_gate(g, self.bits.part([self.masks], i), link.constants[0], False)
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
            return activation.relu_reverse(zeta, self.bits.part([self.masks], i), link.constants[0], False, -1)
        cotangents, tangents = [d for d, _ in pairs], [t for _, t in pairs]
        z, with_bias = self.input(i, self.masks), link.bias is not None
        return activation.smooth_reverse(
            zeta, tangents, cotangents, z, self.bias(link), -1, link.name, link.constants, with_bias
        )


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _wants(wanted: Sequence[bool], place: int | None) -> bool:
    return place is not None and wanted[place]


def _outer(g: Tensor, x: Tensor, sums: Sequence[Tensor], place: int) -> list[Tensor]:
    """gᵀx: added to its sum, or alone in a list if there are no sums."""
    if not sums:
        return [torch.mm(g.t(), x)]
    sums[place].addmm_(g.t(), x)
    return []


class _Places:
    """Where the matrices of a sweep lie in its buffers: link -> (buffer, offset, size)."""

    def __init__(self, largest: float = _LARGEST) -> None:
        self.of: dict[int, tuple[int, int, int]] = {}
        self.sizes: list[int] = []
        self._largest = largest

    def size(self, buffer: int) -> int:
        """Elements of a buffer; 0 if there is none."""
        return self.sizes[buffer] if buffer < len(self.sizes) else 0

    def add(self, link: int, size: int, neighbour: int | None = None) -> None:
        """A place for the link's matrix: that of the neighbour, if there is one."""
        if neighbour in self.of:
            self.of[link] = self.of[neighbour]
            return
        rounded = -(-size // _ALIGN) * _ALIGN
        if not self.sizes or self.sizes[-1] + rounded > self._largest:
            self.sizes.append(0)
        self.of[link] = len(self.sizes) - 1, self.sizes[-1], size
        self.sizes[-1] += rounded

    def buffers(self, like: Tensor) -> list[Tensor]:
        """Buffers of these sizes."""
        return [like.new_zeros(size) for size in self.sizes]

    def fill(self, buffers: list[Tensor], matrices: dict[int, Tensor]) -> list[Tensor]:
        """The buffers with the matrices in their places; where two share one, the last of them that was made."""
        for i, matrix in matrices.items():
            if i in self.of:
                self.part(buffers, i).copy_(matrix.reshape(-1))
        return buffers

    def part(self, buffers: Sequence[Tensor], i: int) -> Tensor:
        """The matrix of link i, flat."""
        buffer, offset, size = self.of[i]
        return buffers[buffer].narrow(0, offset, size)
