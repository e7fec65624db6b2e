"""The cross-entropy ops, native and reference, against autograd in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from kernels import assert_native
from oracle import difference
from torch import Tensor

from datagrad_ext import ops
from datagrad_ext.ops import cross_entropy

DEVICES = ("cpu", "cuda", "emulated")
NAMES = ["cross_entropy_forward", "cross_entropy_vjp", "cross_entropy_hvp"]
IMPLEMENTATIONS = {
    "op": [getattr(torch.ops.datagrad, name).default for name in NAMES],
    "reference": [getattr(cross_entropy, name) for name in NAMES],
}
# The largest error, by the largest element, of what stays in float32 or float64, and of what is rounded.
TOLERANCES = {
    torch.float64: (1e-14, 1e-13),
    torch.float32: (1e-6, 3e-6),
    torch.bfloat16: (1e-6, 2**-8),
    torch.float16: (1e-6, 2**-10),
}
SHAPES = [
    (0, 3), (1, 1), (5, 1), (4, 7), (33, 10), (17, 32), (6, 33), (3, 1024), (3, 1025), (2, 5003), (300, 10),
]  # fmt: skip
TARGETS = ["indices", "probabilities", "unnormalised"]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every second": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda t: t[:1].expand(t.shape),
}

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
targets = pytest.mark.parametrize("target_kind", TARGETS)
smoothings = pytest.mark.parametrize("label_smoothing", [0.0, 0.1])


@dataclass
class Case:
    """One call of the three ops: logits, target, a cotangent of each loss, a tangent of the logits."""

    logits: Tensor
    target: Tensor
    weight: Tensor
    v: Tensor

    def run(self, implementation: str, *options: float) -> list[Tensor]:
        """Loss, δ, H v and the gradient of the weight."""
        forward, vjp, hvp = IMPLEMENTATIONS[implementation]
        loss, lse = forward(self.logits, self.target, *options)
        delta = vjp(self.logits, self.target, lse, self.weight, *options)
        return [loss, delta, *hvp(self.logits, self.target, lse, self.weight, self.v, *options)]

    def expected(
        self, label_smoothing: float, ignore_index: int = -100, dtype: torch.dtype = torch.float64
    ) -> list[Tensor]:
        """The same by PyTorch's autograd, in float64 unless told."""
        z = self.logits.detach().to(dtype).requires_grad_()
        weight = self.weight.to(dtype).requires_grad_()
        target = self.target.to(dtype) if self.target.is_floating_point() else self.target
        options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
        loss = F.cross_entropy(z, target, reduction="none", **options)
        (delta,) = torch.autograd.grad(loss, z, weight, create_graph=True)
        products = torch.autograd.grad(delta, (z, weight), self.v.to(dtype))
        return [t.detach() for t in (loss, delta, *products)]


def case(shape: tuple[int, int], dtype: torch.dtype, target_kind: str, device: str) -> Case:
    generator = torch.Generator().manual_seed(sum(shape))
    logits, v, y = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    target = y.abs().to(dtype)
    if target_kind == "indices":
        target = torch.randint(0, shape[1], shape[:1], generator=generator)
    elif target_kind == "probabilities":
        target = torch.softmax(y, 1).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.linspace(-1, 2, shape[0], dtype=wide)
    return Case((3 * logits).to(device, dtype), target.to(device), weight.to(device), v.to(device, dtype))


def compare(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    wide, rounded = TOLERANCES[dtype]
    for result, correct, tolerance in zip(actual, expected, (wide, rounded, rounded, 3 * wide), strict=True):
        # A single class or row may cancel to nothing: measured against 1 then.
        assert difference(result, correct, floor=1.0).elementwise <= tolerance


@implementations
@smoothings
@targets
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_gradient_and_hessian(
    shape: tuple[int, int],
    dtype: torch.dtype,
    target_kind: str,
    label_smoothing: float,
    implementation: str,
    device: str,
) -> None:
    given = case(shape, dtype, target_kind, device)
    results = given.run(implementation, label_smoothing)
    wide = given.weight.dtype
    assert [t.dtype for t in results] == [wide, dtype, dtype, wide]
    assert [tuple(t.shape) for t in results] == [shape[:1], shape, shape, shape[:1]]
    compare(results, given.expected(label_smoothing), dtype)


@implementations
@targets
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_far_logits_lose_no_accuracy(
    offset: float, dtype: torch.dtype, target_kind: str, implementation: str, device: str
) -> None:
    """The softmax of z + 10,000 is the softmax of z: neither overflow nor the rounding of lse may show."""
    given = case((33, 10), dtype, target_kind, device)
    given.logits = (given.logits + offset).round(decimals=0)
    compare(given.run(implementation, 0.1), given.expected(0.1), dtype)


@implementations
@pytest.mark.parametrize("classes", [10, 1500])
@pytest.mark.parametrize("gap", [4.0, 8.0, 12.0])
def test_a_confident_row_keeps_its_relative_accuracy(
    gap: float, classes: int, implementation: str, device: str
) -> None:
    """p near 1: p − y and v − p·v cancel, and the small result is what training still gets from the row.

    The kernels take these differences in double. The reference takes them in float32, like PyTorch, which is
    its measure.
    """
    given = case((8, classes), torch.float32, "indices", device)
    given.logits = given.logits / 3
    given.logits.scatter_add_(1, given.target[:, None], torch.full((8, 1), gap, device=device))
    native = implementation == "op" and ops.is_native(NAMES[1], device)
    exact, pytorch = given.expected(0.0), given.expected(0.0, dtype=torch.float32)
    for result, theirs, correct in zip(given.run(implementation, 0.0)[1:], pytorch[1:], exact[1:], strict=True):
        bar = 0.0 if native else 2 * difference(theirs, correct).norm
        assert difference(result, correct).norm <= max(bar, 2e-6)


@implementations
@smoothings
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("classes", [10, 1500])
def test_ignored_rows_are_zero(
    classes: int, ignore_index: int, label_smoothing: float, implementation: str, device: str
) -> None:
    given = case((6, classes), torch.float32, "indices", device)
    given.target[::2] = ignore_index
    given.logits[0], given.v[0] = math.nan, math.inf
    results = given.run(implementation, label_smoothing, ignore_index)
    for result in results:
        assert (result[given.target == ignore_index] == 0).all()
    given.logits[0], given.v[0] = 0.0, 0.0
    compare(results, given.expected(label_smoothing, ignore_index), torch.float32)


@implementations
@dtypes
@targets
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, target_kind: str, dtype: torch.dtype, implementation: str, device: str) -> None:
    given = case((6, 10), dtype, target_kind, device)
    given.logits, given.v = LAYOUTS[layout](given.logits), LAYOUTS[layout](given.v)
    given.target = LAYOUTS[layout](given.target) if given.target.dim() == 2 else given.target[::1]
    given.weight = torch.tensor(0.25, dtype=given.weight.dtype, device=device).expand(6)
    results = given.run(implementation, 0.1)
    assert all(t.is_contiguous() for t in results)
    compare(results, given.expected(0.1), dtype)


@implementations
@smoothings
@pytest.mark.parametrize("classes", [3, 1500])
def test_a_class_that_is_ruled_out(classes: int, label_smoothing: float, implementation: str, device: str) -> None:
    """A logit of -inf away from the target: all finite; with smoothing an infinite loss, as in PyTorch."""
    given = case((2, classes), torch.float64, "indices", device)
    given.target[:] = 0
    given.logits[:, 1] = -math.inf
    loss, delta, *_ = given.run(implementation, label_smoothing)
    correct = given.expected(label_smoothing)
    assert difference(loss, correct[0]).elementwise <= 1e-14
    if not label_smoothing:
        assert difference(delta, correct[1]).elementwise <= 1e-13


HEADS = {
    "op": torch.ops.datagrad.cross_entropy_head.default,
    "reference": cross_entropy.cross_entropy_head,
}


@implementations
@smoothings
@targets
@dtypes
@pytest.mark.parametrize("over_counted", [False, True])
@pytest.mark.parametrize("shape", [(4, 7), (33, 10), (300, 10), (3, 1025), (5000, 3)], ids=str)
def test_value_and_gradient_of_a_mean_at_once(
    shape: tuple[int, int],
    over_counted: bool,
    dtype: torch.dtype,
    target_kind: str,
    label_smoothing: float,
    implementation: str,
    device: str,
) -> None:
    """Over the rows that count, a third of which are ignored; more rows than a block of threads looks at by itself."""
    given, ignored = case(shape, dtype, target_kind, device), -7
    if target_kind == "indices":
        given.target[::3] = ignored
    counted = int((given.target != ignored).sum()) if over_counted and target_kind == "indices" else shape[0]
    given.weight[:] = shape[0] / counted
    loss, lse, weight, delta = HEADS[implementation](given.logits, given.target, label_smoothing, ignored, over_counted)
    losses, correct, *_ = given.expected(label_smoothing, ignored)
    wide, rounded = TOLERANCES[dtype]
    assert difference(weight, given.weight.double()).elementwise <= wide
    assert difference(loss, losses * given.weight.double()).elementwise <= 2 * wide
    assert difference(delta, correct, floor=1.0).elementwise <= rounded
    assert difference(lse, given.logits.double().logsumexp(1)).elementwise <= 2 * wide
    assert (loss.dtype, delta.dtype) == (given.weight.dtype, dtype)


@implementations
def test_a_mean_over_no_row_is_nan(implementation: str, device: str) -> None:
    given = case((4, 3), torch.float32, "indices", device)
    given.target[:] = -100
    loss, _, _, delta = HEADS[implementation](given.logits, given.target, 0.0, -100, True)
    assert loss.isnan().all()
    assert (delta == 0).all() or delta.isnan().all()
    assert (HEADS[implementation](given.logits, given.target, 0.0, -100, False)[0] == 0).all()


@implementations
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("classes", [3, 1500])
def test_nan_stays_in_its_row(classes: int, bad: float, implementation: str, device: str) -> None:
    given = case((4, classes), torch.float32, "indices", device)
    given.logits[1, 2] = bad
    for result in given.run(implementation, 0.0):
        assert result[1].isnan().all()
        assert result[[0, 2, 3]].isfinite().all()


@targets
def test_the_same_bits_every_time(target_kind: str, device: str) -> None:
    given, threads = case((300, 150), torch.float32, target_kind, device), torch.get_num_threads()
    first = given.run("op", 0.1)
    try:
        torch.set_num_threads(1)
        again = given.run("op", 0.1)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@implementations
@pytest.mark.parametrize("op", [0, 1, 2])
@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_bounds_is_an_error(index: int, op: int, implementation: str) -> None:
    z, row = torch.zeros(2, 3), torch.zeros(2)
    arguments = [(), (row, row), (row, row, z)][op]
    with pytest.raises(RuntimeError, match="out of bounds"):
        IMPLEMENTATIONS[implementation][op](z, torch.tensor([0, index]), *arguments, 0.0)


@pytest.mark.cuda
def test_an_index_out_of_bounds_is_nan_on_cuda() -> None:
    given = case((2, 3), torch.float32, "indices", "cuda")
    given.target[1] = 3
    for result in given.run("op", 0.0):
        assert result[1].isnan().all()
        assert result[0].isfinite().all()


def test_shapes_without_data() -> None:
    z = torch.empty(4, 3, dtype=torch.float16, device="meta")
    t = torch.empty(4, dtype=torch.int64, device="meta")
    loss, lse = torch.ops.datagrad.cross_entropy_forward(z, t, 0.1)
    assert (loss.shape, loss.dtype, lse.shape) == ((4,), torch.float32, (4,))
    assert torch.ops.datagrad.cross_entropy_vjp(z, t, lse, loss, 0.1).dtype == torch.float16


Z, T, ROW = torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2)
BAD_ARGUMENTS = [
    (0, (Z.int(), T, 0.0), "cross_entropy_forward: logits must be .*float16, got int32; convert it first"),
    (0, (Z[0], T, 0.0), r"logits must have shape \[N, C\] with at least one class, got \[3\]"),
    (0, (Z[:, :0], T, 0.0), r"logits must have shape \[N, C\] with at least one class, got \[2, 0\]"),
    (0, (Z, T, 1.5), "label_smoothing must be from 0 to 1, got 1.5"),
    (0, (Z, T.int(), 0.0), "target must be int64 class indices or probabilities .* float32, got int32"),
    (0, (Z, Z.double(), 0.0), "target must be int64 class indices or probabilities .* float32, got float64"),
    (0, (Z, T[:1], 0.0), r"target must have shape \[2\], got \[1\]"),
    (0, (Z, Z[:, :2], 0.0), r"target must have shape \[2, 3\], got \[2, 2\]"),
    (1, (Z, T, ROW.double(), ROW, 0.0), "cross_entropy_vjp: lse must have dtype float32, got float64"),
    (1, (Z.half(), T, ROW, ROW.half(), 0.0), "weight must have dtype float32, got float16"),
    (1, (Z, T, ROW, ROW[:1], 0.0), r"weight must have shape \[2\], got \[1\]"),
    (2, (Z, T, ROW, ROW, Z.double(), 0.0), "v must have logits's dtype float32, got float64"),
    (2, (Z, T, ROW, ROW, Z[:1], 0.0), r"v must have shape \[2, 3\], got \[1, 3\]"),
]  # fmt: skip


@implementations
@pytest.mark.parametrize(("op", "arguments", "sentence"), BAD_ARGUMENTS)
def test_bad_arguments_are_told_in_a_sentence(
    op: int, arguments: tuple, sentence: str, implementation: str, device: str
) -> None:
    arguments = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
    with pytest.raises(RuntimeError, match=sentence):
        IMPLEMENTATIONS[implementation][op](*arguments)


@pytest.mark.parametrize("name", [*NAMES, "cross_entropy_head"])
def test_native_kernels_are_in_use(name: str, device: str) -> None:
    assert_native(name, device)
