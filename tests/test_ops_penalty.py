"""The penalty ops, native and reference, against autograd in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from kernels import assert_native
from oracle import difference
from torch import Tensor

from datagrad_ext.ops import penalty

DEVICES = ("cpu", "cuda", "emulated")
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda rows: rows.abs().sum(1),
    "l2": lambda rows: torch.linalg.vector_norm(rows, dim=1),
    "l2_squared": lambda rows: rows.square().sum(1),
    "linf": lambda rows: rows.abs().amax(1) if rows.shape[1] else rows.sum(1),
}
IMPLEMENTATIONS = {
    "op": (torch.ops.datagrad.penalty_value.default, torch.ops.datagrad.penalty_seed.default),
    "reference": (penalty.penalty_value, penalty.penalty_seed),
}
# The largest relative error of values, computed in float32 or float64, and of seeds, rounded to the dtype.
TOLERANCES = {
    torch.float64: (1e-14, 1e-14),
    torch.float32: (1e-6, 1e-6),
    torch.bfloat16: (1e-6, 2**-8),
    torch.float16: (1e-6, 2**-10),
}
SHAPES = [
    (0,), (5,), (0, 3), (3, 0), (1, 1), (4, 7), (33, 10), (17, 33), (3, 2, 5), (2, 3, 4, 5),
    (2, 1, 3, 2, 2), (3, 1024), (2, 1025), (300, 1100), (1, 40000), (3, 70001),
]  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda J: J.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda J: J.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second": lambda J: J.repeat_interleave(2, dim=3)[..., ::2],
    "unaligned": lambda J: torch.cat([J.new_zeros(1), J.flatten()])[1:].view(J.shape),
    "channels_last": lambda J: J.contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda J: J.unsqueeze(2).contiguous(memory_format=torch.channels_last_3d),
    "expanded": lambda J: J[:1, :, :1].expand(J.shape),
}
INFINITE, NAN = math.inf, math.nan
SPECIAL = {
    "zero": [[0.0, -0.0, 0.0], [1.0, -2.0, 0.5]],
    "ties": [[1.0, -2.0, 2.0, 0.5, -2.0], [3.0, 3.0, 3.0, 3.0, 3.0], [-1.0, 0.0, 0.0, 0.0, 0.0]],
    "infinite": [[1.0, INFINITE, 2.0], [-INFINITE, INFINITE, 0.0], [1.0, 2.0, 3.0]],
    "nan": [[1.0, NAN, 2.0], [NAN, NAN, NAN], [INFINITE, NAN, 0.0], [1.0, 2.0, 3.0]],
}

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
kinds = pytest.mark.parametrize("kind", NORMS)


def sample(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def weights(value: Tensor) -> Tensor:
    return torch.linspace(-1.0, 2.0, len(value), dtype=value.dtype, device=value.device)


def expected(kind: str, J: Tensor) -> tuple[Tensor, Tensor]:
    """Value, and seed for `weights`, by autograd in float64."""
    wide = J.detach().double().requires_grad_()
    value = NORMS[kind](wide.flatten(1) if wide.dim() > 1 else wide.unsqueeze(1))
    return value.detach(), torch.autograd.grad(value, wide, weights(value))[0]


def run(implementation: str, kind: str, J: Tensor) -> tuple[Tensor, Tensor]:
    value_of, seed_of = IMPLEMENTATIONS[implementation]
    value = value_of(J, kind)
    return value, seed_of(J, value, weights(value), kind)


@implementations
@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_seeds(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, implementation: str, device: str
) -> None:
    J = sample(shape, dtype, device)
    value, seed = run(implementation, kind, J)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (value.shape, value.dtype) == (J.shape[:1], wide)
    assert (seed.shape, seed.dtype) == (J.shape, dtype)
    for actual, correct, tolerance in zip((value, seed), expected(kind, J), TOLERANCES[dtype], strict=True):
        assert difference(actual, correct).elementwise <= tolerance


@implementations
@kinds
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, kind: str, implementation: str, device: str) -> None:
    J = LAYOUTS[layout](sample((3, 4, 5, 6), dtype, device))
    value, seed = run(implementation, kind, J)
    dense = run(implementation, kind, J.contiguous())
    assert difference(value, dense[0]).elementwise <= TOLERANCES[dtype][0]
    assert difference(seed, dense[1]).elementwise <= TOLERANCES[dtype][1]
    formats = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}
    assert seed.is_contiguous(memory_format=formats.get(layout, torch.contiguous_format))


@implementations
@kinds
@dtypes
@pytest.mark.parametrize("special", SPECIAL)
def test_special_values(special: str, dtype: torch.dtype, kind: str, implementation: str, device: str) -> None:
    """Zero rows, ties, infinities and NaN are what they are in autograd, in short rows and in long ones."""
    short = torch.tensor(SPECIAL[special], dtype=dtype, device=device)
    for J in (short, torch.cat([short, short.new_zeros(len(short), 3000)], 1)):
        for actual, correct, tolerance in zip(
            run(implementation, kind, J), expected(kind, J), TOLERANCES[dtype], strict=True
        ):
            assert difference(actual, correct).elementwise <= tolerance


@implementations
@pytest.mark.parametrize("scale", ["huge", "tiny", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inner", [10, 3000])
def test_l2_neither_overflows_nor_underflows(
    inner: int, dtype: torch.dtype, scale: str, implementation: str, device: str
) -> None:
    limits = torch.finfo(dtype)
    J = sample((3, inner), torch.float64, "cpu")
    J = J * (limits.tiny * 4 if scale == "tiny" else limits.max / 1e4)
    if scale == "both":
        J[:, 1::2] *= limits.tiny
    J = J.to(device, dtype)
    norms = torch.tensor([math.hypot(*row) for row in J.tolist()], dtype=torch.float64)
    value, seed = run(implementation, "l2", J)
    value_tolerance, seed_tolerance = TOLERANCES[dtype]
    assert difference(value, norms).elementwise <= value_tolerance
    units = J.cpu().double() / norms[:, None] * weights(norms)[:, None]
    assert difference(seed, units).elementwise <= 2 * seed_tolerance


@implementations
@pytest.mark.parametrize("kind", ["l1", "l2", "l2_squared"])
def test_long_rows_lose_no_accuracy(kind: str, implementation: str, device: str) -> None:
    J = sample((2, 1_000_003), torch.float32, device) + 3
    value, _ = run(implementation, kind, J)
    assert difference(value, expected(kind, J)[0]).elementwise <= 5e-7


@kinds
def test_the_same_bits_every_time(kind: str, device: str) -> None:
    J = sample((3, 70001), torch.float32, device)
    first, threads = run("op", kind, J), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = run("op", kind, J)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


HANDOVERS = {"op": torch.ops.datagrad.penalty_handover.default, "reference": penalty.penalty_handover}
TOTALS = {"op": torch.ops.datagrad.penalty_total.default, "reference": penalty.penalty_total}
FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "": lambda R, c: R,
    "centred": lambda R, c: (R - c).square(),
    "one_sided": lambda R, c: (R - c).clamp_min(0).square(),
}
functions = pytest.mark.parametrize("function", FUNCTIONS)


@implementations
@functions
@kinds
@dtypes
@pytest.mark.parametrize("shape", [(5,), (4, 7), (33, 10), (2, 3, 4, 5), (3, 1025), (2, 40000)], ids=str)
def test_seeds_of_a_function_of_the_norm(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, function: str, implementation: str, device: str
) -> None:
    """c share f′(R) ∂R/∂J, by autograd in float64."""
    J = sample(shape, dtype, device)
    value = torch.ops.datagrad.penalty_value(J, kind)
    constant = float(value.double().mean()) * 0.9
    c = torch.tensor(-1.5, dtype=value.dtype, device=device)
    seed = HANDOVERS[implementation](J, value, c, 0.25, kind, function, constant)
    wide = J.detach().double().requires_grad_()
    norms = NORMS[kind](wide.flatten(1) if wide.dim() > 1 else wide.unsqueeze(1))
    (correct,) = torch.autograd.grad(-1.5 * 0.25 * FUNCTIONS[function](norms, constant).sum(), wide)
    assert (seed.shape, seed.dtype) == (J.shape, dtype)
    # R - c cancels: the rounding of R counts by what it is measured against.
    rounding = 64 * TOLERANCES[dtype][0] if function else 0
    assert difference(seed, correct).elementwise <= TOLERANCES[dtype][1] + rounding


@implementations
@functions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [1, 5, 300, 8192, 70001])
def test_totals(n: int, dtype: torch.dtype, function: str, implementation: str, device: str) -> None:
    """With and without a loss, whose list may have another length; means are those of float64."""
    losses, *norms = (sample((size,), dtype, device).abs() for size in (n + 3, n, n))
    row = FUNCTIONS[function]
    for loss in (losses, None):
        total, means = TOTALS[implementation](loss, 0.5, norms, [function, ""], [0.7, 0.0], [2.0, -3.0])
        correct = [row(norms[0].double(), 0.7).mean(), norms[1].double().mean()]
        weights = [2.0, -3.0]
        if loss is not None:
            correct, weights = [loss.double().mean(), *correct], [0.5, *weights]
        assert (total.shape, total.dtype, means.shape) == ((), dtype, (len(correct),))
        assert difference(means, torch.stack(correct)).elementwise <= 4 * TOLERANCES[dtype][0]
        expected = sum(w * mean for w, mean in zip(weights, correct, strict=True))
        assert difference(total, expected, floor=1.0).elementwise <= 4 * TOLERANCES[dtype][0]


@implementations
def test_a_total_keeps_nan_and_the_mean_of_nothing_is_nan(implementation: str, device: str) -> None:
    norms, nothing = torch.tensor([1.0, math.nan], device=device), torch.ones(0, device=device)
    for function in FUNCTIONS:
        total, means = TOTALS[implementation](None, 1.0, [norms], [function], [0.5], [1.0])
        assert total.isnan()
        assert means.isnan().all()
    assert TOTALS[implementation](nothing, 1.0, [], [], [], [])[0].isnan()


BAD_HANDOVERS = [
    (HANDOVERS, lambda J, N, c: (J, N, c.double(), 1.0, "l1", "", 0.0), "penalty_handover: c must have dtype float32"),
    (HANDOVERS, lambda J, N, c: (J, N, N, 1.0, "l1", "", 0.0), r"penalty_handover: c must have shape \[\], got \[2\]"),
    (HANDOVERS, lambda J, N, c: (J, N, c, 1.0, "l1", "cube", 0.0), "function must be empty, .* got 'cube'"),
    (HANDOVERS, lambda J, N, c: (J, N[:1], c, 1.0, "l1", "", 0.0), r"penalty_handover: value must have shape \[2\]"),
    (TOTALS, lambda J, N, c: (None, 1.0, [N], [], [0.0], [1.0]), "needs a function, a constant and a weight"),
    (TOTALS, lambda J, N, c: (None, 1.0, [], [], [], []), "penalty_total: takes from 1 to 64 means, got 0"),
    (TOTALS, lambda J, N, c: (J, 1.0, [], [], [], []), r"loss must have one dimension, got shape \[2, 3\]"),
    (TOTALS, lambda J, N, c: (N.half(), 1.0, [], [], [], []), "loss must be float32 or float64, got float16"),
    (TOTALS, lambda J, N, c: (N, 1.0, [N.double()], [""], [0.0], [1.0]), "norms must have the first list's dtype"),
]  # fmt: skip


@implementations
@pytest.mark.parametrize("row", range(len(BAD_HANDOVERS)))
def test_bad_seeds_and_totals_are_told_in_a_sentence(row: int, implementation: str, device: str) -> None:
    run, arguments, sentence = BAD_HANDOVERS[row]
    with pytest.raises(RuntimeError, match=sentence):
        run[implementation](*arguments(J.to(device), N.to(device), torch.tensor(1.0, device=device)))


@implementations
def test_an_expanded_weight(implementation: str, device: str) -> None:
    J = sample((4, 7), torch.float32, device)
    value_of, seed_of = IMPLEMENTATIONS[implementation]
    weight = torch.tensor(0.25, device=device).expand(4)
    seed = seed_of(J, value_of(J, "l2_squared"), weight, "l2_squared")
    assert difference(seed, 0.5 * J).elementwise <= 1e-6


def test_shapes_without_data() -> None:
    J = torch.empty(4, 3, 5, dtype=torch.bfloat16, device="meta")
    value = torch.ops.datagrad.penalty_value(J, "l2")
    assert (value.shape, value.dtype) == ((4,), torch.float32)
    assert torch.ops.datagrad.penalty_seed(J, value, value, "l2").shape == J.shape


J, N = torch.ones(2, 3), torch.ones(2)
BAD_ARGUMENTS = [
    ("value", (J, "l3"), "penalty_value: kind must be one of l1, l2, l2_squared, linf, got 'l3'"),
    ("value", (J.int(), "l1"), "penalty_value: J must be .*float16, got int32; convert it first"),
    ("value", (J.cfloat(), "l1"), "penalty_value: J must be .*float16, got complex64; convert it first"),
    ("value", (torch.tensor(1.0), "l1"), "J must have a batch dimension, .* got a scalar"),
    ("seed", (J, N, N, "L1"), "penalty_seed: kind must be one of .*, got 'L1'"),
    ("seed", (J, N.double(), N, "l1"), "penalty_seed: value must have dtype float32, got float64"),
    ("seed", (J.bfloat16(), N, N.bfloat16(), "l1"), "weight must have dtype float32, got bfloat16"),
    ("seed", (J, N, torch.ones(3), "l1"), r"weight must have shape \[2\], got \[3\]"),
    ("seed", (J, torch.ones(2, 1), N, "l1"), r"value must have shape \[2\], got \[2, 1\]"),
]


@implementations
@pytest.mark.parametrize(("op", "arguments", "sentence"), BAD_ARGUMENTS)
def test_bad_arguments_are_told_in_a_sentence(
    op: str, arguments: tuple, sentence: str, implementation: str, device: str
) -> None:
    arguments = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
    with pytest.raises(RuntimeError, match=sentence):
        IMPLEMENTATIONS[implementation][op == "seed"](*arguments)


@pytest.mark.parametrize("name", ["penalty_value", "penalty_seed", "penalty_handover", "penalty_total"])
def test_native_kernels_are_in_use(name: str, device: str) -> None:
    assert_native(name, device)
