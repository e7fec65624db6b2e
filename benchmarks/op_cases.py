"""The table of operations: ours beside what PyTorch does for the same result.

A row's `inputs` are float64 tensors. `ours` and `torch` take them in the measured dtype, do what a network
has done before that point (saved masks, recorded graphs), and return the callable that is timed. That one
returns a tuple of tensors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cases import DTYPES

Call = Callable[[], tuple[Tensor, ...]]
Build = Callable[..., Call]


@dataclass(frozen=True)
class Operation:
    """A row; `shape` is that of the main input.

    `passes` is how many tensors of that size the operation reads and writes at least; None where it is bound by
    products. `precision` is a key of cases.DTYPES.
    """

    name: str
    title: str
    shape: tuple[int, ...]
    inputs: Callable[[tuple[int, ...]], tuple[Tensor, ...]]
    ours: Build
    torch: Build
    passes: int | None
    channels_last: bool = False
    precision: str = "float32"

    @property
    def bytes(self) -> int | None:
        """What it moves at least."""
        size = DTYPES[self.precision].itemsize
        return None if self.passes is None else self.passes * prod(self.shape) * size


def _datagrad(name: str) -> Any:
    import datagrad_ext  # noqa: F401  (importing it registers the operations)

    return getattr(torch.ops.datagrad, name).default


def _along_channels(bias: Tensor, x: Tensor) -> Tensor:
    return bias.view(-1, *[1] * (x.dim() - 2))


def _but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _bits(x: Tensor, bias: Tensor) -> Tensor:
    return _datagrad("relu_forward")(x, bias, 1, 0.0)[1]


# Activations: x, bias, g, ζ, t


def _activation_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, g, zeta, t = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    return x, torch.randn(shape[1], dtype=torch.float64), g, zeta, t


def _relu_forward(x: Tensor, bias: Tensor, *_: Tensor) -> Call:
    op = _datagrad("relu_forward")
    return lambda: (op(x, bias, 1, 0.0)[0],)


def _torch_relu_forward(x: Tensor, bias: Tensor, *_: Tensor) -> Call:
    bias = _along_channels(bias, x)
    return lambda: ((x + bias).relu_(),)


def _relu_gate(x: Tensor, bias: Tensor, g: Tensor, *_: Tensor) -> Call:
    op, bits = _datagrad("relu_gate"), _bits(x, bias)
    return lambda: (op(g, bits, 0.0, not x.is_contiguous()),)


def _torch_relu_gate(x: Tensor, bias: Tensor, g: Tensor, *_: Tensor) -> Call:
    op, y = torch.ops.aten.threshold_backward.default, (x + _along_channels(bias, x)).relu_()
    return lambda: (op(g, y, 0),)


def _relu_reverse(x: Tensor, bias: Tensor, g: Tensor, *_: Tensor) -> Call:
    op, bits = _datagrad("relu_reverse"), _bits(x, bias)
    return lambda: op(g, bits, 0.0, not x.is_contiguous(), 1)


def _torch_relu_reverse(x: Tensor, bias: Tensor, g: Tensor, *_: Tensor) -> Call:
    gate, dims = _torch_relu_gate(x, bias, g), _but_channels(x)

    def call() -> tuple[Tensor, ...]:
        (gx,) = gate()
        return gx, gx.sum(dims)

    return call


_SMOOTH: dict[str, tuple[list[float], Callable[[Tensor], Tensor]]] = {
    "softplus": ([100.0, 20.0], partial(F.softplus, beta=100)),
    "tanh": ([], torch.tanh),
    "silu": ([], F.silu),
    "gelu": ([], F.gelu),
}


def _smooth_forward(kind: str, x: Tensor, bias: Tensor, *_: Tensor) -> Call:
    op, constants = _datagrad("smooth_forward"), _SMOOTH[kind][0]
    return lambda: (op(x, bias, 1, kind, constants),)


def _torch_smooth_forward(kind: str, x: Tensor, bias: Tensor, *_: Tensor) -> Call:
    f, bias = _SMOOTH[kind][1], _along_channels(bias, x)
    return lambda: (f(x + bias),)


def _smooth_gate(kind: str, x: Tensor, bias: Tensor, g: Tensor, *_: Tensor) -> Call:
    op, constants = _datagrad("smooth_gate"), _SMOOTH[kind][0]
    return lambda: (op(g, x, bias, 1, kind, constants),)


def _torch_smooth_gate(kind: str, x: Tensor, bias: Tensor, g: Tensor, *_: Tensor) -> Call:
    z = (x + _along_channels(bias, x)).requires_grad_()
    y = _SMOOTH[kind][1](z)
    return lambda: torch.autograd.grad(y, z, g, retain_graph=True)


def _smooth_reverse(kind: str, x: Tensor, bias: Tensor, g: Tensor, zeta: Tensor, t: Tensor) -> Call:
    op, constants = _datagrad("smooth_reverse"), _SMOOTH[kind][0]
    return lambda: op(zeta, [t], [g], x, bias, 1, kind, constants, True)


def _torch_smooth_reverse(kind: str, x: Tensor, bias: Tensor, g: Tensor, zeta: Tensor, t: Tensor) -> Call:
    z = (x + _along_channels(bias, x)).requires_grad_()
    y = _SMOOTH[kind][1](z)
    (gz,) = torch.autograd.grad(y, z, g, create_graph=True)
    dims = _but_channels(x)

    def call() -> tuple[Tensor, ...]:
        (gx,) = torch.autograd.grad((y, gz), z, (zeta, t), retain_graph=True)
        return gx, gx.sum(dims)

    return call


# Normalisation: x, weight, bias, g, ζ, t. The number is that of the groups, 0 for the batch.

_NORMS: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "batch": (0, lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "group": (8, lambda x, w, b: F.group_norm(x, 8, w, b)),
    "layer": (1, lambda x, w, b: F.layer_norm(x, w.shape, w, b)),
}


def _norm_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, g, zeta, t = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    weight, bias = (torch.randn(shape[1], dtype=torch.float64) for _ in range(2))
    return x, weight, bias, g, zeta, t


def _norm_forward(kind: str, x: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Call:
    op, groups = _datagrad("normalise_forward"), _NORMS[kind][0]
    return lambda: (op(x, weight, bias, None, None, groups, 0.0, 1e-5)[0],)


def _torch_norm_forward(kind: str, x: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Call:
    norm = _NORMS[kind][1]
    return lambda: (norm(x, weight, bias),)


def _norm_reverse(
    kind: str, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor, zeta: Tensor, t: Tensor
) -> Call:
    op, groups = _datagrad("normalise_reverse"), _NORMS[kind][0]
    _, mean, rstd = _datagrad("normalise_forward")(x, weight, bias, None, None, groups, 0.0, 1e-5)
    return lambda: op(zeta, [t], [g], x, mean, rstd, weight, groups, None, 0.0, True, True)


def _torch_norm_reverse(
    kind: str, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor, zeta: Tensor, t: Tensor
) -> Call:
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    y = _NORMS[kind][1](*leaves)
    (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
    return lambda: torch.autograd.grad((y, gx), leaves, (zeta, t), retain_graph=True)


# Penalties: J, weight

_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda J: J.abs().sum(1),
    "l2": lambda J: J.norm(dim=1),
    "l2_squared": lambda J: J.square().sum(1),
    "linf": lambda J: J.abs().amax(1),
}


def _penalty_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.randn(shape, dtype=torch.float64), torch.rand(shape[0], dtype=torch.float64)


def _penalty(kind: str, J: Tensor, weight: Tensor) -> Call:
    value_of, seed_of = _datagrad("penalty_value"), _datagrad("penalty_seed")
    weight = weight.to(value_of(J, kind).dtype)

    def call() -> tuple[Tensor, ...]:
        value = value_of(J, kind)
        return value, seed_of(J, value, weight, kind)

    return call


def _torch_penalty(kind: str, J: Tensor, weight: Tensor) -> Call:
    J, formula = J.requires_grad_(), _PENALTIES[kind]

    def call() -> tuple[Tensor, ...]:
        value = formula(J)
        return value, *torch.autograd.grad(value, J, weight)

    return call


# Cross-entropy: logits, target, weight, v


def _cross_entropy_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    rows, classes = shape
    logits, v = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    return logits, torch.randint(classes, (rows,)), torch.rand(rows, dtype=torch.float64), v


def _ce_forward(logits: Tensor, target: Tensor, *_: Tensor) -> Call:
    op = _datagrad("cross_entropy_forward")
    return lambda: (op(logits, target, 0.0)[0],)


def _torch_ce_forward(logits: Tensor, target: Tensor, *_: Tensor) -> Call:
    return lambda: (F.cross_entropy(logits, target, reduction="none"),)


def _ce_vjp(logits: Tensor, target: Tensor, weight: Tensor, *_: Tensor) -> Call:
    op, lse = _datagrad("cross_entropy_vjp"), _datagrad("cross_entropy_forward")(logits, target, 0.0)[1]
    weight = weight.to(lse.dtype)
    return lambda: (op(logits, target, lse, weight, 0.0),)


def _torch_ce_vjp(logits: Tensor, target: Tensor, weight: Tensor, *_: Tensor) -> Call:
    logits = logits.requires_grad_()
    loss = F.cross_entropy(logits, target, reduction="none")
    return lambda: torch.autograd.grad(loss, logits, weight, retain_graph=True)


def _ce_hvp(logits: Tensor, target: Tensor, weight: Tensor, v: Tensor) -> Call:
    op, lse = _datagrad("cross_entropy_hvp"), _datagrad("cross_entropy_forward")(logits, target, 0.0)[1]
    weight = weight.to(lse.dtype)
    return lambda: op(logits, target, lse, weight, v, 0.0)


def _torch_ce_hvp(logits: Tensor, target: Tensor, weight: Tensor, v: Tensor) -> Call:
    logits, weight = logits.requires_grad_(), weight.requires_grad_()
    loss = F.cross_entropy(logits, target, reduction="none")
    (delta,) = torch.autograd.grad(loss, logits, weight, create_graph=True)
    return lambda: torch.autograd.grad(delta, (logits, weight), v, retain_graph=True)


# Second order of a convolution: x, w, g, v -> gradients of <v, J> for w and g


def _convolution_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    channels = shape[1]
    x, g, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    return x, torch.randn(channels, channels, 3, 3, dtype=torch.float64) / channels, g, v


def _second_order(conv2d: Callable[..., Tensor], x: Tensor, w: Tensor, g: Tensor, v: Tensor) -> Call:
    x, w, g = x.requires_grad_(), w.requires_grad_(), g.requires_grad_()
    y = conv2d(x, w, padding=1)
    (J,) = torch.autograd.grad(y, x, g, create_graph=True)
    return lambda: torch.autograd.grad(J, (w, g), v, retain_graph=True)


def _convolution_second_order(*inputs: Tensor) -> Call:
    from datagrad_ext import functional

    return _second_order(functional.conv2d, *inputs)


# Titles, both sides, passes

Row = tuple[str, Build, Build, int]

_RELU: dict[str, Row] = {
    "forward": ("bias + ReLU", _relu_forward, _torch_relu_forward, 2),
    "gate": ("ReLU gate", _relu_gate, _torch_relu_gate, 2),
    "reverse": ("ReLU gate + bias gradient", _relu_reverse, _torch_relu_reverse, 2),
}
_SMOOTH_SWEEPS: dict[str, Row] = {
    "forward": ("bias + {}", _smooth_forward, _torch_smooth_forward, 2),
    "gate": ("{} gate", _smooth_gate, _torch_smooth_gate, 3),
    "reverse": ("{} gate + curvature + bias gradient", _smooth_reverse, _torch_smooth_reverse, 5),
}
_NORM_SWEEPS: dict[str, Row] = {
    "forward": ("{} norm", _norm_forward, _torch_norm_forward, 2),
    "reverse": ("{} norm, sweep 4 whole", _norm_reverse, _torch_norm_reverse, 5),
}
_CROSS_ENTROPY: dict[str, Row] = {
    "forward": ("cross-entropy", _ce_forward, _torch_ce_forward, 1),
    "vjp": ("cross-entropy gradient", _ce_vjp, _torch_ce_vjp, 2),
    "hvp": ("cross-entropy Hessian product", _ce_hvp, _torch_ce_hvp, 3),
}


def _relu(shape: tuple[int, ...], channels_last: bool) -> Iterator[Operation]:
    for sweep, (title, ours, theirs, passes) in _RELU.items():
        yield Operation(f"relu_{sweep}", title, shape, _activation_inputs, ours, theirs, passes, channels_last)


def _smooth(shape: tuple[int, ...]) -> Iterator[Operation]:
    for kind in _SMOOTH:
        for sweep, (title, ours, theirs, passes) in _SMOOTH_SWEEPS.items():
            sides = partial(ours, kind), partial(theirs, kind)
            yield Operation(f"{kind}_{sweep}", title.format(kind), shape, _activation_inputs, *sides, passes)


def _norms(shape: tuple[int, ...], *kinds: str, channels_last: bool = False) -> Iterator[Operation]:
    for kind in kinds:
        for sweep, (title, ours, theirs, passes) in _NORM_SWEEPS.items():
            sides = partial(ours, kind), partial(theirs, kind)
            name = f"{kind}_norm_{sweep}"
            yield Operation(name, title.format(kind), shape, _norm_inputs, *sides, passes, channels_last)


def _penalties(shape: tuple[int, ...]) -> Iterator[Operation]:
    for kind in _PENALTIES:
        sides = partial(_penalty, kind), partial(_torch_penalty, kind)
        yield Operation(f"penalty_{kind}", f"{kind} value + seed", shape, _penalty_inputs, *sides, 3)


def _cross_entropies(shape: tuple[int, ...]) -> Iterator[Operation]:
    for sweep, (title, ours, theirs, passes) in _CROSS_ENTROPY.items():
        yield Operation(f"cross_entropy_{sweep}", title, shape, _cross_entropy_inputs, ours, theirs, passes)


def _convolutions(shape: tuple[int, ...]) -> Iterator[Operation]:
    sides = _convolution_second_order, partial(_second_order, F.conv2d)
    for channels_last in (False, True):
        title = "3×3 convolution, second order"
        yield Operation("conv2d_second_order", title, shape, _convolution_inputs, *sides, None, channels_last)


def operations(device: str) -> list[Operation]:
    """The rows of one device type; a GPU gets 16 times the samples, and bfloat16 too."""
    rows = list(_rows(16 if device == "cuda" else 1))
    return rows if device == "cpu" else [replace(row, precision=p) for row in rows for p in ("float32", "bf16")]


def _rows(scale: int) -> Iterator[Operation]:
    yield from _relu((4096 * scale, 256), channels_last=False)
    yield from _relu((32 * scale, 32, 32, 32), channels_last=False)
    yield from _relu((32 * scale, 32, 32, 32), channels_last=True)
    yield from _smooth((4096 * scale, 256))
    yield from _norms((32 * scale, 32, 32, 32), "batch", "group")
    yield from _norms((32 * scale, 32, 32, 32), "batch", "group", channels_last=True)
    yield from _norms((4096 * scale, 256), "layer")
    yield from _penalties((1024 * scale, 3072))
    yield from _cross_entropies((4096 * scale, 10))
    yield from _cross_entropies((256 * scale, 1000))
    yield from _convolutions((8 * scale, 32, 16, 16))
