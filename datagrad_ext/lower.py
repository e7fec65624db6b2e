"""torch.fx graph -> program: every node becomes a layer, a host value, or a parameter.

value      depends on an input                       -> a Step (a layer by rule, or an opaque layer)
host       sizes, constants, buffers, masks          -> a HostStep, computed outside of every gradient
parameter  depends on parameters and nothing else    -> computed before Forward, under ordinary autograd
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .fusion import as_image_chain, fuse, widen_chains
from .layers import (
    Application,
    Layer,
    Opaque,
    OpaqueModule,
    ParameterValue,
    rule_of_module,
    rules_of_function,
    rules_of_method,
)
from .layers.image_chain import ImageChain
from .precision import Entry, Precision, entering, insert_casts
from .program import HostStep, Program, Ref, Row, Step
from .trace import Untraceable, changes_in_place

_DATA = ("shape", "ndim", "dtype", "device", "is_cuda", "layout", "itemsize")
_SHAPE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "element_size"}
_CONSTANT_METHODS = {
    "detach", "argmax", "argmin", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "sign",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "bool", "long", "int", "get_device",
}  # fmt: skip
_READING_METHODS = {"item", "tolist"}  # what they return has no gradient, a parameter's elements neither
_CONSTANT_FUNCTIONS = {
    torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.empty_like, torch.full_like,
    torch.argmax, torch.argmin, torch.isnan, torch.isinf, torch.isfinite, torch.sign,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
}  # fmt: skip


Fetch = tuple[dict[str, Any], str] | Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Value:
    """A node that depends on an input: value number `index`."""

    index: int


@dataclass(frozen=True)
class Host:
    """A node that no gradient flows through: value number `index`."""

    index: int


@dataclass(frozen=True)
class Parameter:
    """A node computed from parameters alone: slot number `index`."""

    index: int


Kinds = (Value, Host, Parameter)


@dataclass
class Lowered:
    """A program and how to call it: `fetches` give its parameters, `structure` is the forward's result, or its leaves.

    A fetch is a table and the parameter's name in it, or a function of the slots before. Under autocast `entries` say
    which slots enter the program, and in which dtype.
    """

    program: Program
    fetches: list[Fetch]
    structure: Any
    outputs: list[Parameter | Value | Host]
    used: list[int]
    """The slots that the program's steps read, in order: what its parameters are made of."""
    entries: list[Entry] | None = None
    spec: pytree.TreeSpec | None = None
    """What the leaves in `structure` are put into."""
    image_chain: tuple[ImageChain, Program] | None = None
    """A step, and the same as a program of this step alone, for the inputs that it covers."""

    @cached_property
    def is_one_value(self) -> bool:
        """Whether the forward's result is one tensor that depends on an input."""
        program = self.program
        return isinstance(self.structure, Value) and len(program.outputs) == 1 and not program.constant_outputs

    @cached_property
    def _tables(self) -> list[tuple[dict[str, Any], str]] | None:
        """The fetches if every slot is a parameter as it is."""
        return None if any(map(callable, self.fetches)) else self.fetches  # type: ignore[return-value]

    @property
    def rows(self) -> list[Row]:
        """What the first run was."""
        return self.program.rows or ([] if self.image_chain is None else self.image_chain[1].rows)

    def program_of(self, inputs: Sequence[Any], params: Sequence[Tensor]) -> Program:
        """What runs a call, from its forward to its last sweep."""
        if self.image_chain is None:
            return self.program
        layer, chain = self.image_chain
        return chain if layer.covers(inputs[0], lambda: params) else self.program

    def parameters(self, slots: list[Tensor]) -> list[Tensor]:
        """What enters the program as θ, under ordinary autograd."""
        used = slots if len(self.used) == len(slots) else [slots[i] for i in self.used]
        return used if self.entries is None else entering(self.entries, used)

    def slots(self) -> list[Tensor]:
        """Parameters, and what is computed from parameters alone, under ordinary autograd."""
        if self._tables is not None:
            return [table[name] for table, name in self._tables]
        slots: list[Tensor] = []
        for fetch in self.fetches:
            slots.append(fetch(slots) if callable(fetch) else fetch[0][fetch[1]])
        return slots


def lower(
    root: nn.Module, graph: fx.Graph, leaves: dict[nn.Module, str], precision: Precision | None = None
) -> Lowered:
    """The program of a traced forward; `leaves` are modules that did not trace, with the reason."""
    return _Lowering(root, graph, leaves, precision).run()


class _Lowering:
    """One pass over the nodes of a graph."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, leaves: dict[nn.Module, str], precision: Precision | None
    ) -> None:
        self._root, self._graph, self._leaves, self._precision = root, graph, leaves, precision
        self._context: Any = nullcontext if precision is None else precision.context
        self._kinds: dict[fx.Node, Value | Host | Parameter] = {}
        self._steps: list[Step | HostStep] = []
        self._fetches: list[Fetch] = []
        self._slots: dict[tuple[int, str], int] = {}
        self._values: dict[Parameter, Value] = {}
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._foreign: set[int] = set(range(len(self._placeholders)))  # values whose memory is not the program's own
        self._changes: dict[int, int] = {}  # result of a change in place -> the value that was changed
        self._sharing: dict[int, set[int]] = {}  # value -> the values that may share its memory
        self._order = {node: i for i, node in enumerate(graph.nodes)}

    def run(self) -> Lowered:
        for i, node in enumerate(self._placeholders):
            self._kinds[node] = Value(i)
        handlers = {
            "get_attr": self._get_attr,
            "call_module": self._call_module,
            "call_function": self._call,
            "call_method": self._call,
        }
        for node in self._graph.nodes:
            if node.op in handlers and not self._is_unread_buffer(node):
                with _blame(node):
                    target = self._in_place_target(node)
                    self._kinds[node] = handlers[node.op](node)
                if target is not None:
                    self._changes[self._kinds[node].index] = self._kinds[target].index
                    self._kinds[target] = self._kinds[node]  # later readers read what it was changed to
        result = next(node for node in self._graph.nodes if node.op == "output").args[0]
        return self._finish(result)

    def _finish(self, result: Any) -> Lowered:
        outputs: list[Any] = []

        def note(node: fx.Node) -> Any:
            kind = self._kinds[node]
            if kind not in outputs:
                outputs.append(kind)
            return kind

        structure = fx.node.map_arg(result, note)
        values = tuple(kind.index for kind in outputs if not isinstance(kind, Parameter))
        used = sorted({slot for step in self._steps if isinstance(step, Step) for slot in step.params})
        places = {slot: place for place, slot in enumerate(used)}
        steps = [_with_params(step, places) for step in self._steps]
        program = Program(len(self._placeholders), len(used), tuple(steps), values)
        if self._precision is None:
            chain = as_image_chain(program)
            return Lowered(fuse(program), self._fetches, structure, outputs, used, image_chain=chain)
        program, entries = insert_casts(program, self._precision, self._changes)
        shapes = [_shape_of(self._fetches[slot]) for slot in used]
        program, entries = widen_chains(fuse(program), entries, shapes, self._precision)
        return Lowered(program, self._fetches, structure, outputs, used, entries)

    # nodes

    def _is_unread_buffer(self, node: fx.Node) -> bool:
        """Whether the node names a buffer that nothing reads: code that asks whether there is one leaves such nodes."""
        if node.op != "get_attr" or node.users:
            return False
        path, _, name = str(node.target).rpartition(".")
        return name in self._root.get_submodule(path)._buffers

    def _get_attr(self, node: fx.Node) -> Host | Parameter:
        path, _, name = str(node.target).rpartition(".")
        owner = self._root.get_submodule(path)
        found = getattr(owner, name)
        if (isinstance(found, Tensor) and found.requires_grad) or isinstance(found, nn.Parameter):
            return self._slot(owner, name)
        table = owner._buffers if name in owner._buffers else owner.__dict__
        return self._host(lambda values: table[name], (), str(node.target))

    def _call_module(self, node: fx.Node) -> Value | Host | Parameter:
        module = self._root.get_submodule(str(node.target))
        kinds = [self._kinds[n] for n in node.all_input_nodes]
        if all(isinstance(kind, Parameter) for kind in kinds):
            return self._computed_parameter(node, module)
        single = len(node.args) == len(kinds) == 1 and not node.kwargs and not isinstance(kinds[0], Parameter)
        if isinstance(module, nn.Identity) and module not in self._leaves and single:
            return kinds[0]
        rule = rule_of_module(module)
        if rule is not None and module not in self._leaves and single:
            application = rule.build(module)
            if isinstance(application, Application) and self._covers(application.layer):
                params = tuple(self._optional_slot(module, name) for name in application.params)
                return self._step(application, tuple(kinds), params, node)
        if not any(isinstance(kind, Value) for kind in kinds):
            raise Untraceable(f"{node.target} is called with values that do not depend on the input")
        return self._opaque_module(module, node)

    def _call(self, node: fx.Node) -> Value | Host | Parameter:
        kinds = [self._kinds[n] for n in node.all_input_nodes]
        if self._is_host(node, kinds):
            return self._host_call(node)
        if all(isinstance(kind, Parameter) for kind in kinds):
            return self._computed_parameter(node, None)
        rules = rules_of_method(str(node.target)) if node.op == "call_method" else rules_of_function(node.target)
        for rule in rules:
            value = self._by_rule(rule, node)
            if value is not None:
                return value
        if node.target is getattr:
            raise Untraceable(f"it reads the attribute {node.args[1]!r} of a tensor")
        return self._opaque_call(node)

    def _by_rule(self, rule: Callable, node: fx.Node) -> Value | None:
        """The step of a call, if the rule covers it. A parameter where the layer takes a value becomes one."""
        try:
            application = rule(*node.args, **node.kwargs)
        except TypeError:  # arguments that the rule does not know
            return None
        if application is None or not self._covers(application.layer):
            return None
        inputs = [self._kinds[a] if isinstance(a, fx.Node) else None for a in application.inputs]
        params = [self._kinds[a] if isinstance(a, fx.Node) else a for a in application.params]
        named = _nodes((application.inputs, application.params, application.host))
        covered = (
            None not in inputs
            and all(kind is None or isinstance(kind, Parameter) for kind in params)
            and all(isinstance(self._kinds[n], Host) for n in _nodes(application.host))
            and set(node.all_input_nodes) <= set(named)
        )
        if not covered:
            return None
        values = tuple(self._lifted(kind) if isinstance(kind, Parameter) else kind for kind in inputs)
        return self._step(application, values, tuple(params), node)

    def _covers(self, layer: Layer) -> bool:
        """Whether the layer says what autocast, if it is on, does to it."""
        return self._precision is None or layer.autocast_on(self._precision.device) is not None

    # what nodes become

    def _step(self, application: Application, inputs: Any, params: Any, node: fx.Node) -> Value:
        layer = application.layer
        host = tuple(map(self._host_argument, application.host))
        if layer.aliases:
            self._share([self._next, *[kind.index for kind in inputs]])
        step = Step(
            layer,
            tuple(kind.index for kind in inputs),
            self._next,
            tuple(kind.index for kind in params if kind is not None),
            host,
            _title(node),
        )
        self._steps.append(step)
        return Value(step.output)

    def _lifted(self, kind: Parameter) -> Value:
        """A parameter as a value."""
        if kind not in self._values:
            self._values[kind] = Value(self._next)
            self._foreign.add(self._next)
            self._steps.append(Step(ParameterValue(), (), self._next, (kind.index,), name="parameter"))
        return self._values[kind]

    def _host_argument(self, argument: Any) -> Any:
        """A plain value, or the place of a host value; what has host values in it is put together by a step."""
        if isinstance(argument, fx.Node):
            return Ref(self._kinds[argument].index)
        places = {n: self._kinds[n].index for n in _nodes(argument)}
        if not places:
            return argument

        def gather(values: list[Any]) -> Any:
            return fx.node.map_arg(argument, lambda n: values[places[n]])

        return Ref(self._host(gather, tuple(places.values()), "arguments").index)

    def _host(self, call: Callable[[list[Any]], Any], inputs: tuple[int, ...], name: str) -> Host:
        step = HostStep(call, inputs, self._next, name)
        self._steps.append(step)
        return Host(step.output)

    def _host_call(self, node: fx.Node) -> Host:
        run = _caller(node)
        nodes = node.all_input_nodes
        kinds = [self._kinds[n] for n in nodes]
        values_of = [self._lifted(kind) if isinstance(kind, Parameter) else kind for kind in kinds]
        places = {n: kind.index for n, kind in zip(nodes, values_of, strict=True)}
        context = self._context

        def call(values: list[Any]) -> Any:
            with context():
                return run(lambda n: values[places[n]])

        host = self._host(call, tuple(places.values()), _title(node))
        if node.target == "detach":
            self._share([host.index, *places.values()])
        return host

    def _computed_parameter(self, node: fx.Node, module: nn.Module | None) -> Parameter:
        run = _caller(node, module)
        places = {n: self._kinds[n].index for n in node.all_input_nodes}
        self._fetches.append(lambda slots: run(lambda n: slots[places[n]]))
        return Parameter(len(self._fetches) - 1)

    def _opaque_call(self, node: fx.Node) -> Value:
        run = _caller(node)
        tensors, params, hosts = self._arguments(node)

        def call(inputs: tuple, theta: tuple, host: tuple) -> Any:
            found = dict(zip(tensors, inputs, strict=True)) | dict(zip(params, theta, strict=True))
            found |= dict(zip(hosts, host, strict=True))
            return run(found.__getitem__)

        layer = Opaque(call, _title(node), "no rule for this call", changes_in_place(node), self._context)
        layer.attends = node.target is F.scaled_dot_product_attention
        return self._opaque(layer, node, tensors, tuple(self._kinds[n] for n in params), hosts)

    def _opaque_module(self, module: nn.Module, node: fx.Node) -> Value:
        tensors, params, hosts = self._arguments(node)
        if params:
            raise Untraceable(f"{node.target} is called with a parameter")

        def template(inputs: tuple, host: tuple) -> tuple[tuple, dict]:
            found = dict(zip(tensors, inputs, strict=True)) | dict(zip(hosts, host, strict=True))
            return fx.node.map_arg(node.args, found.__getitem__), fx.node.map_arg(node.kwargs, found.__getitem__)

        has_rule = rule_of_module(module) is not None and self._precision is not None
        why = self._leaves.get(module, f"no rule for this module{' under autocast' if has_rule else ''}")
        if module is self._root:
            raise Untraceable(why)  # its forward is the one that asks
        if any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
            raise Untraceable(f"the parameters of {node.target} are in torch.jit's hands")
        layer = OpaqueModule(module, template, why, self._context)
        slots = []
        for name in layer.names:
            path, _, leaf = name.rpartition(".")
            slots.append(self._slot(module.get_submodule(path), leaf))
        return self._opaque(layer, node, tensors, tuple(slots), hosts)

    def _opaque(self, layer: Opaque, node: fx.Node, tensors: list, params: tuple, hosts: list) -> Value:
        application = Application(layer, host=tuple(hosts))
        return self._step(application, tuple(self._kinds[n] for n in tensors), params, node)

    def _arguments(self, node: fx.Node) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
        """The nodes that a call reads: values, parameters, host values."""
        by_kind: dict[type, list[fx.Node]] = {Value: [], Parameter: [], Host: []}
        for n in node.all_input_nodes:
            by_kind[type(self._kinds[n])].append(n)
        return by_kind[Value], by_kind[Parameter], by_kind[Host]

    def _is_host(self, node: fx.Node, kinds: list[Any]) -> bool:
        """Whether no gradient flows through the call."""
        if all(isinstance(kind, Host) for kind in kinds) or _reads_shape(node):
            return True
        if node.op == "call_method" and node.target in _READING_METHODS:
            return True
        if any(isinstance(kind, Parameter) for kind in kinds):
            return False
        if node.op == "call_method":
            return node.target in _CONSTANT_METHODS
        return node.target in _CONSTANT_FUNCTIONS

    # parameters

    def _slot(self, owner: nn.Module, name: str) -> Parameter:
        """The slot of a parameter. A parametrised one is computed at every reading, which may change its buffers."""
        key, fetch = (id(owner), name), _reader(owner, name)
        if key not in self._slots:
            self._fetches.append(fetch)
            if callable(fetch):
                return Parameter(len(self._fetches) - 1)
            self._slots[key] = len(self._fetches) - 1
        return Parameter(self._slots[key])

    def _optional_slot(self, owner: nn.Module, name: str) -> Parameter | None:
        """The slot of a parameter that may be None (a parametrised one is computed, and never None)."""
        return None if owner._parameters.get(name, owner) is None else self._slot(owner, name)

    # changes in place

    def _in_place_target(self, node: fx.Node) -> fx.Node | None:
        """The node whose value this call changes; it must be safe to go on with the result instead."""
        module = self._root.get_submodule(str(node.target)) if node.op == "call_module" else None
        inner = module is not None and any(getattr(m, "inplace", False) for m in module.modules())
        if not (inner or (module is None and changes_in_place(node))):
            return None
        if node.target in (operator.setitem, "__setitem__"):
            raise Untraceable("it assigns to a part of a tensor")
        target = node.args[0] if node.args else None
        if not isinstance(target, fx.Node):
            raise Untraceable(f"{_title(node)} changes something in place")
        if self._is_last_name(target, node):
            return target
        if module is not None and getattr(module, "inplace", None) is None and len(target.users) == 1:
            return None  # an opaque module whose input nobody else reads
        raise Untraceable(f"{_title(node)} changes in place what other names may refer to")

    def _is_last_name(self, target: fx.Node, change: fx.Node) -> bool:
        """Whether nothing reads the memory of `target` after the change, but under that name."""
        kind = self._kinds[target]
        if not isinstance(kind, Value):
            return False
        same = self._sharing.get(kind.index, {kind.index})
        names = [n for n, k in self._kinds.items() if isinstance(k, (Value, Host)) and k.index in same]
        readers = [self._order[user] for n in names if n is not target for user in n.users]
        return not same & self._foreign and max(readers, default=-1) <= self._order[change]

    def _share(self, values: list[int]) -> None:
        """Note that the values may lie in the same memory."""
        same = set().union(*[self._sharing.get(value, {value}) for value in values])
        self._sharing.update(dict.fromkeys(same, same))

    @property
    def _next(self) -> int:
        return len(self._placeholders) + len(self._steps)


def _caller(node: fx.Node, module: nn.Module | None = None) -> Callable[[Callable[[fx.Node], Any]], Any]:
    """The node's call as a function of a look-up for the nodes it reads."""
    args, kwargs = node.args, node.kwargs
    function: Any = module
    if node.op == "call_function":
        function = node.target
    elif node.op == "call_method":
        name = str(node.target)

        def function(owner: Any, *rest: Any, **named: Any) -> Any:
            return getattr(owner, name)(*rest, **named)

    def run(look_up: Callable[[fx.Node], Any]) -> Any:
        return function(*fx.node.map_arg(args, look_up), **fx.node.map_arg(kwargs, look_up))

    return run


def _with_params(step: Step | HostStep, places: dict[int, int]) -> Step | HostStep:
    """The step with its parameters in the places that they have in the program."""
    if isinstance(step, HostStep):
        return step
    return replace(step, params=tuple(places[slot] for slot in step.params))


def _reads_shape(node: fx.Node) -> bool:
    """Whether the call asks for a tensor's shape, dtype or device."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS or (node.target == "type" and len(node.args) + len(node.kwargs) == 1)
    return node.target is getattr and node.args[1] in _DATA


def _nodes(arguments: Any) -> list[fx.Node]:
    """The nodes in nested arguments."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return found


def _reader(owner: nn.Module, name: str) -> Fetch:
    """How a parameter is read at each call, without a strong reference to its module."""
    parameters: dict[str, Any] = owner._parameters
    if name in parameters:
        return parameters, name
    weak = weakref.ref(owner)
    return lambda slots: getattr(weak(), name)


def _shape_of(fetch: Fetch) -> tuple[int, ...] | None:
    """The shape of a module's parameter; None for one that is computed."""
    return None if callable(fetch) else tuple(fetch[0][fetch[1]].shape)


@contextmanager
def _blame(node: fx.Node) -> Iterator[None]:
    """Let an `Untraceable` name the module whose forward made the call."""
    try:
        yield
    except Untraceable as error:
        error.path = next(reversed(node.meta.get("nn_module_stack", {})), "")
        raise


def _title(node: fx.Node) -> str:
    return str(node.target) if node.op != "call_function" else getattr(node.target, "__name__", str(node.target))
