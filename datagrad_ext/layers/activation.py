"""Activations with the bias in front of them: y = f(x + b), element by element.

    vjp  f′(z) g      jvp  f′(z) t      curvature  f″(z) Σ t δ      b̄ = Σ ζ_x over all dimensions but the channel

with z = x + b. The ReLU family saves one bit an element and has no curvature; smooth activations (the rows of
`ops.activation.ACTIVATIONS`) save x and recompute f′ and f″. In sweep 4 the gate, the curvature and the bias gradient
are one pass. The bias is None unless a fusion pass has moved it here from the layer before (`with_bias`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.activation import ACTIVATIONS, Activation
from ..ops.chain import word
from .base import FLOAT32_ON_CUDA, Layer, Pairs, Tensors, add
from .registry import Application, function_rule, module_rule

_ops = torch.ops.datagrad


class _Activation(Layer):
    """What both families share: the optional bias along `dim`."""

    follows_layout = True
    autocast: str | Mapping[str, str] = "same"

    def __init__(self) -> None:
        self.dim: int | None = None

    def with_bias(self, dim: int) -> _Activation:
        """The same activation with a bias parameter along dimension `dim` of its input."""
        layer = type(self)(*self._arguments())
        layer.dim = dim
        return layer

    def _arguments(self) -> tuple:
        raise NotImplementedError

    def _channel(self, x: Tensor) -> int:
        return 0 if self.dim is None else self.dim % x.dim()

    def _biased(self, x: Tensor, params: Tensors) -> Tensor:
        """z = x + b in plain PyTorch."""
        bias = params[0] if params else None
        if bias is None:
            return x
        return x + bias.view(-1, *[1] * (x.dim() - 1 - self._channel(x)))

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        zeta, pairs = (g, []) if tangents is None else (None, [(g, tangents)])
        return self.reverse(saved, params, zeta, pairs, (True,), wanted, sums)[1]


class Rectifier(_Activation):
    """ReLU (slope 0) and LeakyReLU; saves the mask as bits."""

    ops = ("relu_forward", "relu_gate", "relu_reverse")

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = float(slope)

    @property
    def name(self) -> str:
        head = "ReLU" if self.slope == 0 else f"LeakyReLU({self.slope:g})"
        return head if self.dim is None else f"bias + {head}"

    def link(self, n_params: int) -> str | None:
        return word("relu", n_params == 1, [self.slope])

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x = inputs[0]
        channel = self._channel(x)
        y, bits = _ops.relu_forward.default(x, params[0] if params else None, channel, self.slope)
        return y, (bits, not y.is_contiguous(), channel)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (_ops.relu_gate.default(g, saved[0], self.slope, saved[1]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return _ops.relu_gate.default(tangents[0], saved[0], self.slope, saved[1])

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Pairs,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        if zeta is None:
            return (None,), sums
        if True in wanted_params:
            x_bar, bias = _ops.relu_reverse.default(zeta, saved[0], self.slope, saved[1], saved[2])
            return (x_bar,), (add(sums[0], bias),)
        return self.vjp(saved, params, zeta, wanted_inputs), sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        z = self._biased(inputs[0], params)
        return F.relu(z) if self.slope == 0 else F.leaky_relu(z, self.slope)

    def _arguments(self) -> tuple:
        return (self.slope,)


class SmoothActivation(_Activation):
    """A row of the table of smooth activations; saves its input."""

    curved = paired = True
    ops = ("smooth_forward", "smooth_gate", "smooth_reverse")

    def __init__(self, row: Activation, constants: tuple[float, ...]) -> None:
        super().__init__()
        self.row, self.constants = row, [float(c) for c in constants]
        if row.name == "softplus":
            self.autocast = FLOAT32_ON_CUDA

    @property
    def name(self) -> str:
        constants = ", ".join(f"{c:g}" for c in self.constants)
        head = f"{self.row.name}({constants})" if constants else self.row.name
        return head if self.dim is None else f"bias + {head}"

    def link(self, n_params: int) -> str | None:
        return word(self.row.name, n_params == 1, self.constants)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        x, channel = inputs[0], self._channel(inputs[0])
        bias = params[0] if params else None
        return _ops.smooth_forward.default(x, bias, channel, self.row.name, self.constants), (x, channel)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._gate(g, saved, params),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._gate(tangents[0], saved, params)

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        return self.reverse(saved, params, None, pairs, wanted, (), ())[0]

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Pairs,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        if zeta is None and not pairs:
            return (None,), sums
        x, channel = saved
        want_bias = True in wanted_params
        tangents = [t for _, (t,) in pairs]
        cotangents = [delta for delta, _ in pairs]
        x_bar, bias = _ops.smooth_reverse.default(
            zeta,
            tangents,
            cotangents,
            x,
            params[0] if params else None,
            channel,
            self.row.name,
            self.constants,
            want_bias,
        )
        return (x_bar,), (add(sums[0], bias),) if want_bias else sums

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return self.row.f(self._biased(inputs[0], params), *self.constants)

    def _gate(self, g: Tensor, saved: Any, params: Tensors) -> Tensor:
        x, channel = saved
        bias = params[0] if params else None
        return _ops.smooth_gate.default(g, x, bias, channel, self.row.name, self.constants)

    def _arguments(self) -> tuple:
        return self.row, tuple(self.constants)


@module_rule(nn.ReLU, config=("inplace",))
def _relu_module(module: nn.ReLU) -> Application:
    return Application(Rectifier())


@module_rule(nn.LeakyReLU, config=("negative_slope", "inplace"))
def _leaky_module(module: nn.LeakyReLU) -> Application | None:
    return _leaky_relu(None, module.negative_slope)


@function_rule(F.relu, F.relu_, torch.relu, torch.relu_, methods=("relu", "relu_"))
def _relu(input: Any, inplace: bool = False) -> Application:
    return Application(Rectifier(), inputs=(input,))


@function_rule(F.leaky_relu, F.leaky_relu_)
def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Application | None:
    if negative_slope == 0:
        return None  # not a ReLU: 0 · inf is NaN
    return Application(Rectifier(negative_slope), inputs=(input,))


@module_rule(nn.GELU, config=("approximate",))
def _gelu_module(module: nn.GELU) -> Application | None:
    return _gelu(None, approximate=module.approximate)


@function_rule(F.gelu)
def _gelu(input: Any, *, approximate: str = "none") -> Application | None:
    if approximate not in ("none", "tanh"):
        return None
    row = ACTIVATIONS["gelu" if approximate == "none" else "gelu_tanh"]
    return Application(SmoothActivation(row, ()), inputs=(input,))


def _register(row: Activation) -> None:
    """Rules of one row: its module class, its functions, and the tensor methods of the same name."""
    defaults = row.module()
    names = row.constants

    @module_rule(row.module, config=names)
    def _(module: Any) -> Application:
        return Application(SmoothActivation(row, tuple(getattr(module, name) for name in names)))

    @function_rule(*row.functions, methods=(row.name, row.name + "_") if hasattr(Tensor, row.name) else ())
    def _(input: Any, *constants: Any, inplace: bool = False, **named: Any) -> Application | None:
        if len(constants) > len(names):
            return None
        values = {name: getattr(defaults, name) for name in names}
        values.update(zip(names, constants, strict=False))
        if not named.keys() <= values.keys():
            return None
        return Application(SmoothActivation(row, tuple((values | named).values())), inputs=(input,))


for _row in ACTIVATIONS.values():
    if _row.module is not nn.GELU:
        _register(_row)
