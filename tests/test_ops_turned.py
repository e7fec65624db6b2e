"""Passes that write the transposed copy of their result: the ops, native on CUDA, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from kernels import assert_native
from oracle import difference
from test_ops_activation import KINDS
from torch import Tensor

import datagrad_ext
from datagrad_ext.ops import turned

DEVICES = ("cpu", "cuda", "emulated")
NAMES = ("relu_reverse_turned", "smooth_reverse_turned", "turned_copy")
OPS = torch.ops.datagrad
SHAPES = [(1, 8), (64, 32), (65, 40), (700, 264), (3000, 8)]  # several tiles, and several parts of each sum

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(found: tuple[Tensor, Tensor, Tensor], gx: Tensor, with_sums: bool) -> None:
    """The values and their sums are near gx, and the copy is that of the values."""
    ours, sums, copy = found
    assert difference(ours, gx).norm <= 2e-6
    assert sums.shape == ((gx.shape[1],) if with_sums else (0,))
    if with_sums:
        assert difference(sums, gx.sum(0)).norm <= 2e-5
    assert copy.is_contiguous()
    assert torch.equal(copy, ours.t())


@shapes
def test_copy(shape: tuple[int, int], device: str) -> None:
    a = numbers(*shape, seed=0).to(device)
    copy = OPS.turned_copy(a)
    assert copy.is_contiguous()
    assert torch.equal(copy, a.t())
    assert torch.equal(OPS.turned_copy(copy.t()), copy)


@shapes
@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("with_sums", [True, False])
def test_relu(shape: tuple[int, int], slope: float, with_sums: bool, device: str) -> None:
    z, g = (numbers(*shape, seed=seed) for seed in (1, 2))
    at = z.double().requires_grad_()
    (gx,) = torch.autograd.grad(torch.nn.functional.leaky_relu(at, slope), at, g.double())
    _, bits = OPS.relu_forward(z.to(device), None, -1, slope)
    check(OPS.relu_reverse_turned(g.to(device), bits, slope, with_sums), gx, with_sums)


@shapes
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[name for name, *_ in KINDS])
@pytest.mark.parametrize(("with_zeta", "pairs"), [(True, 0), (True, 2), (False, 1)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_smooth(
    shape: tuple[int, int], kind: int, with_zeta: bool, pairs: int, with_bias: bool, device: str
) -> None:
    """f'(z) ζ + Σ f''(z) t δ is the gradient of ⟨ζ, f(z)⟩ + Σ ⟨δ, f'(z) t⟩."""
    name, constants, f = KINDS[kind]
    x, zeta, *rest = (numbers(*shape, seed=seed) for seed in range(2 + 2 * pairs))
    tangents, cotangents = rest[:pairs], rest[pairs:]
    bias = numbers(shape[1], seed=9) if with_bias else None
    z = (x if bias is None else x + bias).double().requires_grad_()
    total = (f(z) * zeta).sum() * with_zeta
    for t, d in zip(tangents, cotangents, strict=True):
        (first,) = torch.autograd.grad(f(z).sum(), z, create_graph=True)
        total = total + (first * t * d).sum()
    (gx,) = torch.autograd.grad(total, z)
    x, zeta, tangents, cotangents, bias = _to(device, x, zeta, tangents, cotangents, bias)
    given = (zeta if with_zeta else None, tangents, cotangents, x, bias, name, constants, with_bias)
    check(OPS.smooth_reverse_turned(*given), gx, with_bias)


def _to(device: str, *given: Tensor | list[Tensor] | None) -> list:
    moved = [[t.to(device) for t in each] if isinstance(each, list) else each for each in given]
    return [each.to(device) if isinstance(each, Tensor) else each for each in moved]


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES)
def test_native_kernels_are_in_use(name: str) -> None:
    assert_native(name, "cuda")


@pytest.mark.cuda
def test_what_has_no_kernel_is_told_in_a_sentence() -> None:
    for a in (torch.zeros(4, 12, device="cuda"), torch.zeros(4, 8, device="cuda", dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="turned_copy: needs a float32 matrix with a multiple of 8 columns"):
            OPS.turned_copy(a)


def test_a_vector_has_no_transpose() -> None:
    with pytest.raises(RuntimeError, match=r"turned_copy: needs a matrix, got shape \[3\]"):
        turned.turned_copy(torch.zeros(3))


def test_the_package_names_the_ops() -> None:
    assert set(NAMES) <= {op.name for op in datagrad_ext.backends().ops}
