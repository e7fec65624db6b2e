"""What csrc/nodes must know of a layer to run its sweeps: a chain, and norms folded into its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .base import Tensors

Operands = Callable[[Tensor, Tensors, tuple], "list[Tensor] | None"]
"""(x, params, host) -> what `fold_norms` reads at this call, or None where the layer does not fold it."""


@dataclass(frozen=True)
class Compiled:
    """`links` and `inner_links` as `ops/chain.py` spells them; the latter's parameters are those at `places`. For each
    parameter of the chain: whether it is a weight, and whether it lies below the last smooth link.

    `parts`: for each layer of the run what `fold_norms` is given of it, "" without a fold, and how many parameters are
    inside and outside.
    """

    links: str
    inner_links: str
    places: Sequence[int]
    is_weight: Sequence[bool]
    is_below: Sequence[bool]
    curved: bool
    eps: Sequence[float] = ()
    parts: Sequence[tuple[str, int, int]] = ()
    operands: Operands | None = None
    saved: Callable[[Any], tuple] = field(default=lambda kept: ())  # what `reference` reads; `kept`: that of the folds
