"""Penalties that the native path knows: which seed of `ops.seeds` a user's penalty is.

A new penalty of the form f(norm) is a row in `_NORMS` (f is the identity) or in `_FUNCTIONS`.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from ..ops.seeds import Seed
from ..penalties import Centred, OneSided, l1, l2, l2_squared, linf

_NORMS: dict[Any, Seed] = {l1: Seed("l1"), l2: Seed("l2"), l2_squared: Seed("l2_squared"), linf: Seed("linf")}
_FUNCTIONS: dict[type, str] = {Centred: "centred", OneSided: "one_sided"}


def seed_of(penalty: Any) -> Seed | None:
    """The row of a penalty that is in the table, None for others."""
    if type(penalty) in _FUNCTIONS:
        norm = _norm_of(penalty.norm)
        return None if norm is None else Seed(norm.kind, _FUNCTIONS[type(penalty)], penalty.c)
    return _norm_of(penalty)


def _norm_of(penalty: Any) -> Seed | None:
    return _NORMS.get(penalty) if type(penalty) is FunctionType else None
