"""Which module, function or tensor method becomes which layer: the rules that tracing asks.

A rule returns an `Application`, or None for a form that the layer does not cover (it then becomes an opaque layer):

    @module_rule(nn.Linear, config=("in_features",))      called with the module; parameters are named by attribute
    @function_rule(F.linear, methods=("relu",))           called with the call's own arguments, under their names

Several rules may stand for one function: the first that covers the call is taken. A form may also be written in terms
of simpler calls, which are traced in its place:

    @module_rule(nn.GLU, config=("dim",))                 returns an `Expansion`
    @expansion(F.glu)                                     called with the call's own arguments
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from torch import fx, nn

from .base import Layer


@dataclass(frozen=True)
class Application:
    """A layer applied: to `inputs` (values), `params` (parameters; for a module rule their names) and `host` values."""

    layer: Layer
    inputs: tuple[Any, ...] = ()
    params: tuple[Any, ...] = ()
    host: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Expansion:
    """A module in terms of simpler calls: `call` takes the module's arguments, and is traced in its place.

    It returns NotImplemented, before it calls anything, for arguments that it does not cover.
    """

    call: Callable[..., Any]


class ModuleRule(NamedTuple):
    """How a module class becomes a layer, and the attributes whose change asks for a new trace."""

    build: Callable[[Any], Application | Expansion | None]
    config: Callable[[nn.Module], Any] | None


_MODULES: dict[Any, ModuleRule] = {}
_FUNCTIONS: dict[Any, list[Callable[..., Application | None]]] = {}
_METHODS: dict[str, list[Callable[..., Application | None]]] = {}
_EXPANSIONS: dict[Any, Callable[..., Any]] = {}
_TRACED_THROUGH: set[str] = set()


def module_rule(*classes: type[nn.Module], config: tuple[str, ...] = ()) -> Callable:
    """Register a rule for modules whose forward is that of one of the classes."""
    read = attrgetter(*config) if config else None

    def register(build: Callable) -> Callable:
        _MODULES.update({cls.forward: ModuleRule(build, read) for cls in classes})
        return build

    return register


def function_rule(*functions: Callable | str, methods: tuple[str, ...] = ()) -> Callable:
    """Register a rule for calls of the functions, and of tensor methods by name.

    A function of a package that may be missing is given by its full name.
    """

    def register(build: Callable) -> Callable:
        for function in functions:
            _FUNCTIONS.setdefault(function, []).append(build)
        for method in methods:
            _METHODS.setdefault(method, []).append(build)
        return build

    return register


def expansion(*functions: Callable | str) -> Callable:
    """Register what is traced in place of calls of the functions; NotImplemented leaves the call as it is.

    A function of a package that may be missing is given by its full name.
    """

    def register(call: Callable) -> Callable:
        _EXPANSIONS.update(dict.fromkeys(functions, call))
        return call

    return register


def traced_through(*full_names: str) -> None:
    """Let functions that their package hides from tracing (fx.wrap) be traced like any other."""
    _TRACED_THROUGH.update(full_names)


def expanded(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The module's call in simpler calls, or NotImplemented."""
    rule = rule_of_module(module)
    found = None if rule is None else rule.build(module)
    return _in_place_of(found.call, args, kwargs) if isinstance(found, Expansion) else NotImplemented


def expanded_call(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The function's call in simpler calls, or NotImplemented."""
    name = _full_name(function)
    call = function if name in _TRACED_THROUGH else _EXPANSIONS.get(function) or _EXPANSIONS.get(name)
    return NotImplemented if call is None else _in_place_of(call, args, kwargs)


def _in_place_of(call: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The call, or NotImplemented where it has arguments that `call` does not know."""
    try:
        inspect.signature(call).bind(*args, **kwargs)
    except TypeError:
        return NotImplemented
    return call(*args, **kwargs)


def as_one_call(function: Callable, *arguments: Any) -> Any:
    """In an expansion: a call of a function of this package as one node, for which it has a rule."""
    tracer = next(a.tracer for a in arguments if isinstance(a, fx.Proxy))
    return tracer.create_proxy("call_function", function, arguments, {})


def rule_of_module(module: nn.Module) -> ModuleRule | None:
    """The rule of a module, found by its forward, so that subclasses which keep the forward are covered."""
    cls = type(module)
    # The class's own, also after accelerate(); torch.jit's modules have none.
    forward = getattr(cls, "_datagrad_forward", None) or getattr(cls, "forward", None)
    return None if "forward" in module.__dict__ else _MODULES.get(forward)


def rules_of_function(function: Any) -> Sequence[Callable]:
    """The rules of a called function."""
    return _FUNCTIONS.get(function) or _FUNCTIONS.get(_full_name(function)) or ()


def rules_of_method(name: str) -> Sequence[Callable]:
    """The rules of a called tensor method."""
    return _METHODS.get(name, ())


def _full_name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"

