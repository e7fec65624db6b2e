"""Penalties on components of a data gradient J (N, ...) along given directions v.

`v` has the shape of one sample (...) for the same directions at every sample, or (N, ...) for each its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Directional:
    """Σ_k (v_kᵀ J)², with no factor ½: tangent propagation (Simard et al. 1992). J (N, ...) to (N,).

    `directions` is (K, ...), or (N, K, ...) where every sample has its own.

    Raises:
        ValueError: directions whose shape is neither.
    """

    directions: Tensor

    def __call__(self, J: Tensor) -> Tensor:
        v, sample = self.directions, list(J.shape[1:])
        if list(v.shape[1:]) == sample:
            v = v.expand(len(J), *v.shape)
        elif v.dim() != J.dim() + 1 or list(v.shape[2:]) != sample or len(v) != len(J):
            raise ValueError(
                f"Directional: directions must have shape [K, *{sample}] or [{len(J)}, K, *{sample}] "
                f"for a data gradient of shape {list(J.shape)}, got {list(v.shape)}"
            )
        return (v.flatten(2) @ J.reshape(len(J), -1, 1)).square().sum((1, 2))


@dataclass(frozen=True, eq=False)
class Along:
    """⟨v, J⟩: linear in J, so its finite-difference estimate is a plain step to x + φ v. J (N, ...) to (N,).

    Raises:
        ValueError: a direction whose shape is neither that of J nor of one sample.
    """

    direction: Tensor

    def __call__(self, J: Tensor) -> Tensor:
        if self.direction.shape not in (J.shape, J.shape[1:]):
            raise ValueError(
                f"Along: the direction must have the shape of the data gradient {list(J.shape)} or of one sample, "
                f"got {list(self.direction.shape)}"
            )
        return (self.direction * J).flatten(1).sum(1) if J.dim() > 1 else self.direction * J
