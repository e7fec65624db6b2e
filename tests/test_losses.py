"""losses.cross_entropy against torch's: values, three orders of derivatives, and what is passed on to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import difference
from torch import Tensor
from torch.autograd import forward_ad

from datagrad_ext import losses

FUNCTIONS: tuple[Callable[..., Tensor], ...] = (losses.cross_entropy, F.cross_entropy)


@dataclass(frozen=True)
class Case:
    """A call: shape of the logits, kind of target, keyword arguments."""

    shape: tuple[int, ...]
    target: str = "indices"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.target} {self.options}"

    def logits(self, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return (2 * z).to(device, dtype).requires_grad_()

    def targets(self, dtype: torch.dtype, device: str) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        dim = 0 if len(self.shape) == 1 else 1
        if self.target == "probabilities":
            y = torch.rand(self.shape, generator=generator, dtype=torch.float64)
            return (y / y.sum(dim, keepdim=True)).to(device, dtype)
        rest = self.shape[:dim] + self.shape[dim + 1 :]
        t = torch.randint(0, self.shape[dim], rest, generator=generator)
        if self.target == "some ignored":
            t.view(-1)[::2] = self.options.get("ignore_index", -100)
        return t.to(device)


SMOOTH = {"label_smoothing": 0.1}
CASES = [
    *[Case((6, 5), target) for target in ("indices", "probabilities", "some ignored")],
    *[Case((6, 5), target, SMOOTH) for target in ("indices", "probabilities", "some ignored")],
    Case((6, 5), "some ignored", {"ignore_index": 3}),
    Case((6, 5), "some ignored", {"ignore_index": 3, **SMOOTH}),
    *[Case((5,), target, SMOOTH) for target in ("indices", "probabilities")],
    *[Case((2, 3, 4), target, SMOOTH) for target in ("indices", "probabilities", "some ignored")],
    *[Case((2, 3, 2, 4), target) for target in ("indices", "probabilities", "some ignored")],
]  # fmt: skip
REDUCTIONS = ["mean", "sum", "none"]

cases = pytest.mark.parametrize("case", CASES, ids=str)
# torch.func and forward mode import torch's decompositions, which warn of their own torch.jit.script.
imports_decompositions = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


@reductions
@cases
def test_three_orders_equal_pytorch(case: Case, reduction: str, device: str) -> None:
    z, t = case.logits(torch.float64, device), case.targets(torch.float64, device)
    orders = []
    for function in FUNCTIONS:
        loss = function(z, t, reduction=reduction, **case.options)
        (first,) = torch.autograd.grad(loss.sin().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), z, create_graph=True)
        (third,) = torch.autograd.grad(second.square().sum(), z)
        orders.append([loss, first, second, third])
    for ours, theirs in zip(*orders, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert difference(ours, theirs).elementwise <= 1e-10


@cases
def test_gradcheck(case: Case, device: str) -> None:
    z, t = case.logits(torch.float64, device), case.targets(torch.float64, device)
    for reduction in ("mean", "none"):

        def loss(z: Tensor, reduction: str = reduction) -> Tensor:
            return losses.cross_entropy(z, t, reduction=reduction, **case.options)

        assert torch.autograd.gradcheck(loss, z)
        assert torch.autograd.gradgradcheck(loss, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@cases
def test_low_precision(case: Case, dtype: torch.dtype, device: str) -> None:
    """Loss and two derivatives are as near to the exact ones as PyTorch's in that dtype, or within a few roundings.

    The median over draws: in one draw of a few numbers either side may be lucky.
    """
    norms, cosines = [], []
    for seed in range(20):
        ours, theirs, exact = low_precision_orders(case, dtype, device, seed)
        assert [t.dtype for t in ours] == [dtype] * 3
        errors = [[difference(a, e) for a, e in zip(side, exact, strict=True)] for side in (ours, theirs)]
        norms.append([[error.norm for error in side] for side in errors])
        cosines.append([[error.cosine for error in side] for side in errors])
    for measured in (norms, cosines):
        error, bar = torch.tensor(measured).median(0).values
        assert (error <= torch.clamp(2 * bar, min=4 * torch.finfo(dtype).eps)).all(), (error, bar)


def low_precision_orders(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[list[Tensor]]:
    """Loss, gradient and Hessian-vector product: ours and PyTorch's in `dtype`, and the exact ones."""
    orders = []
    for function, exact in ((losses.cross_entropy, False), (F.cross_entropy, False), (F.cross_entropy, True)):
        z, t = case.logits(dtype, device, seed), case.targets(dtype, device)
        if exact:
            z, t = z.detach().double().requires_grad_(), t.double() if t.is_floating_point() else t
        loss = function(z, t, **case.options)
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        v = torch.linspace(-1, 1, z.numel(), dtype=z.dtype, device=device).view(z.shape)
        (second,) = torch.autograd.grad(first, z, v)
        orders.append([loss, first, second])
    return orders


def test_double_backprop_through_a_network(device: str) -> None:
    case = Case((6, 5))
    x, weight = (Case((6, 5)).logits(torch.float64, device) for _ in range(2))
    t, results = case.targets(torch.float64, device), []
    for function in FUNCTIONS:
        loss = function(torch.tanh(x @ weight[:5]), t)
        (J,) = torch.autograd.grad(loss, x, create_graph=True)
        results.append(torch.autograd.grad(loss + J.square().sum(), weight)[0])
    assert difference(*results).elementwise <= 1e-10


Z = Case((4, 3)).logits(torch.float64, "cpu")
INDICES, PROBABILITIES = Case((4, 3)).targets(torch.float64, "cpu"), torch.softmax(Z.detach().flip(0), 1)
NOT_FUSED = {
    "class weights": (Z, INDICES, {"weight": torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)}),
    "probabilities that require a gradient": (Z, PROBABILITIES.clone().requires_grad_(), {}),
    "uint8 indices": (Z, INDICES.to(torch.uint8), {}),
    "targets in another dtype": (Z.detach().float().requires_grad_(), PROBABILITIES, {}),
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_is_not_fused_is_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, t, options = NOT_FUSED[name]
    inputs = [x for x in (z, t) if x.requires_grad]
    monkeypatch.setattr(losses._CrossEntropy, "apply", None)
    (ours, ours_first), (theirs, theirs_first) = (
        (loss, torch.autograd.grad(loss, inputs)) for loss in (f(z, t, **options) for f in FUNCTIONS)
    )
    assert torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours_first, theirs_first, strict=True))


ERRORS = {
    "shape": (Z, INDICES[:2], {}),
    "dtype of the target": (Z, INDICES.int(), {}),
    "integer logits": (Z.detach().long(), INDICES, {}),
    "reduction": (Z, INDICES, {"reduction": "median"}),
    "label smoothing": (Z, INDICES, {"label_smoothing": 2.0}),
    "ignored probabilities": (Z, PROBABILITIES, {"ignore_index": 1}),
    "scalar": (torch.tensor(1.0), INDICES[0], {}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_pytorchs(name: str) -> None:
    z, t, options = ERRORS[name]
    with pytest.raises(Exception) as theirs:
        F.cross_entropy(z, t, **options)
    with pytest.raises(theirs.type) as ours:
        losses.cross_entropy(z, t, **options)
    assert str(ours.value) == str(theirs.value)


@reductions
@pytest.mark.parametrize("target", ["indices", "probabilities"])
def test_empty_batches(target: str, reduction: str, device: str) -> None:
    case = Case((0, 3), target)
    z, t = case.logits(torch.float64, device), case.targets(torch.float64, device)
    ours, theirs = (f(z, t, reduction=reduction) for f in FUNCTIONS)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert torch.autograd.grad(ours.sum(), z)[0].shape == z.shape


def test_all_rows_ignored(device: str) -> None:
    z, t = Case((3, 4)).logits(torch.float64, device), torch.full((3,), -100, device=device)
    for reduction in REDUCTIONS:
        ours, theirs = (f(z, t, reduction=reduction) for f in FUNCTIONS)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@imports_decompositions
@cases
def test_torch_func_and_forward_mode(case: Case, device: str) -> None:
    z, t = case.logits(torch.float64, device).detach(), case.targets(torch.float64, device)
    for transform in (torch.func.grad, torch.func.hessian):
        ours, theirs = (transform(lambda z, f=f: f(z, t, **case.options))(z) for f in FUNCTIONS)
        assert difference(ours, theirs).elementwise <= 1e-10
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z).cumsum(0))
        ours, theirs = (forward_ad.unpack_dual(f(dual, t, **case.options)).tangent for f in FUNCTIONS)
        assert difference(ours, theirs, floor=1.0).elementwise <= 1e-10


def test_autocast(device: str) -> None:
    x, t = Case((4, 3)).logits(torch.float32, device), Case((4, 3)).targets(torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        ours, theirs = (f(x @ x.t(), t) for f in FUNCTIONS)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
