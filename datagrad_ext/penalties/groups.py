"""Group penalties on a data gradient: Σ over groups of the norm of the group, which switches whole groups off."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .distances import Penalty
from .norms import l2


@dataclass(frozen=True)
class Group:
    """Σ_g ‖J_g‖ over groups g of the entries of J (N, C, ...). J to (N,).

    Args:
        patch: None for one group per channel; else the size of a patch, an int or one for each dimension behind C, for
            one group per patch (all channels together). It must divide the sizes of J.
        norm: the norm of a group, any callable (rows, entries) -> (rows,).

    Raises:
        ValueError: J without a channel dimension, or a patch that does not fit J.
    """

    patch: int | tuple[int, ...] | None = None
    norm: Penalty = l2

    def __call__(self, J: Tensor) -> Tensor:
        if J.dim() < 2:
            raise ValueError(f"Group: the data gradient must have shape (N, C, ...), got {list(J.shape)}")
        groups = J.flatten(2) if self.patch is None else self._patches(J)
        rows = groups.reshape(-1, math.prod(groups.shape[2:]))
        return self.norm(rows).view(groups.shape[:2]).sum(1)

    def _patches(self, J: Tensor) -> Tensor:
        """(N, patches, entries of a patch)."""
        sizes = J.shape[2:]
        patch = (self.patch,) * len(sizes) if isinstance(self.patch, int) else self.patch or ()
        fits = len(patch) == len(sizes) > 0 and all(p > 0 and s % p == 0 for s, p in zip(sizes, patch, strict=True))
        if not fits:
            raise ValueError(
                f"Group: a patch of {self.patch} does not divide the sizes {list(sizes)} behind the channels of "
                f"a data gradient of shape {list(J.shape)}; give one divisor for each"
            )
        for k, p in enumerate(patch):  # (N, C, n1, p1, n2, p2, ...)
            J = J.unflatten(2 + 2 * k, (sizes[k] // p, p))
        outer, inner = [2 + 2 * k for k in range(len(patch))], [3 + 2 * k for k in range(len(patch))]
        return J.permute(0, *outer, 1, *inner).flatten(1, len(patch)).flatten(2)
