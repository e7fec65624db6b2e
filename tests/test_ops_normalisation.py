"""The normalisation family: every op against its PyTorch reference and against float64 autograd."""

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
from datagrad_ext.ops import activation, normalisation

DEVICES = ("cpu", "cuda", "emulated")
OPS = torch.ops.datagrad
NAMES = ("normalise_forward", "normalise_relu_forward", "normalise_vjp", "normalise_jvp", "normalise_reverse")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
EPS = 0.01


def dense(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def channels_last(*shape: int) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return dense(*shape).contiguous(memory_format=formats[len(shape)])


# name: (x in float64, groups)
INPUTS: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "batch, rows": lambda: (dense(37, 24), 0),
    "batch, odd rows": lambda: (dense(9, 7), 0),
    "batch, many rows": lambda: (dense(1031, 67), 0),
    "batch, one channel": lambda: (dense(41, 1), 0),
    "batch, sequence": lambda: (dense(5, 6, 16), 0),
    "batch, images": lambda: (dense(3, 8, 5, 7), 0),
    "batch, channels_last": lambda: (channels_last(3, 16, 5, 7), 0),
    "batch, odd channels_last": lambda: (channels_last(2, 5, 3, 3), 0),
    "batch, channels_last_3d": lambda: (channels_last(2, 9, 3, 2, 5), 0),
    "batch, permuted": lambda: (dense(5, 4, 3, 6).permute(3, 1, 2, 0), 0),
    "batch, short runs": lambda: (dense(37, 6, 3, 4), 0),
    "batch, short runs in blocks": lambda: (dense(83, 41, 5), 0),
    "batch, large images": lambda: (dense(4, 6, 43, 51), 0),
    "batch, large channels_last": lambda: (channels_last(4, 24, 43, 51), 0),
    "group, images": lambda: (dense(3, 8, 5, 7), 2),
    "group, one": lambda: (dense(2, 6, 4, 4), 1),
    "group, channels_last": lambda: (channels_last(3, 12, 5, 7), 4),
    "group, channels_last_3d": lambda: (channels_last(2, 6, 3, 2, 3), 3),
    "group, short runs": lambda: (dense(11, 12, 3, 2), 4),
    "group, features": lambda: (dense(5, 12), 3),
    "group, large images": lambda: (dense(2, 6, 43, 51), 3),
    "group, large channels_last": lambda: (channels_last(2, 24, 43, 51), 8),
    "instance, images": lambda: (dense(3, 5, 6, 7), 5),
    "instance, channels_last": lambda: (channels_last(3, 16, 5, 4), 16),
    "layer, rows": lambda: (dense(33, 24), 1),
    "layer, odd rows": lambda: (dense(10, 7), 1),
    "layer, long rows": lambda: (dense(3, 1031), 1),
    "offset": lambda: (dense(301)[1:].view(25, 12), 1),
    "empty batch": lambda: (dense(0, 4), 1),
    "no samples": lambda: (dense(0, 4), 0),
    "empty image": lambda: (dense(2, 3, 0, 5), 0),
}


@pytest.fixture(params=INPUTS)
def example(request: pytest.FixtureRequest, device: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """x, weight, bias and groups."""
    torch.manual_seed(len(request.param))
    x, groups = INPUTS[request.param]()
    weight, bias = dense(x.shape[1]), dense(x.shape[1])
    return (0.5 + 2 * x).to(device), weight.to(device), bias.to(device), groups


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype)[6:])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def close(actual: Tensor, truth: Tensor, rounding: float, terms: int = 1) -> None:
    """Equal up to rounding of the largest element of the truth; `terms` numbers were added up for each element."""
    scale = max(1.0, float(truth.detach().abs().max())) if truth.numel() else 1.0
    allowed = rounding * scale * max(1.0, math.sqrt(terms) / 4)
    torch.testing.assert_close(actual.double(), truth.detach().double(), rtol=0, atol=allowed)


def agree(actual: Any, reference: Any, dtype: torch.dtype, terms: int) -> None:
    """Equal to the PyTorch reference, layouts and dtypes too."""
    actual, reference = ((r,) if isinstance(r, Tensor) else r for r in (actual, reference))
    for a, r in zip(actual, reference, strict=True):
        same_layout(a, r)
        close(a, r, TOLERANCE[dtype], terms if a.dim() == 1 else 1)


def value(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> Tensor:
    if x.numel() == 0:
        return x.sum() * (0 if weight is None else weight.sum()) + x
    if groups:
        return F.group_norm(x, groups, weight, bias, EPS)
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)


def like(x: Tensor) -> list[Tensor]:
    """Of x's shape and dtype: in x's layout, contiguous, expanded, transposed."""
    rows = [torch.randn(x.shape, dtype=torch.float64).to(x) for _ in range(3)]
    order = list(range(x.dim()))[::-1]
    expanded = (
        torch.randn(x.shape[:1], dtype=torch.float64).to(x).view(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    )
    return [
        torch.empty_like(x).copy_(rows[0]),
        rows[1].contiguous(),
        expanded,
        rows[2].permute(order).contiguous().permute(order),
    ]


def parameters(dtype: torch.dtype, *values: Tensor) -> list[Tensor]:
    """In float32 beside bfloat16, in the dtype of x otherwise."""
    return [v.to(torch.float32 if dtype == torch.bfloat16 else dtype) for v in values]


def test_against_autograd(example: tuple[Tensor, Tensor, Tensor, int], dtype: torch.dtype) -> None:
    """First and second order: x̄ and w̄ are the gradients of ⟨ζ, f⟩ + Σ ⟨t, fₓᵀ δ⟩."""
    x, groups = example[0].to(dtype), example[3]
    weight, bias = parameters(dtype, *example[1:3])
    rounding = TOLERANCE[dtype]
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    truth = value(*leaves, groups)
    y, mean, rstd = OPS.normalise_forward.default(x, weight, bias, None, None, groups, 0.0, EPS)
    close(y, truth, rounding)
    point = (x, mean, rstd, weight, groups, None, 0.0)
    zeta, t, delta, u = like(x)
    pulled = [torch.autograd.grad(truth, leaves[0], g.double(), create_graph=True)[0] for g in (delta, zeta)]
    close(OPS.normalise_vjp.default(delta, *point), pulled[0], rounding)
    seed = torch.zeros_like(truth, requires_grad=True)
    (transposed,) = torch.autograd.grad(truth, leaves[0], seed, create_graph=True)
    (pushed,) = torch.autograd.grad(transposed, seed, t.double(), retain_graph=True)
    close(OPS.normalise_jvp.default(t, *point), pushed, rounding)
    expected = torch.autograd.grad(
        [truth, *pulled], leaves, [zeta.double(), t.double(), u.double()], allow_unused=True
    )
    actual = OPS.normalise_reverse.default(zeta, [t, u], [delta, zeta], *point, True, True)
    for a, b in zip(actual, expected, strict=True):
        close(a, torch.zeros_like(a) if b is None else b, 4 * rounding, x.numel())


@pytest.mark.parametrize("with_weight", [True, False])
def test_against_reference(
    example: tuple[Tensor, Tensor, Tensor, int], dtype: torch.dtype, with_weight: bool
) -> None:
    x, groups = example[0].to(dtype), example[3]
    weight, bias = parameters(dtype, *example[1:3]) if with_weight else (None, None)
    forward = (x, weight, bias, None, None, groups, 0.0, EPS)
    y, mean, rstd = OPS.normalise_forward.default(*forward)
    agree((y, mean, rstd), normalisation.normalise_forward(*forward), dtype, 1)
    point = (x, mean, rstd, weight, groups, None, 0.0)
    for g in like(x):
        agree(OPS.normalise_vjp.default(g, *point), normalisation.normalise_vjp(g, *point), dtype, 1)
        agree(OPS.normalise_jvp.default(g, *point), normalisation.normalise_jvp(g, *point), dtype, 1)


@pytest.mark.parametrize("pairs", [0, 1, 3])
@pytest.mark.parametrize("with_zeta", [True, False])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    "name",
    ["batch, images", "batch, odd channels_last", "group, images", "group, channels_last", "layer, odd rows"],
)
def test_reverse_against_reference(
    name: str, wanted: tuple[bool, bool], with_zeta: bool, pairs: int, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    x, groups = INPUTS[name]()
    x, (weight,) = x.to(device, dtype), parameters(dtype, dense(x.shape[1]).to(device))
    _, mean, rstd = OPS.normalise_forward.default(x, weight, None, None, None, groups, 0.0, EPS)
    zeta, *rest = like(x)
    arguments = (
        zeta if with_zeta else None,
        rest[:pairs],
        rest[::-1][:pairs],
        x,
        mean,
        rstd,
        weight,
        groups,
        None,
        0.0,
        *wanted,
    )
    agree(
        OPS.normalise_reverse.default(*arguments),
        normalisation.normalise_reverse(*arguments),
        dtype,
        x.numel(),
    )


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_with_a_rectifier(
    example: tuple[Tensor, Tensor, Tensor, int], dtype: torch.dtype, slope: float
) -> None:
    """The passes that gate are those that do not, with the gate as an op of its own; and the references."""
    x, groups = example[0].to(dtype), example[3]
    weight, bias = parameters(dtype, *example[1:3])
    forward = (x, weight, bias, None, None, groups, 0.0, EPS)
    y, mean, rstd, bits = OPS.normalise_relu_forward.default(*forward, slope)
    z, *_ = OPS.normalise_forward.default(*forward)
    last = activation.is_channels_last(x)
    agree((y, bits), OPS.relu_forward.default(z, None, 0, slope), dtype, 1)
    agree((y, mean, rstd), normalisation.normalise_relu_forward(*forward, slope)[:3], dtype, 1)

    def gate(g: Tensor) -> Tensor:
        return OPS.relu_gate.default(g, bits, slope, last)

    zeta, t, delta, u = like(x)
    plain, gated = (x, mean, rstd, weight, groups, None, 0.0), (x, mean, rstd, weight, groups, bits, slope)
    pulled = OPS.normalise_vjp.default(gate(zeta), *plain)
    pushed = gate(OPS.normalise_jvp.default(t, *plain))
    reverse = OPS.normalise_reverse.default(gate(zeta), [t, u], [gate(delta), gate(t)], *plain, True, True)
    for ops in (OPS, normalisation):
        agree(ops.normalise_vjp(zeta, *gated), pulled, dtype, 1)
        agree(ops.normalise_jvp(t, *gated), pushed, dtype, 1)
        found = ops.normalise_reverse(zeta, [t, u], [delta, t], *gated, True, True)
        agree(found, reverse, dtype, x.numel())


@pytest.mark.parametrize("name", ["batch, images", "batch, channels_last", "batch, rows", "instance, images"])
def test_running_statistics(name: str, dtype: torch.dtype, device: str) -> None:
    x, groups = INPUTS[name]()
    x = x.to(device, dtype)
    (before,) = parameters(dtype, dense(2, x.shape[1]).abs().to(device))
    ours, reference, torchs = before.clone(), before.clone(), before.clone()
    OPS.normalise_forward.default(x, None, None, *ours, groups, 0.3, EPS)
    normalisation.normalise_forward(x, None, None, *reference, groups, 0.3, EPS)
    (F.instance_norm if groups else F.batch_norm)(x, *torchs, None, None, True, 0.3, EPS)
    close(ours, reference, TOLERANCE[dtype])
    close(ours, torchs, TOLERANCE[dtype])
    assert not torch.equal(ours, before)


@pytest.mark.parametrize("name", ["batch, images", "batch, channels_last", "group, images", "layer, rows"])
def test_large_means_do_not_cancel(name: str, device: str) -> None:
    """float32 with a mean far above the spread: statistics as good as the numbers themselves."""
    torch.manual_seed(0)
    x, groups = INPUTS[name]()
    x = (x + 1000).to(device, torch.float32)
    y, *_ = OPS.normalise_forward.default(x, None, None, None, None, groups, 0.0, 1e-5)
    truth, *_ = normalisation.normalise_forward(x.double(), None, None, None, None, groups, 0.0, 1e-5)
    close(y, truth, 1e-4)


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["batch, images", "batch, channels_last", "group, images", "layer, rows"])
def test_not_finite(name: str, special: float, dtype: torch.dtype, device: str) -> None:
    """Statistics of the set with the special value are the reference's; the other sets do not notice."""
    torch.manual_seed(0)
    x, groups = INPUTS[name]()
    x = x.to(device, dtype)
    x[0, 1] = special
    forward = (x, None, None, None, None, groups, 0.0, EPS)
    for ours, reference in zip(
        OPS.normalise_forward.default(*forward), normalisation.normalise_forward(*forward), strict=True
    ):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(ours, reference, rtol=4 * tolerance, atol=tolerance, equal_nan=True)


def test_sums_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    for x, groups in (
        (torch.randn(8, 24, 31, 33), 0),
        (torch.randn(8, 24, 31, 33), 4),
        (torch.randn(900, 130), 1),
    ):
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                y, mean, rstd = OPS.normalise_forward.default(x, None, None, None, None, groups, 0.0, EPS)
                more = OPS.normalise_reverse.default(
                    y, [x], [y], x, mean, rstd, None, groups, None, 0.0, True, True
                )
                results.append((y, mean, rstd, *more))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


X, STAT, BITS = torch.ones(2, 3, 4), torch.ones(3), torch.zeros(3, dtype=torch.uint8)
FAILURES: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "integer x": (
        "normalise_forward",
        (X.long(), None, None, None, None, 0, 0.0, EPS),
        "x must be float32, float64.*got int64",
    ),
    "a vector": (
        "normalise_forward",
        (X[0, 0], None, None, None, None, 0, 0.0, EPS),
        r"x must have shape \(N, C, …\), got \[4\]",
    ),
    "groups": (
        "normalise_forward",
        (X, None, None, None, None, 2, 0.0, EPS),
        r"groups must be 0 \(statistics over the batch\) or divide C = 3, got 2",
    ),
    "weight dtype": (
        "normalise_forward",
        (X, STAT.double(), None, None, None, 0, 0.0, EPS),
        "weight must have x's dtype float32, got float64",
    ),
    "bias shape": (
        "normalise_forward",
        (X, None, STAT[:2], None, None, 0, 0.0, EPS),
        r"bias must have shape \[3\], got \[2\]",
    ),
    "one running": (
        "normalise_forward",
        (X, None, None, STAT, None, 0, 0.0, EPS),
        "running_mean and running_var come together, with groups = 0 or C = 3, got groups = 0",
    ),
    "running of groups": (
        "normalise_forward",
        (X, None, None, STAT, STAT, 1, 0.0, EPS),
        "running_mean and running_var come together, with groups = 0 or C = 3, got groups = 1",
    ),
    "g shape": (
        "normalise_vjp",
        (X[0], X, STAT, STAT, None, 0, None, 0.0),
        r"g must have shape \[2, 3, 4\], got \[3, 4\]",
    ),
    "t dtype": (
        "normalise_jvp",
        (X.half(), X, STAT, STAT, None, 0, None, 0.0),
        "t must have x's dtype float32, got float16",
    ),
    "mean shape": (
        "normalise_vjp",
        (X, X, STAT, STAT, None, 3, None, 0.0),
        r"mean must have shape \[2, 3\], got \[3\]",
    ),
    "rstd dtype": (
        "normalise_jvp",
        (X, X, STAT, STAT.half(), None, 0, None, 0.0),
        "rstd must be float32 on x's device .*, got float16",
    ),
    "bits shape": (
        "normalise_vjp",
        (X, X, STAT, STAT, None, 0, BITS[:2], 0.0),
        r"bits must have shape \[3\], got \[2\]",
    ),
    "bits dtype": (
        "normalise_jvp",
        (X, X, STAT, STAT, None, 0, BITS.int(), 0.0),
        "bits must have dtype uint8, got int32",
    ),
    "pairs": (
        "normalise_reverse",
        (X, [X], [], X, STAT, STAT, None, 0, None, 0.0, True, True),
        "needs one cotangent per tangent, got 1 tangents and 0 cotangents",
    ),
    "zeta shape": (
        "normalise_reverse",
        (X[0], [], [], X, STAT, STAT, None, 0, None, 0.0, True, True),
        r"zeta must have shape \[2, 3, 4\], got \[3, 4\]",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_bad_arguments_give_a_sentence(case: str, device: str) -> None:
    name, arguments, sentence = FAILURES[case]
    moved = tuple(
        a.to(device) if isinstance(a, Tensor) else [t.to(device) for t in a] if isinstance(a, list) else a
        for a in arguments
    )
    for function in (getattr(OPS, name).default, getattr(normalisation, name)):
        with pytest.raises(RuntimeError, match=f"^{name}: {sentence}"):
            function(*moved)


@pytest.mark.parametrize(
    "name", ["batch, rows", "batch, channels_last", "group, images", "layer, rows", "empty batch"]
)
def test_fake_tensors_have_the_real_layout(name: str) -> None:
    x, groups = INPUTS[name]()
    w = dense(x.shape[1])

    def results(x: Tensor, w: Tensor) -> list[Tensor]:
        y, mean, rstd = OPS.normalise_forward.default(x, w, w, None, None, groups, 0.0, EPS)
        point = (x, mean, rstd, w, groups, None, 0.0)
        return [
            y,
            mean,
            rstd,
            OPS.normalise_vjp.default(y, *point),
            OPS.normalise_jvp.default(y, *point),
            *OPS.normalise_reverse.default(y, [y], [y], *point, True, True),
        ]

    real = results(x, w)
    with FakeTensorMode() as mode:
        fake = results(mode.from_tensor(x), mode.from_tensor(w))
    for f, r in zip(fake, real, strict=True):
        same_layout(f, r)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_native(name: str, device: str) -> None:
    assert_native(name, device)
