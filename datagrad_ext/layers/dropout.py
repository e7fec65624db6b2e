"""Dropout: y = m x, with one mask m (0 or 1/(1 − p)) a forward, the same in all sweeps.

The mask is drawn as torch draws it, so that the same seed gives the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Tensors
from .registry import Application, function_rule, module_rule


class Dropout(Layer):
    """Dropout of single elements; host values are (p, training)."""

    aliases = follows_layout = True
    autocast = "same"

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x, (p, training) = inputs[0], host
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if not training or p == 0 or x.numel() == 0:
            return x, (None,)
        mask = _mask(x, p)
        return x * mask, (mask,)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (_masked(g, saved[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return _masked(tangents[0], saved[0])

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return _masked(inputs[0], saved[0])


def _mask(x: Tensor, p: float) -> Tensor:
    """m, from the same random numbers as torch's own dropout of x."""
    if p == 1:
        return torch.zeros_like(x)
    if x.is_cuda:
        return torch.native_dropout(torch.ones_like(x), p, True)[0]
    return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


@module_rule(nn.Dropout, config=("p", "training"))
def _module(module: nn.Dropout) -> Application:
    return Application(Dropout(), host=(module.p, module.training))


@function_rule(F.dropout)
def _function(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Application:
    return Application(Dropout(), inputs=(input,), host=(p, training))
