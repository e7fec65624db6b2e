"""Whether a module still is what a trace was made of. Every call of a network asks."""

from __future__ import annotations

import copy
from operator import itemgetter
from typing import Any

from torch import nn

from ._native import unchanged
from .layers import rule_of_module
from .trace import HOOKS, attributes, hooked, live_attributes, same, snapshot

_training = itemgetter("training")


class Watch:
    """What a trace has built in, and whether it is still so. Holds no reference to the outermost module."""

    def __init__(self, root: nn.Module) -> None:
        self._type = type(root)
        self._inner = [m for m in root.modules() if m is not root]
        self._tables = [m.__dict__ for m in self._inner]
        modules = [root, *self._inner]
        self._children = [(i, tuple(m._modules.values())) for i, m in enumerate(modules) if m._modules]
        self._attributes = [(i, attributes(m)) for i, m in enumerate(modules) if not is_library(m)]
        self._parameters = [(m._parameters, name) for m in modules for name in m._parameters]
        rules = [(i, rule_of_module(m)) for i, m in enumerate(modules)]
        self._configs = [(i, rule.config) for i, rule in rules if rule is not None and rule.config is not None]
        self._latest: _Memory | None = None

    def look(self, root: nn.Module) -> tuple[Any, ...] | None:
        """Flags, hooks, missing parameters and hyper-parameters, which select between traces.

        None if modules are not where they were, or their attributes are not what they were.
        """
        latest = self._latest
        if type(root) is not self._type:
            return None
        if latest is not None and latest.holds(root):
            return latest.state
        modules = [root, *self._inner]
        state = self._state(modules)
        if state is None:
            return None
        # Hyper-parameters may be lists, which change in their place.
        state = latest.state if latest is not None and latest.state == state else copy.deepcopy(state)
        read = [value for i, _ in self._attributes for value in live_attributes(modules[i]).values()]
        self._latest = _Memory(modules, state, [*read, *[config(modules[i]) for i, config in self._configs]])
        return state

    def _state(self, modules: list[nn.Module]) -> tuple[Any, ...] | None:
        for i, children in self._children:
            if tuple(modules[i]._modules.values()) != children:
                return None
        for i, state in self._attributes:
            if not same(attributes(modules[i]), state):
                return None
        training = list(map(_training, self._tables))
        missing = [table.get(name) is None for table, name in self._parameters]
        configs = [config(modules[i]) for i, config in self._configs]
        return modules[0].training, training, hooked(self._tables), missing, configs


class _Memory:
    """A state, and every object that the modules' tables held when it was found: while they hold them, it is the state.

    What a trace has `read` may be containers, whose content changes: those are looked into.
    """

    __slots__ = ("_open", "_tables", "_values", "state")

    def __init__(self, modules: list[nn.Module], state: tuple[Any, ...], read: list[Any]) -> None:
        self.state = state
        root, *inner = modules
        own = tuple([... if name.startswith("_datagrad") else value for name, value in root.__dict__.items()])
        exact = [m.__dict__ for m in inner] + [m._modules for m in modules]
        exact += [m.__dict__[hooks] for m in inner for hooks in HOOKS]
        present = [m._parameters for m in modules]
        self._tables = [*exact, *present]
        self._values = [
            own,
            *[tuple(table.values()) for table in exact],
            *[tuple([None if p is None else ... for p in table.values()]) for table in present],
        ]
        self._open = [(value, snapshot(value)) for value in read if _is_open(value)]

    def holds(self, root: nn.Module) -> bool:
        """Whether nothing was put anywhere, or taken away."""
        if not unchanged([root.__dict__, *self._tables], self._values):
            return False
        return all(same(value, before) for value, before in self._open)


def is_library(module: nn.Module) -> bool:
    """Whether the module's code is torch's own, so that its rule or autograd reads its attributes when it runs."""
    return type(module).forward.__module__.startswith("torch.nn.")


def _is_open(value: Any) -> bool:
    """Whether it is a container whose content may change."""
    return type(value) in (list, dict) or (type(value) is tuple and any(map(_is_open, value)))
