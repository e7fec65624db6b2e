"""Embedding: y = W[ids]. Ids are integers, without tangent or gradient; W̄ sums ζ over the places of each id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Tensors, add
from .registry import Application, function_rule, module_rule


class Embedding(Layer):
    """Rows of a table (V, E) for ids (…); the row `padding` gets no gradient, `by_frequency` divides by counts."""

    autocast = "same"

    def __init__(self, padding: int | None, by_frequency: bool) -> None:
        self._padding, self._by_frequency = padding, by_frequency

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.reference((), inputs, params), (inputs[0],)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (None,)

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        rows = params[0].shape[0]
        padding = -1 if self._padding is None else self._padding % rows
        part = torch.ops.aten.embedding_dense_backward.default(g, saved[0], rows, padding, self._by_frequency)
        return (add(sums[0], part),)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return F.embedding(inputs[0], params[0], self._padding, scale_grad_by_freq=self._by_frequency)


@module_rule(nn.Embedding, config=("padding_idx", "max_norm", "scale_grad_by_freq", "sparse"))
def _module(m: nn.Embedding) -> Application | None:
    if m.max_norm is not None or m.sparse:
        return None
    return Application(Embedding(m.padding_idx, m.scale_grad_by_freq), params=("weight",))


@function_rule(F.embedding)
def _function(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Application | None:
    if max_norm is not None or sparse:
        return None
    return Application(Embedding(padding_idx, scale_grad_by_freq), inputs=(input,), params=(weight,))
