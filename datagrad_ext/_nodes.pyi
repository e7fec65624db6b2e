"""What csrc/nodes/module.cpp binds."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

class Network:
    def __init__(
        self,
        direct_ops: Any,
        reference: Any,
        links: str,
        inner_links: str,
        places: Sequence[int],
        is_weight: Sequence[bool],
        is_below: Sequence[bool],
        curved: bool,
        eps: Sequence[float],
        parts: Sequence[tuple[str, int, int]],
    ) -> None: ...
    def __call__(self, x: Tensor, params: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor | None: ...
