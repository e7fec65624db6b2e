"""Two autograd Functions for a whole network, and the tape on which they meet.

    Forward(x, θ) -> y            sweep 1; its backward is sweep 4, or, under create_graph=True, the data gradient
    DataGradient(g) -> J          sweep 2; its backward is sweep 3, and leaves on the tape what it has for sweep 4

Every DataGradient takes the network's anchor as an input and returns no gradient for it. The anchor is an empty, hidden
output of Forward: the edge it makes lets autograd run Forward's backward after that of every DataGradient, whatever the
loss looks like, so sweep 4 happens once, with the loss and all penalties merged.

What is asked of a backward is read from the engine (`asked_for`), not from `needs_input_grad`, which is fixed at the
forward. What the fast path does not cover (gradients of parameter gradients, third order) takes the reference path:
`Program.reference` under ordinary autograd, with one warning naming the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._native import packed, unpacked
from .layers import Tensors, UnsupportedOutput
from .program import Flags, Left, Program
from .reference import Reference, keep_out_of_compiled_code, own_dtypes
from .single import Single

_task = torch._C._current_graph_task_id  # the number of the running backward
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph  # whether it retains the graph
_executes = torch._C._will_engine_execute_node  # whether it runs a node; raises for a leaf that it captures


class Visit:
    """What the passes of one backward share: what the Forward saved, unpacked once, and what they leave for sweep 4.

    `parts` are gradients of inputs and parameters left by the reference path.
    """

    __slots__ = ("anchor", "inputs", "left", "params", "parts", "saved", "thetas")

    def __init__(self, node: Any) -> None:
        program, tensors = node.run.program, node.saved_tensors
        first = 1 + program.n_inputs
        self.anchor: Tensor | None = tensors[0]
        self.inputs: tuple[Tensor, ...] = tensors[1:first]
        self.params: tuple[Tensor, ...] = tensors[first : first + program.n_params]
        self.thetas = program.thetas(self.params)
        self.saved = unpacked(node.layout, tensors)
        self.left: Left | None = None
        self.parts: list[Tensors] = []


class Run(Reference):
    """A program on its way through autograd: the tape of one forward."""

    __slots__ = ("nodes", "tape")

    def __init__(self, program: Program, warned: set[str]) -> None:
        super().__init__(program, warned)
        self.tape: dict[int, Visit] = {}
        self.nodes: list[Any] | None = None

    def begin(self, node: Any) -> Visit:
        """A visit of the backward that is running; `node` is the Forward, which it will reach."""
        visit = Visit(node)
        if self.nodes is None:
            self.nodes = [following for following, _ in node.next_functions]
        n_inputs = self.program.n_inputs
        visit.left = Left(n_inputs, asked_for(self.nodes, n_inputs))
        return visit

    def meet(self, node: Any) -> Visit:
        """The visit of the backward that is running, and of no other, on the tape for the Forward if it is reached."""
        task = _task()
        visit = self.tape.get(task)
        if visit is None:
            if not _reaches(node):
                return Visit(node)
            visit = self.tape[task] = self.begin(node)
            visit.anchor = None  # it would keep the Forward alive if this backward fails
        return visit


def apply(program: Program, inputs: Sequence[Any], params: Sequence[Any], warned: set[str]) -> list[Any]:
    """Outputs of the program at (inputs, params), connected to autograd by the two Functions, or by nodes in C++."""
    y = program.by_nodes(inputs[0], params, warned) if isinstance(program, Single) else None
    if y is not None:
        return [y]
    return list(Forward.apply(Run(program, warned), *inputs, *params)[:-1])


class Node(Function):
    """A Function over sweeps: autocast is off in it, and torch.compile stays out of its backward.

    `apply` goes without torch's look for wrappers that an ended torch.func transform left: `network.refusal` looks.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.forward, cls.backward = (staticmethod(own_dtypes(f)) for f in (cls.forward, cls.backward))  # type: ignore[method-assign]
        cls.apply = super(Function, cls).apply  # type: ignore[method-assign,misc]
        keep_out_of_compiled_code(cls.backward)


class Forward(Node):
    """y = network(x, θ): apply(run, *inputs, *params) -> (*outputs, anchor)."""

    @staticmethod
    def forward(ctx: Any, run: Run, *arguments: Tensor) -> tuple[Any, ...]:
        program, n_inputs = run.program, run.program.n_inputs
        outputs, saved = program.forward(arguments[:n_inputs], program.thetas(arguments[n_inputs:]))
        if tuple in map(type, outputs):
            raise UnsupportedOutput("its result is a layer's tuple")
        if len(outputs) == 1 and outputs[0]._is_view():
            outputs = [_changeable(outputs[0], arguments)]
        anchor = next(filter(Tensor.is_floating_point, arguments)).new_empty(0)
        tensors = [anchor, *arguments]
        ctx.run, ctx.layout = run, packed(saved, tensors, Tensor)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if program.constant_outputs:
            ctx.mark_non_differentiable(*[outputs[i] for i in program.constant_outputs])
        return (*outputs, anchor)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        run, gs, differentiable = ctx.run, cotangents[:-1], torch.is_grad_enabled()
        visit = run.tape.pop(_task(), None) or run.begin(ctx)
        left = visit.left
        if visit.parts or run.needed(gs, differentiable and True in left.wanted_params):
            found = run.reverse(visit.inputs, visit.params, visit.saved, visit.parts, left.wanted, gs)
        elif differentiable:
            return (None, *DataGradient.apply(ctx, visit, visit.anchor, *gs), *[None] * len(visit.params))
        else:
            release(ctx)
            found = run.program.reverse(visit.saved, visit.thetas, gs, left)
        return (None, *filled(found, (*visit.inputs, *visit.params), left.wanted))


def _changeable(y: Tensor, arguments: Sequence[Tensor]) -> Tensor:
    """A view as memory of its own, which the user may change in place; a view of an argument stays one."""
    base = y._base
    return y if True in [base is t or base is t._base for t in arguments] else y.clone()


class DataGradient(Node):
    """J = ∂⟨g, network(x)⟩/∂x for the wanted inputs: apply(forward, visit, anchor, *g) -> one J or None for each input.

    What the layers saved stays with the Forward, whose sweep 4 comes after: only g and the records are saved here.
    """

    @staticmethod
    def forward(ctx: Any, forward: Any, visit: Visit, anchor: Tensor, *gs: Any) -> tuple[Any, ...]:
        wanted = visit.left.wanted_inputs  # type: ignore[union-attr]
        cut = [None if g is None else g.detach() for g in gs]  # a record must not hold the graph of the loss
        found, records = forward.run.program.data_gradient(visit.saved, visit.thetas, cut, wanted)
        tensors = list(gs)
        ctx.forward_node, ctx.wanted, ctx.layout = forward, wanted, packed([records], tensors, Tensor)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(filled(found, visit.inputs, wanted))

    @staticmethod
    def backward(ctx: Any, *seeds: Any) -> tuple[Any, ...]:
        run, tensors = ctx.forward_node.run, ctx.saved_tensors
        gs = tensors[: len(run.program.outputs)]
        visit = run.meet(ctx.forward_node)
        if run.needed(seeds, torch.is_grad_enabled()):
            bars, g_bars = run.tangent(visit.inputs, visit.params, visit.saved, ctx.wanted, gs, seeds)
            visit.parts.append(bars)
            return (None, None, None, *g_bars)
        wanted = tuple([g is not None and g.requires_grad for g in gs])
        kept = list(unpacked(ctx.layout, tensors)[0])
        del tensors
        release(ctx)
        return (None, None, None, *run.program.tangent(visit.saved, visit.thetas, kept, seeds, wanted, visit.left))


def filled(bars: Sequence[Any], like: Sequence[Any], wanted: Flags) -> list[Any]:
    """The gradients; a wanted one that nothing flows to is zero, not undefined: its argument is part of the graph."""
    return [
        torch.zeros_like(t) if bar is None and want else bar for bar, t, want in zip(bars, like, wanted, strict=True)
    ]


def asked_for(nodes: Sequence[Any], n_inputs: int) -> Flags:
    """Which arguments the running backward asks for, by the nodes that their gradients go to.

    The engine answers for every node, but for a leaf that autograd.grad captures it answers with an exception, which
    costs more than a small operation. So after one such parameter the rest count as wanted too (more work than
    asked for, in that rare case), and the only input of a backward that asks for no parameter is not asked about.
    """
    params = nodes[n_inputs:]
    flags: list[bool] = []
    try:
        flags.extend(map(_executes, params) if None not in params else map(_is_executed, params))
    except RuntimeError:  # the answers before the exception are in the list
        flags += [node is not None for node in params[len(flags) :]]
    inputs = [node is not None for node in nodes[:n_inputs]]
    if True in flags or sum(inputs) > 1:
        inputs = [node is not None and _reaches(node) for node in nodes[:n_inputs]]
    return (*inputs, *flags)


def _is_executed(node: Any) -> bool:
    return node is not None and _executes(node)


def _reaches(node: Any) -> bool:
    """Whether the running backward will execute the node, or capture the gradient that goes to it."""
    try:
        return _executes(node)
    except RuntimeError:  # a leaf that autograd.grad captures
        return True


def release(ctx: Any) -> bool:
    """Let go of what the node keeps, unless the graph is retained, so that memory goes as the sweep passes."""
    if _keeps_graph():
        return False
    ctx.maybe_clear_saved_tensors()
    ctx.layout = None
    return True
