"""A traced network: steps in order, and the four sweeps over them.

Values are numbered: first the inputs, then one for each step. A `Step` applies a layer; a `HostStep` computes something
that no gradient flows through (a size, a constant, a mask). With L the loss, J = ∂L/∂x and v = ∂R/∂J:

    forward         h = f(x)                                   sweep 1, keeps what each layer saves
    data_gradient   δ from ∂L/∂y down to J                     sweep 2, keeps δ at layers that are paired
    tangent         t from v up                                sweep 3, keeps t at layers that are paired
    reverse         ζ down, curvature(t, δ), all parameter gradients from the pairs (ζ, h), (δ, t)     sweep 4

None is zero in every sweep, and nothing is computed from zero: without a ζ, sweep 4 of a piecewise-linear network is
its parameter gradients and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from .layers import Layer, Tensors, add

Flags = tuple[bool, ...]


@dataclass(frozen=True)
class Ref:
    """A host value used as an argument: the value of that number."""

    value: int


@dataclass(frozen=True)
class Step:
    """value[output] = layer(values[inputs], params[params], host); a parameter index of None stands for no parameter."""

    layer: Layer
    inputs: tuple[int, ...]
    output: int
    params: tuple[int | None, ...] = ()
    host: tuple[Any, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class HostStep:
    """value[output] = call(values), outside of every gradient; `inputs` are the values it reads."""

    call: Callable[[list[Any]], Any]
    inputs: tuple[int, ...]
    output: int
    name: str = ""


@dataclass(frozen=True)
class Row:
    """What one step did at its first run: for the table that `datagrad_ext.program` prints."""

    step: Step
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    saved_bytes: int
    device: str


@dataclass
class Entry:
    """What one data gradient leaves for sweep 4: at each step its record (δ) and its tangents."""

    records: list[Any]
    tangents: list[Any]


@dataclass(frozen=True)
class Program:
    """Steps over numbered values; `outputs` are the values returned."""

    n_inputs: int
    n_params: int
    steps: tuple[Step | HostStep, ...]
    outputs: tuple[int, ...]
    rows: list[Row] = field(default_factory=list, compare=False)
    _plans: dict[Any, Any] = field(default_factory=dict, compare=False)

    def forward(self, inputs: Sequence[Any], params: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Sweep 1: the outputs, and what each step saved."""
        describe = not self.rows
        values = [*inputs, *[None] * len(self.steps)]
        saved: list[Any] = []
        for step, dead in zip(self.steps, self._last_reads, strict=True):
            if isinstance(step, HostStep):
                y = step.call(values)
                saved.append((y,))
            else:
                arguments = [values[i] for i in step.inputs]
                y, kept = step.layer.forward(tuple(arguments), _pick(params, step.params), *_host(step.host, values))
                saved.append(kept)
                if describe:
                    self.rows.append(_row(step, arguments, y, kept))
            values[step.output] = y
            for value in dead:
                values[value] = None
        return [values[i] for i in self.outputs], saved

    def data_gradient(
        self, saved: list[Any], params: Sequence[Any], cotangents: Sequence[Any], wanted: Flags
    ) -> tuple[list[Any], list[Any]]:
        """Sweep 2: the gradient with respect to each wanted input, and the record of each paired step."""
        flow = self._seed(cotangents)
        records: list[Any] = [None] * len(self.steps)
        for i, step, needs in self._backward_plan(wanted, ()):
            g, flow[step.output] = flow[step.output], None
            if g is None or not any(needs):
                continue
            bars, record = step.layer.data_vjp(saved[i], _pick(params, step.params), g, needs)
            if step.layer.paired:
                records[i] = record
            _accumulate(flow, step.inputs, needs, bars)
        return [flow[i] if want else None for i, want in enumerate(wanted)], records

    def tangent(
        self, saved: list[Any], params: Sequence[Any], records: list[Any], seeds: Sequence[Any], wanted: Flags
    ) -> tuple[list[Any], list[Any]]:
        """Sweep 3: the tangents of the wanted outputs, and the tangents that each paired step received."""
        flow = [*seeds, *[None] * len(self.steps)]
        kept: list[Any] = [None] * len(self.steps)
        for i, step, needed, dead in self._tangent_plan(wanted):
            tangents = tuple([flow[j] for j in step.inputs])
            if any(t is not None for t in tangents):
                if step.layer.paired:
                    kept[i] = tangents
                if needed:
                    flow[step.output] = step.layer.jvp(saved[i], _pick(params, step.params), tangents, records[i])
            for value in dead:
                flow[value] = None
        return [flow[i] if want else None for i, want in zip(self.outputs, wanted, strict=True)], kept

    def reverse(
        self,
        saved: list[Any],
        params: Sequence[Any],
        cotangents: Sequence[Any],
        entries: Sequence[Entry],
        wanted_inputs: Flags,
        wanted_params: Flags,
    ) -> tuple[list[Any], list[Any]]:
        """Sweep 4: cotangents of the inputs and gradients of the parameters. Consumes the entries."""
        flow = self._seed(cotangents)
        theta: list[Any] = [None] * self.n_params
        for i, step, needs in self._backward_plan(wanted_inputs, wanted_params):
            zeta, flow[step.output] = flow[step.output], None
            pairs = [pair for entry in entries if (pair := _take(entry, i)) is not None]
            wants = tuple([j is not None and wanted_params[j] for j in step.params])
            if (zeta is None and not pairs) or not (any(needs) or any(wants)):
                continue
            x_bars, theta_bars = step.layer.reverse(
                saved[i], _pick(params, step.params), zeta, pairs, needs, wants
            )
            _accumulate(flow, step.inputs, needs, x_bars)
            _accumulate(theta, step.params, wants, theta_bars)
        return [flow[i] if want else None for i, want in enumerate(wanted_inputs)], theta

    def reference(self, saved: list[Any], inputs: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """The outputs again in ordinary differentiable PyTorch, with the randomness of the forward that saved."""
        values = [*inputs, *[None] * len(self.steps)]
        for i, step in enumerate(self.steps):
            if isinstance(step, HostStep):
                values[step.output] = saved[i][0]
                continue
            arguments = tuple(values[j] for j in step.inputs)
            host = _host(step.host, values)
            values[step.output] = step.layer.reference(saved[i], arguments, _pick(params, step.params), *host)
        return [values[i] for i in self.outputs]

    def _seed(self, cotangents: Sequence[Any]) -> list[Any]:
        """One place for each value, with the cotangents of the outputs in it."""
        flow: list[Any] = [None] * (self.n_inputs + len(self.steps))
        for i, g in zip(self.outputs, cotangents, strict=True):
            flow[i] = add(flow[i], g)
        return flow

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
            reads = [*step.inputs, step.output]
            if isinstance(step, Step):
                reads += [a.value for a in step.host if isinstance(a, Ref)]
            last.update(dict.fromkeys(reads, i))
        dead: list[list[int]] = [[] for _ in self.steps]
        for value, i in last.items():
            if value not in self.outputs:
                dead[i].append(value)
        return dead

    def _backward_plan(self, wanted_inputs: Flags, wanted_params: Flags) -> list[tuple[int, Step, Flags]]:
        """Steps from last to first, with the inputs of each that lead to something wanted."""
        key = (wanted_inputs, wanted_params)
        if key not in self._plans:
            active = list(wanted_inputs) + [False] * len(self.steps)
            plan = []
            for i, step in enumerate(self.steps):
                if isinstance(step, HostStep):
                    continue
                needs = tuple(active[j] for j in step.inputs)
                has_param = bool(wanted_params) and any(j is not None and wanted_params[j] for j in step.params)
                active[step.output] = any(needs) or has_param
                plan.append((i, step, needs))
            self._plans[key] = plan[::-1]
        return self._plans[key]

    def _tangent_plan(self, wanted: Flags) -> list[tuple[int, Step, bool, list[int]]]:
        """Steps from first to last, whether each one's tangent is read by anybody, and the values dead after it."""
        if wanted not in self._plans:
            read = {i for i, want in zip(self.outputs, wanted, strict=True) if want}
            plan = []
            for i, step in reversed(list(enumerate(self.steps))):
                if isinstance(step, HostStep):
                    continue
                needed = step.output in read
                if needed or step.layer.paired:
                    read.update(step.inputs)
                plan.append((i, step, needed, self._last_reads[i]))
            self._plans[wanted] = plan[::-1]
        return self._plans[wanted]


def move_biases(program: Program) -> Program:
    """Let an activation add the bias of the layer before it, so that bias, gate and bias gradient are one pass.

    For every layer with a `bias_dim` and a bias whose value goes to one activation without a bias, and nowhere else.
    """
    steps = list(program.steps)
    readers: dict[int, list[int]] = {value: [-1] for value in program.outputs}
    for i, step in enumerate(steps):
        for value in step.inputs:
            readers.setdefault(value, []).append(i)
    for i, step in enumerate(steps):
        if not isinstance(step, Step) or not hasattr(step.layer, "bias_dim"):
            continue
        after = readers.get(step.output, [])
        if len(step.params) < 2 or step.params[1] is None or len(after) != 1 or after[0] < 0:
            continue
        following = steps[after[0]]
        if isinstance(following, Step) and hasattr(following.layer, "with_bias") and not following.params:
            layer = following.layer.with_bias(step.layer.bias_dim)
            steps[after[0]] = replace(following, layer=layer, params=step.params[1:])
            steps[i] = replace(step, params=(step.params[0], None))
    return replace(program, steps=tuple(steps), rows=[], _plans={})


def _pick(params: Sequence[Any], places: tuple[int | None, ...]) -> Tensors:
    return tuple([None if i is None else params[i] for i in places])


def _host(arguments: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """Host arguments with references replaced by their values."""
    if not arguments:
        return ()
    return tuple(values[a.value] if isinstance(a, Ref) else a for a in arguments)


def _take(entry: Entry, i: int) -> tuple[Any, Tensors] | None:
    """The pair of step i, removed from the entry so that its memory goes as sweep 4 passes."""
    record, entry.records[i] = entry.records[i], None
    tangents, entry.tangents[i] = entry.tangents[i], None
    return None if record is None or tangents is None else (record, tangents)


def _accumulate(total: list[Any], places: Sequence[int | None], wanted: Sequence[bool], parts: Tensors) -> None:
    for place, want, part in zip(places, wanted, parts, strict=False):
        if want and part is not None and place is not None:
            total[place] = add(total[place], part)


def _row(step: Step, arguments: list[Any], y: Any, kept: Any) -> Row:
    tensors = [t for t in kept if isinstance(t, Tensor)]
    first = next((a for a in arguments if isinstance(a, Tensor)), None)
    like = y if isinstance(y, Tensor) else first
    return Row(
        step,
        None if first is None else tuple(first.shape),
        tuple(y.shape) if isinstance(y, Tensor) else None,
        sum(t.numel() * t.element_size() for t in tensors),
        "cpu" if like is None else like.device.type,
    )
