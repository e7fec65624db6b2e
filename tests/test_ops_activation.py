"""The activation family: every op against its PyTorch reference and against float64 autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import assert_native, same_layout
from torch import Tensor
from torch._subclasses import FakeTensorMode

import datagrad_ext  # noqa: F401  (loads the kernels)
from datagrad_ext.ops import activation
from datagrad_ext.ops.activation import ACTIVATIONS

DEVICES = ("cpu", "cuda", "emulated")
OPS = torch.ops.datagrad
NAMES = ("relu_forward", "relu_gate", "relu_reverse", "smooth_forward", "smooth_gate", "smooth_reverse")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {  # of results of order one: some units in the last place
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}
SLOPES = (0.0, 0.1)
KINDS: list[tuple[str, list[float], Callable[[Tensor], Tensor]]] = [
    ("softplus", [1.0, 20.0], F.softplus),
    ("softplus", [3.0, 5.0], lambda z: F.softplus(z, 3.0, 5.0)),
    ("tanh", [], torch.tanh),
    ("sigmoid", [], torch.sigmoid),
    ("elu", [1.0], F.elu),
    ("elu", [0.5], lambda z: F.elu(z, 0.5)),
    ("silu", [], F.silu),
    ("gelu", [], F.gelu),
    ("gelu_tanh", [], lambda z: F.gelu(z, approximate="tanh")),
]


def dense(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def strided(*shape: int) -> Tensor:
    return dense(*shape[::-1]).permute(*reversed(range(len(shape))))


# name: (x, channel_dim), in float64
INPUTS: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "matrix": lambda: (dense(37, 24), 1),
    "odd matrix": lambda: (dense(33, 7), 1),
    "one channel": lambda: (dense(41, 1), 1),
    "vector": lambda: (dense(13), 0),
    "sequence": lambda: (dense(5, 6, 16), 1),
    "odd sequence": lambda: (dense(3, 5, 7), -2),
    "images": lambda: (dense(2, 6, 5, 8), 1),
    "channels_last": lambda: (dense(3, 16, 5, 7).contiguous(memory_format=torch.channels_last), 1),
    "odd channels_last": lambda: (dense(2, 5, 3, 3).contiguous(memory_format=torch.channels_last), 1),
    "channels_last, other channel": lambda: (
        dense(2, 5, 3, 4).contiguous(memory_format=torch.channels_last),
        2,
    ),
    "channels_last_3d": lambda: (dense(2, 9, 3, 2, 5).contiguous(memory_format=torch.channels_last_3d), 1),
    "transposed": lambda: (strided(9, 11), 1),
    "permuted": lambda: (strided(3, 4, 5, 6), 1),
    "offset": lambda: (dense(301)[1:].view(25, 12), 1),
    "many chunks": lambda: (dense(67, 1031), 1),
    "many blocks": lambda: (dense(9, 24, 43, 51), 1),
    "many blocks, channels_last": lambda: (
        dense(9, 24, 43, 51).contiguous(memory_format=torch.channels_last),
        1,
    ),
    "empty batch": lambda: (dense(0, 4), 1),
    "no channels": lambda: (dense(4, 0, 3), 1),
    "empty image": lambda: (dense(2, 3, 0, 5), 1),
}


@pytest.fixture(params=INPUTS)
def example(request: pytest.FixtureRequest, device: str) -> tuple[Tensor, Tensor, int]:
    """x, bias and the channel dimension."""
    torch.manual_seed(len(request.param))
    x, dim = INPUTS[request.param]()
    bias = dense(x.shape[dim])
    return x.to(device), bias.to(device), dim


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype)[6:])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def agree(actual: Any, reference: Any, terms: int = 1) -> None:
    """Equal to the PyTorch reference up to rounding; `terms` numbers were added up for each element."""
    actual, reference = ((r,) if isinstance(r, Tensor) else r for r in (actual, reference))
    for a, r in zip(actual, reference, strict=True):
        same_layout(a, r)
        rounding = TOLERANCE.get(a.dtype, 0.0)
        torch.testing.assert_close(a, r, rtol=4 * rounding, atol=rounding * max(1, math.sqrt(terms)), equal_nan=True)


def exact(actual: Tensor, truth: Tensor, terms: int = 1) -> None:
    """Equal to a float64 result of the same (rounded) inputs."""
    rounding = TOLERANCE[actual.dtype]
    truth = truth.detach()
    torch.testing.assert_close(
        actual.double(),
        truth,
        rtol=8 * rounding,
        atol=4 * rounding * max(1, math.sqrt(terms)),
        equal_nan=True,
    )


def broadcast(bias: Tensor, x: Tensor, dim: int) -> Tensor:
    return bias.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])


def others(x: Tensor, dim: int) -> list[int]:
    return [d for d in range(x.dim()) if d != dim % x.dim()]


def cotangents_like(x: Tensor) -> list[Tensor]:
    """Of x's shape and dtype: in x's layout, contiguous, expanded, transposed."""
    rows = torch.randn(x.shape, dtype=torch.float64).to(x)
    order = list(range(x.dim()))[::-1]
    return [
        torch.empty_like(x).copy_(rows),
        rows.contiguous(),
        torch.full((), 0.75, dtype=x.dtype, device=x.device).expand(x.shape),
        rows.permute(order).contiguous().permute(order),
    ]


@pytest.mark.parametrize("slope", SLOPES)
def test_relu_against_autograd(example: tuple[Tensor, Tensor, int], dtype: torch.dtype, slope: float) -> None:
    x, bias, dim = example[0].to(dtype), example[1].to(dtype), example[2]
    leaf = x.double().requires_grad_()
    b = bias.double().requires_grad_()
    truth = F.leaky_relu(leaf + broadcast(b, x, dim), slope)
    y, bits = OPS.relu_forward.default(x, bias, dim, slope)
    exact(y, truth)
    last = activation.is_channels_last(x)
    for g in cotangents_like(x):
        gx, gb = torch.autograd.grad(truth, [leaf, b], g.double(), retain_graph=True)
        exact(OPS.relu_gate.default(g, bits, slope, last), gx)
        ours, sums = OPS.relu_reverse.default(g, bits, slope, last, dim)
        exact(ours, gx)
        exact(sums, gb, x.numel())


@pytest.mark.parametrize("slope", SLOPES)
def test_relu_of_a_sum_against_autograd(
    example: tuple[Tensor, Tensor, int], dtype: torch.dtype, slope: float
) -> None:
    x = example[0].to(dtype)
    last = activation.is_channels_last(x)
    for other in cotangents_like(x):
        leaves = [x.double().requires_grad_(), other.double().requires_grad_()]
        truth = F.leaky_relu(leaves[0] + leaves[1], slope)
        y, bits = OPS.relu_forward.default(x, None, 0, slope, other)
        exact(y, truth)
        agree((y, bits), activation.relu_forward(x, None, 0, slope, other))
        for g in cotangents_like(x):
            (gx,) = torch.autograd.grad(truth, leaves[:1], g.double() + x.double(), retain_graph=True)
            pushed = OPS.relu_gate.default(g, bits, slope, last, x)
            exact(pushed, gx)
            agree(pushed, activation.relu_gate(g, bits, slope, last, x))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("slope", SLOPES)
def test_relu_against_reference(
    example: tuple[Tensor, Tensor, int], dtype: torch.dtype, slope: float, with_bias: bool
) -> None:
    x, bias, dim = example[0].to(dtype), example[1].to(dtype) if with_bias else None, example[2]
    y, bits = OPS.relu_forward.default(x, bias, dim, slope)
    agree((y, bits), activation.relu_forward(x, bias, dim, slope))
    agree(OPS.relu_forward.default(x, bias, dim, slope, y), activation.relu_forward(x, bias, dim, slope, y))
    last = activation.is_channels_last(x)
    for g in cotangents_like(x):
        agree(OPS.relu_gate.default(g, bits, slope, last), activation.relu_gate(g, bits, slope, last))
        agree(
            OPS.relu_reverse.default(g, bits, slope, last, dim),
            activation.relu_reverse(g, bits, slope, last, dim),
            x.numel(),
        )


@pytest.mark.parametrize(("kind", "constants", "function"), KINDS)
def test_smooth_against_autograd(
    example: tuple[Tensor, Tensor, int],
    dtype: torch.dtype,
    kind: str,
    constants: list[float],
    function: Callable[[Tensor], Tensor],
) -> None:
    """f'(z) ζ + f''(z) Σ t δ is the gradient of <ζ, f> + Σ <t, f'(z) δ>."""
    x, bias, dim = example[0].to(dtype), example[1].to(dtype), example[2]
    leaf = x.double().requires_grad_()
    b = bias.double().requires_grad_()
    truth = function(leaf + broadcast(b, x, dim))
    exact(OPS.smooth_forward.default(x, bias, dim, kind, constants), truth)
    zeta, t, delta, u = cotangents_like(x)
    (gate,) = torch.autograd.grad(truth, leaf, delta.double(), create_graph=True)
    exact(OPS.smooth_gate.default(delta, x, bias, dim, kind, constants), gate)
    (other,) = torch.autograd.grad(truth, leaf, zeta.double(), create_graph=True)
    curved = [gate, other]
    expected = torch.autograd.grad([truth, *curved], [leaf, b], [zeta.double(), t.double(), u.double()])
    actual = OPS.smooth_reverse.default(zeta, [t, u], [delta, zeta], x, bias, dim, kind, constants, True)
    exact(actual[0], expected[0])
    exact(actual[1], expected[1], x.numel())


@pytest.mark.parametrize("pairs", [0, 1, 3])
@pytest.mark.parametrize("with_zeta", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_smooth_against_reference(
    kind: str, with_bias: bool, with_zeta: bool, pairs: int, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    constants = [1.5, 6.0][: len(ACTIVATIONS[kind].constants)]
    for name in ("odd matrix", "sequence", "channels_last", "permuted", "empty batch"):
        x, dim = INPUTS[name]()
        bias = dense(x.shape[dim]).to(device, dtype) if with_bias else None
        x = x.to(device, dtype)
        zeta, *rest = cotangents_like(x)
        arguments = (bias, dim, kind, constants)
        agree(OPS.smooth_forward.default(x, *arguments), activation.smooth_forward(x, *arguments))
        agree(OPS.smooth_gate.default(zeta, x, *arguments), activation.smooth_gate(zeta, x, *arguments))
        first = zeta if with_zeta else None
        tail = (rest[:pairs], rest[::-1][:pairs], x, *arguments)
        for bias_grad in (True, False):
            ours = OPS.smooth_reverse.default(first, *tail, bias_grad)
            agree(ours, activation.smooth_reverse(first, *tail, bias_grad), x.numel())


def test_scalar_tensor(dtype: torch.dtype, device: str) -> None:
    x = torch.tensor(-0.5, dtype=dtype, device=device)
    y, bits = OPS.relu_forward.default(x, None, 0, 0.1)
    agree((y, bits), activation.relu_forward(x, None, 0, 0.1))
    agree(OPS.relu_gate.default(x, bits, 0.1, False), activation.relu_gate(x, bits, 0.1, False))
    agree(OPS.smooth_forward.default(x, None, 0, "tanh", []), torch.tanh(x))
    ours = OPS.smooth_reverse.default(x, [x], [x], x, None, 0, "tanh", [], False)
    agree(ours, activation.smooth_reverse(x, [x], [x], x, None, 0, "tanh", [], False))


@pytest.mark.parametrize("slope", SLOPES)
def test_relu_of_nan_and_infinity(dtype: torch.dtype, device: str, slope: float) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, math.nan, -2.0], dtype=dtype).to(device)
    y, bits = OPS.relu_forward.default(x, None, 0, slope)
    torch.testing.assert_close(y, F.leaky_relu(x, slope) if slope else F.relu(x), equal_nan=True)
    agree(bits, activation.relu_forward(x, None, 0, slope)[1])
    agree(OPS.relu_gate.default(x, bits, slope, False), activation.relu_gate(x, bits, slope, False))


def extremes(dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    some = [
        0.0,
        1e-30,
        1e-4,
        0.3,
        1.0,
        1.999,
        5.0,
        9.0,
        19.99,
        20.0,
        20.01,
        50.0,
        88.0,
        89.0,
        104.0,
        1e4,
        1e18,
        largest,
    ]
    grid = torch.linspace(-12, 12, 20011, dtype=torch.float64)
    points = torch.tensor(some, dtype=torch.float64)
    return torch.cat([points, -points, grid]).to(dtype)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "constants", "function"), KINDS)
def test_values_of_f_and_its_derivatives(
    kind: str, constants: list[float], function: Callable[[Tensor], Tensor], wide: torch.dtype, device: str
) -> None:
    """Table and kernels are torch's f, f', f'' in float64, and finite where z is. The table's f is torch's own."""
    row, z = ACTIVATIONS[kind], extremes(wide).to(device)
    leaf = z.double().requires_grad_()
    f = function(leaf)
    (first,) = torch.autograd.grad(f.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    one, tail = torch.ones_like(z), (z, None, 0, kind, constants)
    kernels = (
        OPS.smooth_forward.default(*tail),
        OPS.smooth_gate.default(one, *tail),
        OPS.smooth_reverse.default(None, [one], [one], *tail, False)[0],
    )
    table = tuple(function(z, *constants) for function in (row.f, row.first, row.second))
    rounding = {torch.float32: 1e-6, torch.float64: 4e-14}[wide]
    assert all(values.isfinite().all() for values in (*kernels, *table[1:]))
    for truth, native, reference in zip((f, first, second), kernels, table, strict=True):
        # torch itself overflows at some extremes, and which ones depends on the processor
        known = truth.detach().isfinite() & table[0].isfinite()
        assert known.sum() > 20000
        for ours in (native, reference):
            torch.testing.assert_close(ours[known].double(), truth.detach()[known], rtol=4 * rounding, atol=rounding)


@pytest.mark.parametrize("kind", ["softplus", "tanh", "sigmoid", "elu"])
def test_smooth_of_nan_and_infinity(kind: str, dtype: torch.dtype, device: str) -> None:
    """A NaN is never hidden, and the limits at ±∞ are torch's."""
    row = ACTIVATIONS[kind]
    constants = [1.0, 20.0][: len(row.constants)]
    x = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype, device=device)
    agree(OPS.smooth_forward.default(x, None, 0, kind, constants), row.f(x, *constants))
    one = torch.ones_like(x)
    derivatives = OPS.smooth_reverse.default(one, [one], [one], x, None, 0, kind, constants, False)[0]
    assert derivatives[0].isnan()
    agree(
        derivatives,
        (row.first(x.double(), *constants) + row.second(x.double(), *constants)).to(dtype),
    )


def test_sums_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    g = torch.randn(64, 24, 31, 33)
    bits = OPS.relu_forward.default(g, None, 1, 0.0)[1]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(OPS.relu_reverse.default(g, bits, 0.1, False, 1)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_long_sums_are_accurate(device: str) -> None:
    g = torch.full((300_000, 3), 0.1, device=device)
    bits = torch.full(((g.numel() + 7) // 8,), 255, dtype=torch.uint8, device=device)
    truth = torch.full((3,), 300_000 * g[0, 0].double().item(), dtype=torch.float64, device=device)
    sums = OPS.relu_reverse.default(g, bits, 0.0, False, 1)[1]
    torch.testing.assert_close(sums.double(), truth, rtol=1e-5, atol=0)


X = torch.ones(2, 3)
BITS = torch.zeros(1, dtype=torch.uint8)
FAILURES: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "integer x": ("relu_forward", (X.long(), None, 1, 0.0), "x must be float32, float64.*got int64"),
    "bias dtype": (
        "relu_forward",
        (X, X[0].double(), 1, 0.0),
        "bias must have x's dtype float32, got float64",
    ),
    "bias shape": ("relu_forward", (X, X[:, 0], 1, 0.0), r"bias must have shape \[3\], got \[2\]"),
    "channel_dim": (
        "relu_forward",
        (X, X[0], 2, 0.0),
        "channel_dim must name one of the 2 dimensions, got 2",
    ),
    "bits dtype": ("relu_gate", (X, BITS.int(), 0.0, False), "bits must have dtype uint8, got int32"),
    "bits shape": ("relu_gate", (X, BITS[:0], 0.0, False), r"bits must have shape \[1\], got \[0\]"),
    "layout": ("relu_gate", (X, BITS, 0.0, True), "channels_last needs 4 or 5 dimensions, got 2; pass"),
    "integer g": ("relu_gate", (X.int(), BITS, 0.0, False), "g must be float32, float64.*got int32"),
    "no such channel": ("relu_reverse", (X, BITS, 0.0, False, -3), "channel_dim must name one of .* got -3"),
    "other's shape": ("relu_forward", (X, None, 1, 0.0, X[0]), r"other must have shape \[2, 3\], got \[3\]"),
    "other's dtype": (
        "relu_gate",
        (X, BITS, 0.0, False, X.half()),
        "other must have g's dtype float32, got float16",
    ),
    "kind": ("smooth_forward", (X, None, 0, "step", []), "kind must be one of softplus, tanh, .*, got step"),
    "constants": ("smooth_forward", (X, None, 0, "softplus", [1.0]), "softplus has 2 constants, got 1"),
    "g shape": ("smooth_gate", (X[0], X, None, 0, "tanh", []), r"g must have shape \[2, 3\], got \[3\]"),
    "zeta dtype": (
        "smooth_reverse",
        (X.half(), [], [], X, None, 0, "tanh", [], False),
        "zeta must have x's dtype float32, got float16",
    ),
    "pairs": (
        "smooth_reverse",
        (X, [X], [], X, None, 0, "tanh", [], False),
        "needs one cotangent per tangent, got 1 tangents and 0 cotangents",
    ),
    "sums of a scalar": (
        "smooth_reverse",
        (X[0, 0], [], [], X[0, 0], None, 0, "tanh", [], True),
        "channel_dim must name one of the 0 dimensions, got 0",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_bad_arguments_give_a_sentence(case: str, device: str) -> None:
    name, arguments, sentence = FAILURES[case]
    arguments = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
    arguments = tuple(
        [t.to(device) for t in a] if isinstance(a, list) and a and isinstance(a[0], Tensor) else a for a in arguments
    )
    for function in (getattr(OPS, name).default, getattr(activation, name)):
        with pytest.raises(RuntimeError, match=f"^{name}: {sentence}"):
            function(*arguments)


@pytest.mark.cuda
def test_devices_must_agree() -> None:
    for function in (OPS.relu_gate.default, activation.relu_gate):
        with pytest.raises(RuntimeError, match="bits must be on g's device cuda:0, got cpu"):
            function(X.cuda(), BITS, 0.0, False)


@pytest.mark.parametrize("name", ["matrix", "channels_last", "channels_last_3d", "permuted", "empty batch"])
def test_fake_tensors_have_the_real_layout(name: str) -> None:
    x, dim = INPUTS[name]()
    bias = dense(x.shape[dim])
    last = activation.is_channels_last(x)

    def results(x: Tensor, bias: Tensor) -> list[Tensor]:
        y, bits = OPS.relu_forward.default(x, bias, dim, 0.0)
        smooth = (x, bias, dim, "softplus", [1.0, 20.0])
        return [
            y,
            bits,
            *OPS.relu_forward.default(x, None, 0, 0.0, y),
            OPS.relu_gate.default(x, bits, 0.0, last),
            OPS.relu_gate.default(x, bits, 0.0, last, y),
            *OPS.relu_reverse.default(x, bits, 0.0, last, dim),
            OPS.smooth_forward.default(*smooth),
            OPS.smooth_gate.default(x, *smooth),
            *OPS.smooth_reverse.default(x, [x], [x], *smooth, True),
        ]

    real = results(x, bias)
    with FakeTensorMode() as mode:
        fake = results(mode.from_tensor(x), mode.from_tensor(bias))
    for f, r in zip(fake, real, strict=True):
        same_layout(f, r)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_native(name: str, device: str) -> None:
    assert_native(name, device)
