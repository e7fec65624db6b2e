"""Which module, function or tensor method becomes which layer: the rules that tracing asks.

A rule returns an `Application`, or None for a form that the layer does not cover (it then becomes an opaque layer):

    @module_rule(nn.Linear, config=("in_features",))      called with the module; parameters are named by attribute
    @function_rule(F.linear, methods=("relu",))           called with the call's own arguments, under their names
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from torch import nn

from .base import Layer


@dataclass(frozen=True)
class Application:
    """A layer applied: to `inputs` (values), `params` (parameters; for a module rule their names) and `host` values."""

    layer: Layer
    inputs: tuple[Any, ...] = ()
    params: tuple[Any, ...] = ()
    host: tuple[Any, ...] = ()


class ModuleRule(NamedTuple):
    """How a module class becomes a layer, and the attributes whose change asks for a new trace."""

    build: Callable[[Any], Application | None]
    config: Callable[[nn.Module], Any] | None


_MODULES: dict[Any, ModuleRule] = {}
_FUNCTIONS: dict[Any, Callable[..., Application | None]] = {}
_METHODS: dict[str, Callable[..., Application | None]] = {}


def module_rule(*classes: type[nn.Module], config: tuple[str, ...] = ()) -> Callable:
    """Register a rule for modules whose forward is that of one of the classes."""
    read = attrgetter(*config) if config else None

    def register(build: Callable) -> Callable:
        _MODULES.update({cls.forward: ModuleRule(build, read) for cls in classes})
        return build

    return register


def function_rule(*functions: Callable, methods: tuple[str, ...] = ()) -> Callable:
    """Register a rule for calls of the functions, and of tensor methods by name."""

    def register(build: Callable) -> Callable:
        _FUNCTIONS.update(dict.fromkeys(functions, build))
        _METHODS.update(dict.fromkeys(methods, build))
        return build

    return register


def rule_of_module(module: nn.Module) -> ModuleRule | None:
    """The rule of a module, found by its forward, so that subclasses which keep the forward are covered."""
    cls = type(module)
    forward = getattr(cls, "_datagrad_forward", cls.forward)  # the class's own, also after accelerate()
    return None if "forward" in module.__dict__ else _MODULES.get(forward)


def rule_of_function(function: Any) -> Callable | None:
    """The rule of a called function."""
    return _FUNCTIONS.get(function)


def rule_of_method(name: str) -> Callable | None:
    """The rule of a called tensor method."""
    return _METHODS.get(name)

