"""A parameter used as a value (class token, position embedding, layer scale): y = θ, from no input.

    θ̄  Σ ζ        no tangent: v does not depend on θ

With it a layer of several values has one form, whichever of them are parameters: its curvature map gives the cotangent
of the parameter too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Layer, Tensors, add


class ParameterValue(Layer):
    """θ as a value."""

    aliases = True
    autocast = "same"

    @property
    def name(self) -> str:
        return "Parameter"

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return params[0], ()

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        return (add(sums[0], g),)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return params[0]
