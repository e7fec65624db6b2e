"""nn.Module -> torch.fx graph: which modules are leaves, and which code does not trace.

A leaf is a module with a rule, a module of torch.nn, a module with hooks of its own (they must fire), or one whose
forward did not trace (control flow on data, on the type of a value or on random numbers, state written by the forward,
torch.no_grad() or torch.autocast() entered in it). If the outermost forward does not trace, `Untraceable` says why.
"""

from __future__ import annotations

import builtins
import enum
import inspect
import itertools
import operator
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .layers import Application, expanded, expanded_call, rule_of_module
from .snapshot import restored, same, snapshot

_INTERNAL = frozenset(nn.Module().__dict__)
_ONE_AT_A_TIME = threading.RLock()
_OWN_CODE = ("torch.", "datagrad_ext.")
_WRITES = "its forward changes the module's attributes"
_CONSTANTS = (int, float, bool, str, bytes, tuple, FunctionType, BuiltinFunctionType)
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.matmul}
_aten = torch.ops.aten


class Untraceable(Exception):
    """A forward cannot become a program; the message is the reason. `path` names the module, "" the outermost."""

    path = ""


class _ReadsState(Exception):
    """A forward reads what another part may write when it runs."""


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_hooks = operator.itemgetter(*HOOKS)


def hooked(tables: Sequence[dict[str, Any]]) -> list[bool]:
    """For each module's attributes, whether hooks wait for calls of this very module; nothing where none do."""
    if not any(itertools.chain.from_iterable(map(_hooks, tables))):
        return []
    return [any(hooks) for hooks in map(_hooks, tables)]


def attributes(module: nn.Module) -> dict[str, Any]:
    """The plain Python attributes that a forward may read: a trace has their values built in."""
    state = module.__dict__
    return {name: snapshot(state[name]) for name in state.keys() - _INTERNAL if not name.startswith("_datagrad")}


def unchanged(module: nn.Module, state: dict[str, Any]) -> bool:
    """Whether the attributes are what they were."""
    now = attributes(module)
    return now.keys() == state.keys() and all(same(now[name], kept) for name, kept in state.items())


def trace(root: nn.Module, forward: Callable[..., Any], n_inputs: int, leaves: dict[nn.Module, str]) -> fx.Graph:
    """The graph of forward(root, *n_inputs tensors); modules that have to be leaves are added with the reason."""
    while True:
        tracer = _Tracer(forward, n_inputs, leaves)
        before = {module: _state(module) for module in root.modules()}
        drawn = _HostRandom()
        try:
            with _ONE_AT_A_TIME, _types_of_values(), _NothingRead(), _no_state_of(_writers(root, leaves)):
                graph = tracer.trace(root)
            drawn.refuse_draws()
            culprit, reason = _changed(before), _WRITES
        except _ReadsState as error:
            raise Untraceable(str(error)) from None
        except Exception as error:
            if not tracer.inside and n_inputs == 1 and _has_layer(root):
                return _one_call()
            culprit, reason = (
                tracer.inside[-1] if tracer.inside else root,
                f"its forward does not trace ({_first_line(error)})",
            )
        finally:
            _restore(before)
            drawn.restore()
        if culprit is None:
            return graph
        if culprit is root or culprit in leaves:
            raise Untraceable(reason)
        leaves[culprit] = reason


def _has_layer(root: nn.Module) -> bool:
    """Whether the outermost module as a whole is a layer."""
    rule = rule_of_module(root)
    return rule is not None and rule.build(root) is not None


def _one_call() -> fx.Graph:
    """The graph that calls the outermost module: for one that is a layer, but whose forward does not trace."""
    graph = fx.Graph()
    graph.output(graph.call_module("", (graph.placeholder("input_0"),)))
    return graph


class _Tracer(fx.Tracer):
    """Traces through user modules and stops at leaves; remembers which module it is inside of.

    Buffers are read by the program, at each call: what is computed from one must not be built in.
    """

    proxy_buffer_attributes = True

    def __init__(self, forward: Callable[..., Any], n_inputs: int, leaves: dict[nn.Module, str]) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._forward, self._n_inputs, self._leaves = forward, n_inputs, leaves
        self.inside: list[nn.Module] = []
        self._modes = _modes()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:  # a context leaves no node: the graph would run as if it were not there
            raise RuntimeError("it enters torch.no_grad() or torch.autocast() itself")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if True in hooked([m.__dict__]):
            self._leaves[m] = "it has hooks"
        if isinstance(m, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
            self._leaves[m] = "its code is compiled"
        if m in self._leaves or rule_of_module(m) is not None:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:  # fx patches nn.Module for every thread
            return forward(*args, **kwargs)
        if not self.is_leaf_module(m, self.path_of_module(m)):
            self.inside.append(m)
            drawn = _HostRandom()
            value = super().call_module(m, forward, args, kwargs)
            drawn.refuse_draws()
            self.inside.pop()
            return value
        value = self._expanded(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs) if value is NotImplemented else value

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        value = expanded_call(target, args, kwargs) if kind == "call_function" else NotImplemented
        return super().create_proxy(kind, target, args, kwargs, *rest, **named) if value is NotImplemented else value

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Traced(node, self)

    def create_arg(self, a: Any) -> Any:
        """Named tuples stay what they are: fx makes calls of their classes of them."""
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return type(a)(*map(self.create_arg, a))
        return super().create_arg(a)

    def _expanded(self, m: nn.Module, args: Any, kwargs: Any) -> Any:
        """What stands for a call of a leaf in simpler calls, or NotImplemented."""
        if m in self._leaves:
            return NotImplemented
        self.inside.append(m)  # it becomes an opaque leaf if the expansion does not trace
        value = expanded(m, args, kwargs)
        self.inside.pop()
        return value

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether a value is known to be one tensor: an input, a layer's result, and what is computed from those."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            rule = None if module in self._leaves else rule_of_module(module)
            return rule is not None and isinstance(rule.build(module), Application)
        if node.op == "call_function" and node.target in _ARITHMETIC:
            return any(map(self.is_tensor, node.all_input_nodes))
        return node.op == "placeholder"

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        inputs = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(self._n_inputs)]
        return self._forward, [self.root, *inputs]


class _Traced(fx.Proxy):
    """A traced value; an input has the attributes of a tensor and no others."""

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        if self.node.op == "placeholder" and not hasattr(torch.Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute '{name}'")
        return super().__getattr__(name)


@contextmanager
def _types_of_values() -> Iterator[None]:
    """Inside, isinstance takes traced tensors for what they are, in every module, and refuses to tell of other values.

    Else a forward that asks would go another way than with tensors. fx patches nn.Module in the same manner.
    Values cannot say so themselves: compiled code of torch believes a `__class__`, too, and takes them for tensors.
    """
    told = builtins.isinstance

    def ask(value: Any, kinds: Any) -> bool:
        if not issubclass(type(value), fx.Proxy):
            return told(value, kinds)
        if sys._getframe(1).f_globals.get("__name__", "").startswith(_OWN_CODE):
            return told(value, kinds)
        if value.tracer.is_tensor(value.node):
            return issubclass(torch.Tensor, kinds)
        raise RuntimeError("it asks for the type of a value")

    builtins.isinstance = ask
    try:
        yield
    finally:
        builtins.isinstance = told


class _Writes(enum.Enum):
    """What of a module is written while the program runs, by leaves or by hooks."""

    PERHAPS_TENSORS = enum.auto()
    PERHAPS = enum.auto()
    YES = enum.auto()


def _writers(root: nn.Module, leaves: dict[nn.Module, str]) -> dict[int, _Writes]:
    """The modules that may be written. Hooks may write anywhere; a leaf writes to what is inside of it."""
    modules = list(root.modules())
    hooks = [m for m in modules if m is not root and True in hooked([m.__dict__])]
    found = {id(m): _Writes.PERHAPS_TENSORS for m in modules if hooks}
    for leaf in (*leaves, *hooks):
        found |= {id(m): _Writes.PERHAPS for m in leaf.modules()}
    return found | {id(m): _Writes.YES for m, reason in leaves.items() if reason == _WRITES}


@contextmanager
def _no_state_of(writers: dict[int, _Writes]) -> Iterator[None]:
    """Inside, what may be written while the program runs is not read: a trace would have an old value built in."""
    if not writers:
        yield
        return
    thread, plain, told = threading.get_ident(), nn.Module.__getattribute__, builtins.isinstance

    def is_written(module: nn.Module, name: str, writes: _Writes) -> bool:
        table = plain(module, "__dict__")
        if name not in table:
            return writes is _Writes.YES and name in table.get("_buffers", ())
        if name in _INTERNAL or name.startswith("_datagrad"):
            return False
        if writes is _Writes.PERHAPS_TENSORS:
            return told(table[name], torch.Tensor)
        return writes is _Writes.YES or not told(table[name], _CONSTANTS)

    def read(module: nn.Module, name: str) -> Any:
        writes = writers.get(id(module))
        if writes is not None and threading.get_ident() == thread and is_written(module, name, writes):
            raise _ReadsState(f"it reads the attribute {name!r} of a part that may change it when it runs")
        return plain(module, name)

    nn.Module.__getattribute__ = read  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


class _NothingRead(TorchDispatchMode):
    """While a forward is traced, no number of a tensor may decide what it does: the trace would have it built in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"it draws random numbers ({func}) whose shape does not depend on the input")
        if func.overloadpacket in (_aten._local_scalar_dense, _aten.equal):
            raise RuntimeError("it reads the elements of a tensor")
        return func(*args, **(kwargs or {}))


class _HostRandom:
    """The random numbers of Python and numpy: a trace has decisions on them built in, so a forward may not draw any."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), _numpy_random()

    def refuse_draws(self) -> None:
        """A RuntimeError if numbers were drawn since."""
        if random.getstate() != self._python or _comparable(_numpy_random()) != _comparable(self._numpy):
            raise RuntimeError("it draws random numbers of Python or numpy")

    def restore(self) -> None:
        """Numbers that were drawn come again."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _numpy_random() -> Any:
    """numpy's random state, None where nobody has imported it."""
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


def _comparable(state: Any) -> Any:
    return state and (state[1].tobytes(), *state[2:])


def _modes() -> tuple[Any, ...]:
    """What a `with` in a forward may change and a graph does not record: grad mode, and autocast by device."""
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    return torch.is_grad_enabled(), [(device, torch.get_autocast_dtype(device)) for device in devices]


_State = tuple[dict[str, Any], dict[str, Any]]


def _state(module: nn.Module) -> _State:
    """What a forward may change of a module: its attributes, and which buffers it has."""
    return attributes(module), dict(_buffers(module))


def _buffers(module: nn.Module) -> dict[str, Any]:
    return {} if isinstance(module, torch.jit.ScriptModule) else module._buffers


def _changed(before: dict[nn.Module, _State]) -> nn.Module | None:
    """The first module that is not what it was."""
    for m, (state, buffers) in before.items():
        now = _buffers(m)
        if now.keys() != buffers.keys() or any(now[name] is not buffer for name, buffer in buffers.items()):
            return m
        if not unchanged(m, state):
            return m
    return None


def _restore(before: dict[nn.Module, _State]) -> None:
    for module, (state, buffers) in before.items():
        for name in attributes(module).keys() - state.keys():
            del module.__dict__[name]
        for name, kept in state.items():
            module.__dict__[name] = restored(kept)
        table = _buffers(module)
        table.clear()
        table.update(buffers)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


_INPLACE_OPERATORS = {
    getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
}


def _inplace_by_position(node: fx.Node) -> bool:
    """Whether a call like F.relu(x, True) passes `inplace` without its name."""
    if node.op != "call_function" or True not in node.args:
        return False
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except ValueError:  # a builtin
        return False
    return "inplace" in names and node.args[names.index("inplace") :][:1] == (True,)


def changes_in_place(node: fx.Node) -> bool:
    """Whether the call changes its first argument in place."""
    if node.kwargs.get("inplace") is True or _inplace_by_position(node):
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in _INPLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
    return False
