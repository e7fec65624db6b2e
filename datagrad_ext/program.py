"""A traced network: steps in order, and the four sweeps over them.

Values are numbered: first the inputs, then the results of steps. A `Step` applies a layer; a `HostStep` computes
something that no gradient flows through (a size, a constant, a mask). With L the loss, J = ∂L/∂x and v = ∂R/∂J:

    forward         h = f(x)                                   sweep 1, keeps what each layer saves
    data_gradient   δ from ∂L/∂y down to J                     sweep 2, keeps δ at layers that are paired
    tangent         t from v up, parameter gradients of (δ, t)     sweep 3, keeps (δ, t) at layers that are curved
    reverse         ζ down, curvature(t, δ), parameter gradients of (ζ, h)     sweep 4

None is zero in every sweep, and nothing is computed from zero: without a ζ, sweep 4 of a piecewise-linear network is
its parameter gradients and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from .layers import Layer, Tensors, UnsupportedOutput, add, reader

Flags = tuple[bool, ...]


@dataclass(frozen=True)
class Ref:
    """A host value used as an argument: the value of that number."""

    value: int


@dataclass(frozen=True)
class Step:
    """value[output] = layer(values[inputs], params[params], host)."""

    layer: Layer
    inputs: tuple[int, ...]
    output: int
    params: tuple[int, ...] = ()
    host: tuple[Any, ...] = ()
    name: str = ""

    @property
    def reads(self) -> tuple[int, ...]:
        """Every value it reads: inputs, and host values among the arguments."""
        return (*self.inputs, *[a.value for a in self.host if isinstance(a, Ref)])


@dataclass(frozen=True)
class HostStep:
    """value[output] = call(values), outside of every gradient; `inputs` are the values it reads."""

    call: Callable[[list[Any]], Any]
    inputs: tuple[int, ...]
    output: int
    name: str = ""

    @property
    def reads(self) -> tuple[int, ...]:
        """Every value it reads."""
        return self.inputs


@dataclass(frozen=True)
class Row:
    """What one step did at its first run: for the table that `datagrad_ext.program` prints."""

    step: Step
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    saved_bytes: int
    device: str


class Left:
    """What sweep 3 of all data gradients of a forward leaves for its sweep 4: pairs and parameter gradients by step."""

    __slots__ = ("pairs", "sums", "wanted", "wanted_inputs", "wanted_params")

    def __init__(self, n_inputs: int, wanted: Flags) -> None:
        self.wanted, self.wanted_inputs, self.wanted_params = wanted, wanted[:n_inputs], wanted[n_inputs:]
        self.pairs: dict[int, list[tuple[Any, Tensors]]] = {}
        self.sums: dict[int, Tensors] = {}


@dataclass(frozen=True)
class Program:
    """Steps over numbered values; `outputs` are the values returned."""

    n_inputs: int
    n_params: int
    steps: tuple[Step | HostStep, ...]
    outputs: tuple[int, ...]
    rows: list[Row] = field(default_factory=list, compare=False)
    _plans: dict[Any, Any] = field(default_factory=dict, compare=False)

    def with_steps(self, steps: Sequence[Step | HostStep]) -> Program:
        """The same program with other steps: what a fusion pass returns."""
        return replace(self, steps=tuple(steps), rows=[], _plans={})

    def thetas(self, params: Sequence[Any]) -> list[Tensors]:
        """The parameters of each step."""
        return [read(params) for read in self._parameter_readers]

    def forward(self, inputs: Sequence[Any], thetas: list[Tensors]) -> tuple[list[Any], list[Any]]:
        """Sweep 1: the outputs, and what each step saved."""
        describe = not self.rows
        values = [*inputs, *[None] * self._n_results]
        saved: list[Any] = []
        for step, theta, dead in zip(self.steps, thetas, self._last_reads, strict=True):
            if isinstance(step, HostStep):
                y = step.call(values)
                saved.append((y,))
            else:
                arguments = tuple([values[i] for i in step.inputs])
                y, kept = step.layer.forward(arguments, theta, *(step.host and _host(step.host, values)))
                saved.append(kept)
                if describe:
                    _refuse_complex(step.layer, (*arguments, y))
                    if step.layer.acted(kept):
                        self.rows.append(_row(step, arguments, theta, y, kept))
            values[step.output] = y
            for value in dead:
                values[value] = None
        return [values[i] for i in self.outputs], saved

    def data_gradient(
        self, saved: list[Any], thetas: list[Tensors], cotangents: Sequence[Any], wanted: Flags
    ) -> tuple[list[Any], list[Any]]:
        """Sweep 2: the gradient with respect to each wanted input, and the record of each paired step."""
        flow = self._seed(cotangents)
        records: list[Any] = [None] * len(self.steps)
        for i, layer, inputs, output, needs, _ in self._backward_plan(wanted, ()):
            g = flow[output]
            if g is None or True not in needs:
                continue
            flow[output] = None
            bars, record = layer.data_vjp(saved[i], thetas[i], g, needs)
            if layer.paired:
                records[i] = record
            _accumulate(flow, inputs, needs, bars)
        return [flow[i] if want else None for i, want in enumerate(wanted)], records

    def tangent(
        self,
        saved: list[Any],
        thetas: list[Tensors],
        records: list[Any],
        seeds: Sequence[Any],
        wanted: Flags,
        left: Left | None,
    ) -> list[Any]:
        """Sweep 3: the tangents of the wanted outputs. Consumes the records, and adds to `left` for sweep 4, if any.

        A paired step without a record is one that no cotangent reached in sweep 2: nobody reads a tangent behind it.
        """
        flow = [*seeds, *[None] * self._n_results]
        wanted_params = left.wanted_params if left is not None else ()
        for i, layer, inputs, output, needed, wants, dead in self._tangent_plan(wanted, wanted_params):
            tangents = tuple([flow[j] for j in inputs])
            record, records[i] = records[i], None
            known = tangents[0] is not None or any(t is not None for t in tangents)
            if known and (record is not None or not layer.paired):
                if left is None or not layer.paired:
                    flow[output] = layer.jvp(saved[i], thetas[i], tangents, record) if needed else None
                else:
                    sums = left.sums.get(i) or (None,) * len(wants)
                    flow[output], pair, left.sums[i] = layer.data_jvp(
                        saved[i], thetas[i], tangents, record, needed, wants, sums
                    )
                    if pair is not None:
                        left.pairs.setdefault(i, []).append(pair)
            for value in dead:
                flow[value] = None
        return [flow[i] if want else None for i, want in zip(self.outputs, wanted, strict=True)]

    def reverse(
        self,
        saved: list[Any],
        thetas: list[Tensors],
        cotangents: Sequence[Any],
        left: Left,
    ) -> list[Any]:
        """Sweep 4: the wanted cotangents of inputs, then gradients of parameters. Consumes `saved` and `left`."""
        flow = self._seed(cotangents)
        bars: list[Any] = [None] * self.n_params
        for i, layer, inputs, output, needs, wants in self._backward_plan(left.wanted_inputs, left.wanted_params):
            zeta, flow[output] = flow[output], None
            kept, saved[i] = saved[i], None
            pairs = left.pairs.pop(i, [])
            sums = left.sums.pop(i, None) or (None,) * len(wants)
            if True not in needs and True not in wants:
                continue
            x_bars: Tensors = ()
            if zeta is not None or pairs:
                x_bars, sums = layer.reverse(kept, thetas[i], zeta, pairs, needs, wants, sums)
            _accumulate(flow, inputs, needs, x_bars)
            if wants:
                _accumulate(bars, self.steps[i].params, wants, sums)
        return [*[flow[i] if want else None for i, want in enumerate(left.wanted_inputs)], *bars]

    def reference(self, saved: list[Any], inputs: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """The outputs again in ordinary differentiable PyTorch, with the randomness of the forward that saved."""
        values, thetas = [*inputs, *[None] * self._n_results], self.thetas(params)
        for i, step in enumerate(self.steps):
            if isinstance(step, HostStep):
                values[step.output] = saved[i][0]
                continue
            arguments = tuple(values[j] for j in step.inputs)
            host = _host(step.host, values)
            values[step.output] = step.layer.reference(saved[i], arguments, thetas[i], *host)
        return [values[i] for i in self.outputs]

    def _seed(self, cotangents: Sequence[Any]) -> list[Any]:
        """One place for each value, with the cotangents of the outputs in it."""
        flow: list[Any] = [None] * (self.n_inputs + self._n_results)
        for i, g in zip(self.outputs, cotangents, strict=True):
            flow[i] = g if flow[i] is None else add(flow[i], g)
        return flow

    @cached_property
    def _n_results(self) -> int:
        """Numbers of values behind the inputs; a fusion pass leaves gaps."""
        return max([1 + step.output - self.n_inputs for step in self.steps], default=0)

    @cached_property
    def _parameter_readers(self) -> list[Callable[[Sequence[Any]], Tensors]]:
        """For each step, a function from all parameters to its own."""
        return [reader(step.params if isinstance(step, Step) else ()) for step in self.steps]

    @cached_property
    def constant_outputs(self) -> list[int]:
        """Positions of the outputs that no gradient flows through."""
        host = {step.output for step in self.steps if isinstance(step, HostStep)}
        return [position for position, value in enumerate(self.outputs) if value in host]

    @cached_property
    def _last_reads(self) -> list[list[int]]:
        """For each step, the values that nobody reads after it."""
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            last.update(dict.fromkeys([*step.reads, step.output], i))
        dead: list[list[int]] = [[] for _ in self.steps]
        for value, i in last.items():
            if value not in self.outputs:
                dead[i].append(value)
        return dead

    def _backward_plan(self, wanted_inputs: Flags, wanted_params: Flags) -> list[tuple]:
        """From last to first: step number, layer, inputs, output, which inputs and which parameters are asked for.

        An input of a layer is asked for if it leads to something wanted.
        """
        key = (wanted_inputs, wanted_params)
        if key not in self._plans:
            active = [*wanted_inputs, *[False] * self._n_results]
            plan = []
            for i, step in enumerate(self.steps):
                if isinstance(step, HostStep):
                    continue
                needs = tuple(active[j] for j in step.inputs)
                wants = tuple(wanted_params[j] for j in step.params) if wanted_params else ()
                active[step.output] = True in needs or True in wants
                plan.append((i, step.layer, step.inputs, step.output, needs, wants))
            self._plans[key] = plan[::-1]
        return self._plans[key]

    def _tangent_plan(self, wanted: Flags, wanted_params: Flags) -> list[tuple]:
        """From first to last: step number, layer, inputs, output, whether its tangent is read, parameters asked for,
        values dead after it."""
        key = ("tangent", wanted, wanted_params)
        if key not in self._plans:
            read = {i for i, want in zip(self.outputs, wanted, strict=True) if want}
            plan = []
            for i, step in reversed(list(enumerate(self.steps))):
                if isinstance(step, HostStep) or not step.inputs:  # nor does a tangent reach a parameter
                    continue
                needed = step.output in read
                if needed or step.layer.paired:
                    read.update(step.inputs)
                wants = tuple(wanted_params[j] for j in step.params) if wanted_params else ()
                plan.append((i, step.layer, step.inputs, step.output, needed, wants, self._last_reads[i]))
            self._plans[key] = plan[::-1]
        return self._plans[key]


def _host(arguments: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """Host arguments with references replaced by their values."""
    return tuple([values[a.value] if isinstance(a, Ref) else a for a in arguments])


def _accumulate(total: list[Any], places: Sequence[int], wanted: Sequence[bool], parts: Tensors) -> None:
    for place, want, part in zip(places, wanted, parts, strict=False):
        if want and part is not None:
            before = total[place]
            total[place] = part if before is None else add(before, part)


def _refuse_complex(layer: Layer, values: Tensors) -> None:
    """The maps of layers are real; autograd, to which opaque ones leave it, conjugates."""
    if not layer.opaque and any(isinstance(value, Tensor) and value.is_complex() for value in values):
        raise UnsupportedOutput(f"{layer.name} has complex values")


def _tensors(kept: Any) -> Iterator[Tensor]:
    """Those in it, and in tuples in it."""
    for value in kept:
        if isinstance(value, Tensor):
            yield value
        elif type(value) is tuple:
            yield from _tensors(value)


def _row(step: Step, arguments: Tensors, theta: Tensors, y: Any, kept: Any) -> Row:
    first = next((a for a in arguments if isinstance(a, Tensor)), None)
    like = y if isinstance(y, Tensor) else first
    return Row(
        step,
        None if first is None else tuple(first.shape),
        tuple(y.shape) if isinstance(y, Tensor) else None,
        sum(t.nbytes for t in _tensors(kept) if True not in [t is p for p in theta]),
        "cpu" if like is None else like.device.type,
    )
