"""FoldedImageChain: a chain of images some of whose layers have a norm by running statistics folded into them
(`folded_chain.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Layer, Tensors
from .folded_chain import WithFolds
from .image_chain import ImageChain


class FoldedImageChain(WithFolds, ImageChain):
    """The composition of the layers; params and host values are theirs, in order."""

    def __init__(
        self,
        layers: Sequence[Layer],
        n_params: Sequence[int],
        hosts: Sequence[tuple[Any, ...]],
        reads: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__(layers, self._fold(layers, n_params, [len(host) for host in hosts]), hosts, reads)
        for i, words in enumerate(zip(self._words, self._words[1:], strict=False)):
            is_read = sum(values.count(i + 1) for values in reads) == 1 and reads[i + 1] == (i + 1,)
            if is_read and words[0].startswith("convolution+b") and words[1].startswith("relu:"):
                # b′ goes to the rectifier, as the biases of other convolutions have.
                self._words[i : i + 2] = words[0].replace("+b", ""), words[1].replace("relu", "relu+b")

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        def value(i: int, own: Tensors, operands: Tensors) -> Tensor:
            fold, _, place, _ = self._parts[i]
            if fold is None:
                return self.layers[i].reference(own, operands, params[place], *self._hosts[i])
            return fold.value_then(operands, params[place], saved[2][i])

        return self._value(saved[0], inputs[0], value)

    def _find_form(self, x: Tensor, params: Sequence[Tensor]) -> Any:
        seen: list[Tensor] = []
        for fold, _, own, _ in self._parts:
            found = params[own]
            seen += found if fold is None else (found[0], found[0].new_empty(1).expand(found[0].shape[0]))
        return super()._find_form(x, seen)
