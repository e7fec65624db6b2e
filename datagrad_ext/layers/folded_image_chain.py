"""FoldedImageChain: a chain of images some of whose layers have a norm by running statistics folded into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import Layer, Tensors
from .folded import Together, folds_of
from .image_chain import ImageChain


class FoldedImageChain(Together):
    """The composition of the layers; params and host values are theirs, in order."""

    inside: ImageChain
    ops = ImageChain.ops

    def __init__(
        self,
        layers: Sequence[Layer],
        n_params: Sequence[int],
        hosts: Sequence[tuple[Any, ...]],
        reads: Sequence[tuple[int, ...]],
    ) -> None:
        folds = folds_of(layers, n_params, [len(host) for host in hosts], 4)
        chain = ImageChain(layers, folds.n_inside, hosts, reads)
        super().__init__(chain, chain.name, layers, folds)
        self.compiled = replace(
            chain.compiled,
            **folds.compiled(),
            operands=folds.operands,
            saved=lambda kept, *inside: (kept, None, None, chain.compiled.saved(None, *inside)),
        )

    def covers(self, x: Any, params: Callable[[], Sequence[Tensor]]) -> bool:
        """Whether the ops are for such an input."""
        return self.inside.covers(x, lambda: self.folds.alike_inside(tuple(params())))

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        value = self.folds.values_then(self._layers, params, host, *saved[:2])
        return self.inside.value(saved[3], inputs[0], value)
