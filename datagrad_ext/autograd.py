"""Two autograd Functions for a whole network, and the tape on which they meet.

    Forward(x, θ) -> y            sweep 1; its backward is sweep 4, or, under create_graph=True, the data gradient
    DataGradient(g) -> J          sweep 2; its backward is sweep 3, and leaves on the tape what it has for sweep 4

Every DataGradient takes the network's anchor as an input and returns no gradient for it. The anchor is an empty, hidden
output of Forward: the edge it makes lets autograd run Forward's backward after that of every DataGradient, whatever the
loss looks like, so sweep 4 happens once, with the loss and all penalties merged.

What is asked of a backward is read from the engine (`_wanted`), not from `needs_input_grad`, which is fixed at the
forward. What the fast path does not cover (gradients of parameter gradients, third order) takes the reference path:
`Program.reference` under ordinary autograd, with one warning naming the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .layers import Tensors, add_each, gradients
from .program import Flags, Left, Program


class ReferencePathWarning(UserWarning):
    """The result is right but slow: ordinary autograd computed it. The message names the reason."""


class UnsupportedOutput(Exception):
    """An output of the program is not a tensor: a layer's tuple left the network as it is."""


@dataclass
class Run:
    """A program on its way through autograd: the tape of one forward and the reasons already warned about."""

    program: Program
    warned: set[str]
    tape: dict[int, Left] = field(default_factory=dict)
    differentiable: dict[int, list[Tensors]] = field(default_factory=dict)

    def left(self, node: Any, arguments: Sequence[Any]) -> Left:
        """What was left for sweep 4 of the backward that is running, and of no other; `node` is the Forward."""
        task = _task()
        if task not in self.tape:
            n_inputs = self.program.n_inputs
            self.tape[task] = Left(self.program, _wanted(node.next_functions, arguments, n_inputs))
        return self.tape[task]


def apply(program: Program, inputs: Sequence[Any], params: Sequence[Any], warned: set[str]) -> list[Any]:
    """Outputs of the program at (inputs, params), connected to autograd by the two Functions."""
    run = Run(program, warned)
    return list(Forward.apply(run, len(inputs), *inputs, *params)[:-1])


def warn_once(warned: set[str], reason: str) -> None:
    """One `ReferencePathWarning` a network and reason."""
    if reason not in warned:
        warned.add(reason)
        warnings.warn(f"datagrad_ext: reference path (right, but slow): {reason}", ReferencePathWarning, stacklevel=3)


class Forward(Function):
    """y = network(x, θ): apply(run, number of inputs, *inputs, *params) -> (*outputs, anchor)."""

    @staticmethod
    def forward(ctx: Any, run: Run, n_inputs: int, *arguments: Any) -> tuple[Any, ...]:
        program = run.program
        outputs, saved = program.forward(arguments[:n_inputs], program.thetas(arguments[n_inputs:]))
        if any(isinstance(y, tuple) for y in outputs):
            raise UnsupportedOutput("its result is a layer's tuple")
        like = next(t for t in arguments if isinstance(t, Tensor) and t.is_floating_point())
        anchor = like.new_empty(0)
        ctx.run, ctx.n_inputs = run, n_inputs
        ctx.set_materialize_grads(False)
        tensors = [anchor]
        ctx.layout = _pack([arguments, *saved], tensors)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*[outputs[i] for i in run.program.constant_outputs])
        return (*outputs, anchor)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        tensors, n = ctx.saved_tensors, ctx.n_inputs
        arguments, *saved = _unpack(ctx.layout, tensors)
        inputs, params = arguments[:n], arguments[n:]
        left = ctx.run.left(ctx, arguments)
        del ctx.run.tape[_task()]
        wanted = left.wanted
        gs = cotangents[:-1]
        parts = ctx.run.differentiable.pop(_task(), [])
        if parts or _needs_reference(ctx.run, gs, torch.is_grad_enabled() and True in left.wanted_params):
            found = _differentiable_reverse(ctx.run, inputs, params, saved, gs, wanted, parts)
        elif torch.is_grad_enabled():
            job = _Job(ctx.run, inputs, params, saved, wanted[:n], ctx.layout, tensors)
            found = [*DataGradient.apply(job, tensors[0], *gs), *[None] * len(params)]
        else:
            program = ctx.run.program
            thetas = program.thetas(params)
            del tensors
            _release(ctx)
            found = program.reverse(saved, thetas, gs, left)
        zeros = (_or_zero(bar, a, want) for bar, a, want in zip(found, arguments, wanted, strict=True))
        return (None, None, *zeros)


@dataclass
class _Job:
    """What a DataGradient needs from its Forward; not arguments of apply, so that no edge leads to them."""

    run: Run
    inputs: Sequence[Any]
    params: Sequence[Any]
    saved: list[Any]
    wanted: Flags
    layout: list[Any]
    tensors: Sequence[Tensor]


class DataGradient(Function):
    """J = ∂⟨g, network(x)⟩/∂x for the wanted inputs: apply(job, anchor, *g) -> one J or None for each input."""

    @staticmethod
    def forward(ctx: Any, job: _Job, anchor: Tensor, *gs: Any) -> tuple[Any, ...]:
        program = job.run.program
        cut = [None if g is None else g.detach() for g in gs]  # a record must not hold the graph of the loss
        found, records = program.data_gradient(job.saved, program.thetas(job.params), cut, job.wanted)
        ctx.run, ctx.wanted = job.run, job.wanted
        ctx.set_materialize_grads(False)
        found = [_or_zero(J, x, want) for J, x, want in zip(found, job.inputs, job.wanted, strict=True)]
        tensors = list(job.tensors)
        ctx.layout = [*_pack([gs, tuple(records)], tensors), *job.layout]
        ctx.n_inputs = len(job.inputs)
        ctx.save_for_backward(*tensors)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *seeds: Any) -> tuple[Any, ...]:
        gs, records, arguments, *saved = _unpack(ctx.layout, ctx.saved_tensors)
        inputs, params = arguments[: ctx.n_inputs], arguments[ctx.n_inputs :]
        if _needs_reference(ctx.run, seeds, torch.is_grad_enabled()):
            bars, g_bars = _differentiable_tangent(ctx, inputs, params, saved, gs, seeds)
            ctx.run.differentiable.setdefault(_task(), []).append(bars)
            return (None, None, *g_bars)
        wanted = tuple([isinstance(g, Tensor) and g.requires_grad for g in gs])
        program = ctx.run.program
        node = ctx.next_functions[0][0]
        left = ctx.run.left(node, arguments) if _executes(node)[0] else None
        kept = list(records)
        del records
        _release(ctx)
        return (None, None, *program.tangent(saved, program.thetas(params), kept, seeds, wanted, left))


def _needs_reference(run: Run, cotangents: Sequence[Any], differentiable: bool) -> bool:
    """Whether a backward is beyond the fast path; warns once. `differentiable`: its result must have a graph."""
    if differentiable:
        reason = (
            "create_graph=True in a backward that reaches parameters or a data gradient "
            "(gradients of parameter gradients, third order)"
        )
    elif torch._C._are_functorch_transforms_active() or any(map(_is_batched, cotangents)):
        reason = "batched cotangents (is_grads_batched, or a torch.func transform over the backward)"
    else:
        return False
    warn_once(run.warned, reason)
    return True


def _is_batched(g: Any) -> bool:
    """Whether a cotangent comes from autograd.grad(is_grads_batched=True)."""
    return g is not None and torch._C._functorch.is_legacy_batchedtensor(g)


def _differentiable_reverse(
    run: Run,
    inputs: Sequence[Any],
    params: Sequence[Any],
    saved: list[Any],
    gs: Sequence[Any],
    wanted: Flags,
    parts: list[Tensors],
) -> list[Any]:
    """Sweep 4 on the reference path: differentiable gradients of inputs and parameters, plus those left by sweep 3."""
    with torch.enable_grad():
        x, theta = _aliases(inputs), _aliases(params)
        outputs = run.program.reference(saved, x, theta)
        found = gradients(zip(outputs, gs, strict=True), [*x, *theta], create_graph=True)
    for bars in parts:
        found = add_each(found, bars)
    return [bar if want else None for bar, want in zip(found, wanted, strict=True)]


def _differentiable_tangent(
    ctx: Any, inputs: Sequence[Any], params: Sequence[Any], saved: list[Any], gs: Sequence[Any], seeds: Sequence[Any]
) -> tuple[Tensors, Tensors]:
    """∂⟨v, J⟩ with respect to (inputs and parameters), and with respect to g, differentiable."""
    with torch.enable_grad():
        x, theta, g = _aliases(inputs), _aliases(params), _aliases(gs)
        outputs = ctx.run.program.reference(saved, x, theta)
        wanted = [t if want else None for t, want in zip(x, ctx.wanted, strict=True)]
        J = gradients(zip(outputs, g, strict=True), wanted, create_graph=True)
        found = gradients(zip(J, seeds, strict=True), [*x, *theta, *g], create_graph=True)
    split = len(x) + len(theta)
    return found[:split], found[split:]


def _aliases(values: Sequence[Any]) -> list[Any]:
    """New names for the same tensors, so that a gradient stops here and not at what they were computed from."""
    return [v.view_as(v) if isinstance(v, Tensor) else v for v in values]


def _or_zero(bar: Any, like: Any, wanted: bool) -> Any:
    """A wanted gradient that nothing flows to is zero, not undefined: the argument is part of the graph."""
    return torch.zeros_like(like) if wanted and bar is None else bar


def _wanted(next_functions: Sequence[Any], arguments: Sequence[Any], n_inputs: int) -> Flags:
    """Which arguments the running backward asks for.

    The engine answers for every node, but for a leaf that autograd.grad captures it answers with an exception, which
    costs more than a small operation. So after one such parameter the rest count as wanted too (more work than
    asked for, in that rare case), and the only input of a backward that asks for no parameter is not asked about.
    """
    following = iter([node for node, _ in next_functions])
    nodes = [next(following) if isinstance(a, Tensor) else None for a in arguments]
    inputs, params = nodes[:n_inputs], nodes[n_inputs:]
    flags = []
    captured = False
    for node in params:
        wanted = node is not None
        if wanted and not captured:
            wanted, captured = _executes(node)
        flags.append(wanted)
    differentiable = [node for node in inputs if node is not None]
    if len(differentiable) == 1 and not any(flags):
        return (*[node is not None for node in inputs], *flags)
    return (*[node is not None and _executes(node)[0] for node in inputs], *flags)


def _executes(node: Any) -> tuple[bool, bool]:
    """Whether the running backward will execute the node, and whether it is a leaf that autograd.grad captures."""
    try:
        return torch._C._will_engine_execute_node(node), False
    except RuntimeError:
        return True, True


def _task() -> int:
    """The number of the running backward."""
    return torch._C._current_graph_task_id()


def _release(ctx: Any) -> None:
    """Let go of what the node keeps, unless the graph is retained, so that memory goes as the sweep passes."""
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        ctx.maybe_clear_saved_tensors()
        ctx.layout = None


class _Place(int):
    """Where a tensor of a group stands among the saved tensors."""


def _pack(groups: Sequence[tuple[Any, ...]], tensors: list[Tensor]) -> list[Any]:
    """The groups with every tensor moved to the end of `tensors`; what is left is what `_unpack` reads."""
    places: dict[int, _Place] = {}
    layout: list[Any] = []
    for group in groups:
        packed = []
        for item in group:
            if isinstance(item, Tensor):
                place = places.get(id(item))
                if place is None:
                    place = places[id(item)] = _Place(len(tensors))
                    tensors.append(item)
                item = place
            packed.append(item)
        layout.append(packed[0] if len(packed) == 1 and type(packed[0]) is _Place else tuple(packed))
    return layout


def _unpack(layout: Sequence[Any], tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """The groups as they were packed. A group of one tensor, the most frequent, is only its place."""
    return [
        (tensors[group],)
        if type(group) is _Place
        else tuple([tensors[item] if type(item) is _Place else item for item in group])
        for group in layout
    ]
