"""y = x in another floating dtype.

    Cast       as torch.autocast does it: float64 and integers stay as they are
    Convert    as the network's own code does it, perhaps on another device: x.float(), x.to(…), x.type_as(z)

    vjp  g in the dtype of x      jvp  t in the dtype of y
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Parameterless, Tensors
from .registry import Application, function_rule


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, if autocast may change it."""
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


class Cast(Parameterless):
    """The cast in front of a layer under autocast; the host value is the dtype."""

    aliases = follows_layout = True

    def acted(self, saved: Any) -> bool:
        return saved[0] != saved[1]

    def apply(self, *inputs: Any) -> Tensor:
        return cast(*inputs)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = cast(inputs[0], *host)
        return y, (inputs[0].dtype, y.dtype)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (g.to(saved[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return tangents[0].to(saved[1])


class Convert(Parameterless):
    """x.to(*arguments, **named), which are the host values; a second input gives the dtype in their place."""

    aliases = follows_layout = True
    autocast = "own"

    def apply(self, *inputs: Any) -> Tensor:
        x, *like, arguments, named = inputs
        return x.to(*[t.dtype for t in like], *arguments, **named)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x, y = inputs[0], self.apply(*inputs, *host)
        return y, (x.dtype, x.device, y.dtype, y.device)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        dtype, device, _, _ = saved
        return (g.to(device, dtype), *[None] * (len(wanted) - 1))

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        _, _, dtype, device = saved
        return None if tangents[0] is None or not dtype.is_floating_point else tangents[0].to(device, dtype)


@function_rule(methods=("to",))
def _to(input: Any, *arguments: Any, **named: Any) -> Application | None:
    given = [*arguments, *named.values()]
    if not named.keys() <= {"dtype", "device"} or any(isinstance(a, bool) or _is_integer(a) for a in given):
        return None
    return Application(Convert(), inputs=(input,), host=(arguments, named))


@function_rule(methods=("type",))
def _type(input: Any, dtype: Any) -> Application | None:
    return _to(input, dtype) if isinstance(dtype, torch.dtype) else None


@function_rule(methods=("type_as",))
def _type_as(input: Any, other: Any) -> Application:
    return Application(Convert(), inputs=(input, other), host=((), {}))


def _is_integer(value: Any) -> bool:
    return isinstance(value, torch.dtype) and not value.is_floating_point


def _register(method: str, dtype: torch.dtype) -> None:
    @function_rule(methods=(method,))
    def _(input: Any) -> Application | None:
        return _to(input, dtype)


_register("float", torch.float32)
_register("double", torch.float64)
_register("half", torch.float16)
_register("bfloat16", torch.bfloat16)
