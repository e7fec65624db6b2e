"""Dropout: y = m x, with one mask m (0 or 1/(1 − p)) a forward, the same in all sweeps.

Dropout2d has one number for each channel of each sample, stochastic depth one for each sample. A mask is drawn as torch
(or torchvision) draws it, so that the same seed gives the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Tensors
from .registry import Application, function_rule, module_rule


class Dropout(Layer):
    """m x with m = `mask(x, p)`; host values are (p, training)."""

    aliases = follows_layout = True
    autocast = "same"

    def __init__(self, name: str, mask: Callable[[Tensor, float], Tensor]) -> None:
        self._name, self._mask = name, mask

    @property
    def name(self) -> str:
        return self._name

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x, (p, training) = inputs[0], host
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if not training or p == 0 or x.numel() == 0:
            return x, (None,)
        mask = self._mask(x, p)
        return x * mask, (mask,)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (_masked(g, saved[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return _masked(tangents[0], saved[0])

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return _masked(inputs[0], saved[0])


def _of_elements(x: Tensor, p: float) -> Tensor:
    if p == 1:
        return torch.zeros_like(x)
    if x.is_cuda:
        return torch.native_dropout(torch.ones_like(x), p, True)[0]
    return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def _of_channels(x: Tensor, p: float) -> Tensor:
    if p == 1:
        return x.new_zeros(())
    return x.new_empty([*x.shape[:2], *[1] * (x.dim() - 2)]).bernoulli_(1 - p).div_(1 - p)


def _of_samples(x: Tensor, p: float) -> Tensor:
    return _survivors(x.new_empty([x.shape[0], *[1] * (x.dim() - 1)]), p)


def _of_batches(x: Tensor, p: float) -> Tensor:
    return _survivors(x.new_empty([1] * x.dim()), p)


def _survivors(mask: Tensor, p: float) -> Tensor:
    mask.bernoulli_(1 - p)
    return mask if p == 1 else mask.div_(1 - p)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


@module_rule(nn.Dropout, config=("p", "training"))
def _module(module: nn.Dropout) -> Application:
    return _function(None, module.p, module.training)


@function_rule(F.dropout)
def _function(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Application:
    return Application(Dropout("Dropout", _of_elements), inputs=(input,), host=(p, training))


@module_rule(nn.Dropout2d, config=("p", "training"))
def _of_channels_module(module: nn.Dropout2d) -> Application:
    return _of_channels_function(None, module.p, module.training)


@function_rule(F.dropout2d)
def _of_channels_function(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Application:
    return Application(Dropout("Dropout2d", _of_channels), inputs=(input,), host=(p, training))


@function_rule("torchvision.ops.stochastic_depth.stochastic_depth")
def _stochastic_depth(input: Any, p: float, mode: str, training: bool = True) -> Application | None:
    masks = {"row": _of_samples, "batch": _of_batches}
    if mode not in masks:
        return None
    return Application(Dropout("StochasticDepth", masks[mode]), inputs=(input,), host=(p, training))
