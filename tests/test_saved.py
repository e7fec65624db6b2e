"""What layers save, taken apart into tensors and the rest, and put together again, by both implementations."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from datagrad_ext import _native


class Named(NamedTuple):
    """Not to be taken apart."""

    tensor: Tensor


IMPLEMENTATIONS = {
    "compiled": (_native.packed, _native.unpacked),
    "python": (_native._packed, _native._unpacked),
}
A, B, C = torch.zeros(2), nn.Parameter(torch.ones(3)), torch.tensor(True)
NAMED, LIST = Named(C), [C]
SAVED: dict[str, tuple[list[Any], list[Tensor]]] = {
    "nothing": ([], []),
    "no layer saved anything": ([(), ()], []),
    "tensors": ([(A, B), (C,)], [A, B, C]),
    "one tensor by several": ([(C, A), (C, (A, C))], [A, C]),
    "values": ([(None, 3, True, "text", 0.5, -1, torch.float32)], []),
    "nested": ([(A, ((B, None), (), ((C,),)))], [A, B, C]),
    "what is no plain tuple": ([(NAMED, LIST, {"a": A})], []),
    "items that are lists": ([[A, (B, None)], [7]], [A, B]),
}


def same(a: Any, b: Any) -> bool:
    if type(a) is tuple and type(b) is tuple:
        return len(a) == len(b) and all(map(same, a, b))
    return a is b


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("before", [0, 1])
def test_round_trip(name: str, implementation: str, before: int) -> None:
    packed, unpacked = IMPLEMENTATIONS[implementation]
    items, tensors = SAVED[name]
    kept: list[Any] = [A][:before]
    layouts = packed(items, kept, Tensor)
    assert {*map(id, kept)} == {*map(id, tensors), *map(id, [A][:before])}
    assert len(kept) == len({*map(id, kept)})
    found = unpacked(layouts, tuple(kept))
    assert type(found) is list
    assert same(tuple(found), tuple(map(tuple, items)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_references_are_left(implementation: str) -> None:
    """Counts of references are as before: the compiled code counts by itself."""
    packed, unpacked = IMPLEMENTATIONS[implementation]

    def references() -> list[int]:
        return [sys.getrefcount(each) for each in (A, B, C, NAMED, LIST)]

    before = references()
    for _ in range(10):
        kept: list[Any] = []
        layouts = packed([item for items, _ in SAVED.values() for item in items], kept, Tensor)
        unpacked(layouts, tuple(kept))
    del kept, layouts
    assert references() == before
