"""Whether a module still is what a trace was made of. Every call of a network asks."""

from __future__ import annotations

import copy
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ._native import same_gradients, same_objects
from .layers import rule_of_module
from .snapshot import may_change, same, snapshot
from .trace import HOOKS, attributes, hooked, unchanged

_training = itemgetter("training")


class Watch:
    """What a trace has built in, and whether it is still so. Holds no reference to the outermost module."""

    def __init__(self, root: nn.Module) -> None:
        self._type = type(root)
        self._inner = [m for m in root.modules() if m is not root]
        self._types = list(map(type, self._inner))
        self._tables = [m.__dict__ for m in self._inner if "training" in m.__dict__]  # torch.compile's wrapper has none
        self._forwards = self._own_forwards()
        modules = [root, *self._inner]
        python = _of_python(modules)
        self._children = [(m._modules, tuple(m._modules.values())) for m in python if m._modules]
        own = [(i, m) for i, m in enumerate(modules) if not is_library(m)]
        lists = [m for m in modules if isinstance(m, (nn.ParameterList, nn.ParameterDict))]
        self._attributes = [(i, attributes(m)) for i, m in own]
        self._registers = [table for m in [*[m for _, m in own], *lists] for table in (m._parameters, m._buffers)]
        self._sizes = list(map(len, self._registers))
        self._parameters = [(m._parameters, name) for m in python for name in m._parameters]
        self._buffers = [(m._buffers, name) for m in python for name in m._buffers]
        present = [(m._parameters, name) for m in python for name, p in m._parameters.items() if p is not None]
        self._first = present[0] if present else None
        self._may_be_in_place = [m.__dict__ for m in modules if "inplace" in m.__dict__]
        rules = [(i, rule_of_module(m)) for i, m in enumerate(modules)]
        self._configs = [(i, rule.config) for i, rule in rules if rule is not None and rule.config is not None]
        self._latest: _Memory | None = None

    def look(self, root: nn.Module) -> tuple[Any, ...] | None:
        """Flags, hooks, missing parameters and hyper-parameters, which select between traces.

        None if modules are not where they were, or their attributes are not what they were.
        """
        if type(root) is not self._type or list(map(type, self._inner)) != self._types:
            return None
        latest = self._latest
        if latest is not None and latest.holds(root):
            return latest.state
        modules = [root, *self._inner]
        state = self._state(modules)
        if state is None:
            return None
        # Hyper-parameters may be lists, which change in their place.
        state = latest.state if latest is not None and latest.state == state else copy.deepcopy(state)
        self._latest = _Memory(modules, state, self._read(modules))
        return state

    def _state(self, modules: list[nn.Module]) -> tuple[Any, ...] | None:
        if self._own_forwards() != self._forwards or list(map(len, self._registers)) != self._sizes:
            return None
        for table, children in self._children:
            if tuple(table.values()) != children:
                return None
        for i, state in self._attributes:
            if not unchanged(modules[i], state):
                return None
        training = list(map(_training, self._tables))
        missing = [table.get(name) is None for table, name in self._parameters]
        buffers = [_kind_of_buffer(table.get(name)) for table, name in self._buffers]
        configs = [config(modules[i]) for i, config in self._configs]
        configs += [table.get("inplace") for table in self._may_be_in_place]
        return modules[0].training, training, hooked(self._tables), missing, buffers, configs

    def kind_of_parameters(self) -> tuple[Any, ...]:
        """What code like `next(self.parameters()).dtype` reads of the first parameter."""
        p = None if self._first is None else self._first[0].get(self._first[1])
        return () if p is None else (p.dtype, p.device, p.requires_grad)

    def _own_forwards(self) -> list[bool]:
        """Whether a forward was put onto the instance: then its class does not tell whose code runs."""
        return ["forward" in table for table in self._tables]

    def _read(self, modules: list[nn.Module]) -> list[Any]:
        """What attributes and hyper-parameters are now."""
        own = [modules[i].__dict__[name] for i, state in self._attributes for name in state]
        return [*own, *[config(modules[i]) for i, config in self._configs]]


class _Memory:
    """A state, and every object that the modules' tables held when it was found: while they hold them, it is the state.

    What a trace has `read` may change and stay the same object: that is looked into.
    """

    __slots__ = ("_buffers", "_gradients", "_open", "_tables", "_values", "state")

    def __init__(self, modules: list[nn.Module], state: tuple[Any, ...], read: list[Any]) -> None:
        self.state = state
        root, *inner = modules
        own = tuple([... if name.startswith("_datagrad") else value for name, value in root.__dict__.items()])
        python = _of_python(modules)
        exact = [m.__dict__ for m in inner] + [m._modules for m in python]
        exact += [m.__dict__[hooks] for m in inner for hooks in HOOKS]
        present = [m._parameters for m in python]
        self._tables = [*exact, *present]
        self._values = [
            own,
            *[tuple(table.values()) for table in exact],
            *[tuple([None if p is None else ... for p in table.values()]) for table in present],
        ]
        self._buffers = [m._buffers for m in python]
        self._gradients = [tuple(map(_kind_of_buffer, table.values())) for table in self._buffers]
        self._open = [(value, kept) for value, kept in zip(read, map(snapshot, read), strict=True) if may_change(kept)]

    def holds(self, root: nn.Module) -> bool:
        """Whether nothing was put anywhere, or taken away."""
        return (
            same_objects([root.__dict__, *self._tables], self._values)
            and same_gradients(self._buffers, self._gradients)
            and (not self._open or all(same(snapshot(value), kept) for value, kept in self._open))
        )


def is_library(module: nn.Module) -> bool:
    """Whether the module's code is torch's own, so that its rule or autograd reads its attributes when it runs."""
    forward = getattr(type(module), "forward", None)  # torch.jit's modules have none
    return forward is None or forward.__module__.startswith("torch.nn.")


def _of_python(modules: list[nn.Module]) -> list[nn.Module]:
    """Those whose tables are Python's; torch.jit keeps its own."""
    return [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]


def _kind_of_buffer(buffer: Tensor | None) -> bool | None:
    """What a trace has built in of a buffer: whether there is one, and whether gradients flow to it."""
    return None if buffer is None else buffer.requires_grad
