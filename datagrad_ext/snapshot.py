"""The state of Python objects that a trace has built in: to be compared with their state later, and put back.

Plain values are compared by value. Containers and objects that are nothing but data (a namespace, a dataclass, any
object whose attributes are data in their turn) are compared by what is in them, because a configuration may be changed
in place. Anything else is compared by identity, and so are large arrays and large containers inside of others (a
vocabulary); a tensor also by whether it requires a gradient.
"""

from __future__ import annotations

import enum
import sys
from collections import deque
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PLAIN = (int, float, bool, str, bytes, complex, type(None), range, enum.Enum, torch.dtype, torch.device, torch.Size)
_ATOMS = (*PLAIN, type, FunctionType, BuiltinFunctionType)
_LARGEST_ARRAY = 1 << 16  # bytes
_LARGEST_INSIDE = 1000  # parts


class _State(NamedTuple):
    """An object, whether it must be the same one, and its parts: by name, or in order."""

    value: Any
    is_same_object: bool
    parts: dict[Any, Any] | list[Any]


def snapshot(value: Any) -> Any:
    """The state of an object now: itself where nothing else is to be compared."""
    return _taken(value, ())


def same(a: Any, b: Any) -> bool:
    """Whether two snapshots are of the same state."""
    if type(a) is not type(b):
        return False
    if isinstance(a, _State):
        return type(a.value) is type(b.value) and (a.value is b.value or not a.is_same_object) and _equal(a, b)
    return a is b or (isinstance(a, PLAIN) and (a == b or (a != a and b != b)))


def may_change(kept: Any) -> bool:
    """Whether the object of a snapshot can leave its state and still be the same object."""
    if isinstance(kept, _State) and isinstance(kept.value, (tuple, frozenset)):
        return any(map(may_change, kept.parts))
    return isinstance(kept, _State)


def restored(kept: Any) -> Any:
    """The object of a snapshot, in the state that it had."""
    if not isinstance(kept, _State):
        return kept
    value, parts = kept.value, kept.parts
    old = [restored(part) for part in (parts.values() if isinstance(parts, dict) else parts)]
    if same(snapshot(value), kept) or isinstance(value, (tuple, frozenset, Tensor)):
        return value
    if isinstance(parts, dict) and not isinstance(value, dict) and not hasattr(value, "__dict__"):
        for name, part in zip(parts, old, strict=True):
            setattr(value, name, part)
    elif isinstance(parts, dict):
        table = value if isinstance(value, dict) else value.__dict__
        table.clear()
        table.update(zip(parts, old, strict=True))
    elif isinstance(value, (list, deque, set)):
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(old)
    return value


def _equal(a: _State, b: _State) -> bool:
    if isinstance(a.parts, dict) and isinstance(b.parts, dict):
        return a.parts.keys() == b.parts.keys() and all(same(part, b.parts[key]) for key, part in a.parts.items())
    return len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))


def _taken(value: Any, around: tuple[int, ...]) -> Any:
    """The snapshot; `around` are the objects that it is a part of."""
    if isinstance(value, _ATOMS) or id(value) in around:
        return value
    inside = (*around, id(value))
    if isinstance(value, Tensor):
        return _State(value, True, [value.requires_grad])
    if around and isinstance(value, (dict, list, tuple, deque, set, frozenset)) and len(value) > _LARGEST_INSIDE:
        return value
    if isinstance(value, dict):
        return _State(value, False, {key: _taken(part, inside) for key, part in value.items()})
    if isinstance(value, (list, tuple, deque)):
        return _State(value, False, [_taken(part, inside) for part in value])
    if isinstance(value, (set, frozenset)):
        return _State(value, False, sorted(value, key=hash))
    if _is_small_array(value):
        return _State(value, False, [*value.shape, value.tobytes()])
    return _object(value, inside)


def _object(value: Any, inside: tuple[int, ...]) -> Any:
    """An object and its attributes if all of them are data."""
    attributes = getattr(value, "__dict__", None)
    if attributes is None and is_dataclass(value):  # with slots
        attributes = {field.name: getattr(value, field.name, None) for field in fields(value)}
    if type(attributes) is not dict or isinstance(value, nn.Module) or type(value).__module__.startswith("torch."):
        return value
    parts = {}
    for name, part in attributes.items():
        parts[name] = _taken(part, inside)
        if parts[name] is part and not isinstance(part, _ATOMS):
            return value
    return _State(value, True, parts)


def _is_small_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and isinstance(value, numpy.ndarray)
        and value.nbytes <= _LARGEST_ARRAY
        and not value.dtype.hasobject
    )
