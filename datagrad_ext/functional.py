"""Layers as functions, with torch.nn.functional's signatures, for models written by hand.

    y = functional.relu(functional.linear(x, weight, bias))

Each call is a network of one layer behind the same two autograd Functions, so a data gradient of a hand-written model
is differentiated on the same schedule. Losses with a fused second order are here too (`cross_entropy`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .autograd import apply
from .layers import Application, rules_of_function
from .losses import cross_entropy
from .network import refusal
from .precision import Precision, entering
from .program import Program, Ref, Step
from .reference import warn_once
from .single import Single

_warned: set[str] = set()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. Shapes: input (…, in), weight (out, in), bias (out,). Equivalent to F.linear(input, weight, bias)."""
    return _call(F.linear, (input, weight, bias))


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution of (N, C, L) with (C', C/groups, K). Equivalent to F.conv1d with the same arguments."""
    return _call(F.conv1d, (input, weight, bias, stride, padding, dilation, groups))


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution of (N, C, H, W) with (C', C/groups, K, K). Equivalent to F.conv2d with the same arguments."""
    return _call(F.conv2d, (input, weight, bias, stride, padding, dilation, groups))


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution of (N, C, D, H, W) with (C', C/groups, K, K, K). Equivalent to F.conv3d with the same arguments."""
    return _call(F.conv3d, (input, weight, bias, stride, padding, dilation, groups))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm of (N, C, …); all others are (C,). Equivalent to F.batch_norm with the same arguments."""
    return _call(F.batch_norm, (input, running_mean, running_var, weight, bias, training, momentum, eps))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance norm of (N, C, …); all others are (C,). Equivalent to F.instance_norm with the same arguments."""
    return _call(F.instance_norm, (input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps))


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group norm of (N, C, …), weight and bias (C,). Equivalent to F.group_norm with the same arguments."""
    return _call(F.group_norm, (input, num_groups, weight, bias, eps))


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm of (…, *normalized_shape), weight and bias of that shape. Equivalent to F.layer_norm."""
    return _call(F.layer_norm, (input, normalized_shape, weight, bias, eps))


def relu(input: Tensor) -> Tensor:
    """max(x, 0). Equivalent to F.relu(input)."""
    return _call(F.relu, (input,))


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x for x > 0, else negative_slope · x. Equivalent to F.leaky_relu(input, negative_slope)."""
    return _call(F.leaky_relu, (input, negative_slope))


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, and x where beta x > threshold. Equivalent to F.softplus(input, beta, threshold)."""
    return _call(F.softplus, (input, beta, threshold))


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent. Equivalent to torch.tanh(input)."""
    return _call(torch.tanh, (input,))


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(−x)). Equivalent to torch.sigmoid(input)."""
    return _call(torch.sigmoid, (input,))


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x for x > 0, else alpha (exp(x) − 1). Equivalent to F.elu(input, alpha)."""
    return _call(F.elu, (input, alpha))


def silu(input: Tensor) -> Tensor:
    """x · sigmoid(x). Equivalent to F.silu(input)."""
    return _call(F.silu, (input,))


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Φ(x), or its tanh approximation. Equivalent to F.gelu(input, approximate=approximate)."""
    return _call(F.gelu, (input,), (("approximate", approximate),))


def _call(
    function: Callable[..., Tensor], arguments: tuple[Any, ...], named: tuple[tuple[str, Any], ...] = ()
) -> Tensor:
    """`function(*arguments)` as a network of one layer, or on the reference path."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    reason = _refusal(tensors) if torch.is_grad_enabled() else None
    if reason is not None:
        warn_once(_warned, f"functional.{function.__name__}: {reason}")
    if reason is not None or not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return function(*arguments, **dict(named))
    fixed = tuple(None if isinstance(a, Tensor) else _frozen(a) for a in arguments)
    found = _program(function, fixed, tuple(isinstance(a, Tensor) for a in arguments), named)
    if found is None:
        return function(*arguments, **dict(named))
    program, inputs, params = found
    if torch._C._is_any_autocast_enabled():
        tensors = _autocast(program, tensors)
    return apply(program, [tensors[i] for i in inputs], [tensors[i] for i in params], _warned)[0]


def _autocast(program: Program, tensors: list[Tensor]) -> list[Tensor]:
    """The arguments as autocast casts them, under ordinary autograd."""
    precision = Precision.of(tensors)
    dtype = None if precision is None else precision.target(program.steps[0].layer)  # type: ignore[union-attr]
    return entering([(i, dtype) for i in range(len(tensors))], tensors)


def _refusal(tensors: list[Tensor]) -> str | None:
    if torch.compiler.is_compiling():
        return "torch.compile traces the call"
    return refusal([t for t in tensors if t.requires_grad])


@functools.lru_cache(maxsize=256)
def _program(
    function: Any, fixed: tuple, is_tensor: tuple[bool, ...], named: tuple
) -> tuple[Program, list[_Slot], list[_Slot]] | None:
    """The program of one call, and which of its tensors are inputs (first x, then host values) and parameters.

    None for options that PyTorch refuses, in its own words.
    """
    slots = iter(map(_Slot, range(sum(is_tensor))))
    arguments = [next(slots) if tensor else value for tensor, value in zip(is_tensor, fixed, strict=True)]
    application: Application | None = rules_of_function(function)[0](*arguments, **dict(named))
    if application is None:
        return None
    params = [slot for slot in application.params if slot is not None]
    inputs = [*application.inputs, *[a for a in application.host if isinstance(a, _Slot)]]
    host = tuple(Ref(inputs.index(a)) if isinstance(a, _Slot) else a for a in application.host)
    output = len(inputs)
    step = Step(application.layer, (0,), output, tuple(range(len(params))), host, function.__name__)
    return Single.of(Program(len(inputs), len(params), (step,), (output,))), inputs, params


class _Slot(int):
    """A tensor among the arguments of a call, by its place."""


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


__all__ = [
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv3d",
    "cross_entropy",
    "elu",
    "gelu",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]
