"""What csrc/nodes/module.cpp binds."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

class Sweeps: ...

class Chain(Sweeps):
    def __init__(
        self,
        direct_ops: Any,
        links: str,
        inner_links: str,
        places: Sequence[int],
        is_weight: Sequence[bool],
        is_below: Sequence[bool],
        curved: bool,
    ) -> None: ...

class Images(Sweeps):
    def __init__(
        self,
        direct_ops: Any,
        links: str,
        outer: bool,
        inner: bool,
        units: Sequence[tuple[bool, int | None, int | None, bool, bool]],
    ) -> None: ...

class Network:
    def __init__(
        self, direct_ops: Any, reference: Any, eps: Sequence[float], parts: Sequence[tuple[str, int, int]]
    ) -> None: ...
    def __call__(
        self,
        x: Tensor,
        params: Sequence[Tensor],
        sweeps: Sweeps,
        given: Sequence[Tensor],
        moving: Callable[[], tuple[list[Tensor], list[float]]] | None,
    ) -> Tensor | None: ...

def saved_bytes(y: Tensor) -> int: ...
