"""What csrc/nodes must know of a layer to run its sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .base import Tensors

Moving = tuple["list[Tensor]", "list[float]"]
"""The running statistics that a call updates, mean and variance of each norm, and the momenta."""


@dataclass(frozen=True, eq=False)
class ChainSweeps:
    """`links` and `inner_links` as `ops/chain.py` spells them; the latter's parameters are those at `places`. For each
    parameter of the chain: whether it is a weight, and whether it lies below the last smooth link.
    """

    links: str
    inner_links: str
    places: Sequence[int]
    is_weight: Sequence[bool]
    is_below: Sequence[bool]
    curved: bool


UnitOfSweeps = tuple[bool, "int | None", "int | None", bool, bool]
"""Whether it reads x; the places of its weight among the parameters and of its cotangent in a record, or None; whether
it leaves a pair, and whether it does if its weight is wanted."""


@dataclass(frozen=True, eq=False)
class ImageSweeps:
    """`links` as `ops/image_chain.py` spells them; whether what leaves and what is inside is in channels_last."""

    links: str
    outer: bool
    inner: bool
    units: Sequence[UnitOfSweeps]


def _no_folds(x: Tensor, params: Tensors, host: tuple) -> tuple[()]:
    return ()


def _nothing(*kept: Any) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Compiled:
    """`sweeps`: those for an input, and what reads the running statistics that its forward updates, if there are some;
    None where the Functions must find them.

    `parts`: for each layer of the run what `fold_norms` is given of it, "" without a fold, and how many parameters are
    inside and outside.
    """

    sweeps: Callable[[Tensor], tuple[ChainSweeps | ImageSweeps, Callable[[], Moving] | None] | None]
    eps: Sequence[float] = ()
    parts: Sequence[tuple[str, int, int]] = ()
    operands: Callable[[Tensor, Tensors, tuple], Sequence[Tensor] | None] = _no_folds
    """(x, params, host) -> what `fold_norms` reads at this call, or None where the layer does not fold it."""
    saved: Callable[..., tuple] = _nothing
    """(what the folds keep, links, x, what the ops saved) -> what the layer's `reference` reads."""
