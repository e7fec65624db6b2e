"""Penalties on the distance of a data gradient, or of its norm, from a value.

`norm` is the penalty of which they are made: any callable J (N, ...) -> (N,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .norms import l2, l2_squared

Penalty = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Centred:
    """(‖J‖ − c)²: WGAN-GP and eikonal terms with c = 1. Its derivative at J = 0 is 0, not NaN. J (N, ...) to (N,)."""

    c: float = 1.0
    norm: Penalty = l2

    def __call__(self, J: Tensor) -> Tensor:
        return (self.norm(J) - self.c).square()


@dataclass(frozen=True)
class OneSided:
    """max(0, ‖J‖ − c)²: only norms above c cost something. J (N, ...) to (N,)."""

    c: float = 1.0
    norm: Penalty = l2

    def __call__(self, J: Tensor) -> Tensor:
        return (self.norm(J) - self.c).clamp_min(0).square()


@dataclass(frozen=True, eq=False)
class Match:
    """‖J − target‖², with no factor ½: forces, Sobolev training. J (N, ...) to (N,).

    `target` has the shape of J, or one that broadcasts to it.

    Raises:
        ValueError: the shape of the target does not broadcast to that of J.
    """

    target: Tensor
    norm: Penalty = l2_squared

    def __call__(self, J: Tensor) -> Tensor:
        try:
            target = self.target.expand_as(J)
        except RuntimeError:
            raise ValueError(
                f"Match: the target has shape {list(self.target.shape)}, the data gradient {list(J.shape)}; "
                "give the target the shape of the input that the gradient is taken at"
            ) from None
        return self.norm(J - target)
