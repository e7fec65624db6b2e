"""The penalties as users call them: derivatives of every order, transforms, dtypes, errors."""

from __future__ import annotations

import pytest
import torch
from oracle import difference
from torch import Tensor
from torch.autograd import forward_ad

from datagrad_ext import penalties

# name -> the penalty, the same in plain PyTorch
PENALTIES = {
    "l1": (penalties.l1, lambda J: J.flatten(1).abs().sum(1)),
    "l2": (penalties.l2, lambda J: J.flatten(1).norm(dim=1)),
    "l2_squared": (penalties.l2_squared, lambda J: J.flatten(1).square().sum(1)),
    "linf": (penalties.linf, lambda J: J.flatten(1).abs().amax(1)),
}

names = pytest.mark.parametrize("name", PENALTIES)
# torch.func and forward mode import torch's decompositions, which warn of their own torch.jit.script.
imports_decompositions = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def sample(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


@names
def test_gradcheck(name: str, device: str) -> None:
    J = sample(3, 2, 4, device=device)
    assert torch.autograd.gradcheck(PENALTIES[name][0], J)
    assert torch.autograd.gradgradcheck(PENALTIES[name][0], J)


@names
def test_three_orders_equal_autograd(name: str, device: str) -> None:
    J = sample(5, 3, 4, device=device)
    orders = []
    for penalty in PENALTIES[name]:
        value = penalty(J).pow(3)
        (first,) = torch.autograd.grad(value.sum(), J, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), J, create_graph=True)
        (third,) = torch.autograd.grad(second.square().sum(), J)
        orders.append([value, first, second, third])
    for ours, theirs in zip(*orders, strict=True):
        assert difference(ours, theirs).elementwise <= 1e-10


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(name: str, dtype: torch.dtype, device: str) -> None:
    J = sample(6, 50, dtype=dtype, device=device)
    exact = J.detach().double().requires_grad_()
    ours, theirs = (penalty(x) for penalty, x in zip(PENALTIES[name], (J, exact), strict=True))
    assert ours.dtype == torch.float32
    assert difference(ours, theirs).norm <= 1e-6
    (first,), (exact_first,) = torch.autograd.grad(ours.sum(), J), torch.autograd.grad(theirs.sum(), exact)
    assert first.dtype == dtype
    error = difference(first, exact_first)
    assert max(error.norm, error.cosine) <= torch.finfo(dtype).eps


@names
@pytest.mark.parametrize("create_graph", [False, True])
def test_derivatives_at_zero_are_zero(name: str, create_graph: bool, device: str) -> None:
    J = torch.zeros(2, 3, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(PENALTIES[name][0](J).sum(), J, create_graph=create_graph)
    assert (first == 0).all()
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), J)
        assert second.isfinite().all()


@names
def test_double_backprop_through_a_network(name: str, device: str) -> None:
    """The use it is made for: the gradient of a penalty on a data gradient, by the weights."""
    x, weight = sample(4, 6, device=device), sample(6, 6, device=device)
    results = []
    for penalty in PENALTIES[name]:
        loss = torch.tanh(x @ weight).square().sum()
        (J,) = torch.autograd.grad(loss, x, create_graph=True)
        results.append(torch.autograd.grad(penalty(J).square().sum(), weight)[0])
    assert difference(*results).elementwise <= 1e-10


@imports_decompositions
@names
def test_torch_func(name: str, device: str) -> None:
    J = sample(4, 6, device=device).detach()
    for transform in (torch.func.grad, torch.func.hessian):
        ours, theirs = (transform(lambda J, p=p: p(J).sum())(J) for p in PENALTIES[name])
        assert difference(ours, theirs).elementwise <= 1e-10
    ours, theirs = (torch.func.vmap(p)(J.view(2, 2, 6)) for p in PENALTIES[name])
    assert difference(ours, theirs).elementwise <= 1e-10


@imports_decompositions
@names
def test_forward_mode(name: str, device: str) -> None:
    J, t = sample(4, 6, device=device).detach(), sample(4, 6, device=device).detach() + 1
    with forward_ad.dual_level():
        ours, theirs = (forward_ad.unpack_dual(p(forward_ad.make_dual(J, t))).tangent for p in PENALTIES[name])
        assert difference(ours, theirs).elementwise <= 1e-10


@names
def test_autocast(name: str, device: str) -> None:
    x, weight = (sample(n, 6, dtype=torch.float32, device=device) for n in (4, 6))
    gradients = []
    for penalty in PENALTIES[name]:
        with torch.autocast(device, torch.bfloat16):
            (J,) = torch.autograd.grad((x @ weight).square().sum(), x, create_graph=True)
            value = penalty(J).sum()
        gradients.append(torch.autograd.grad(value, weight)[0])
    assert difference(*gradients).norm <= 1e-2


@names
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4,), (0,)], ids=str)
def test_empty_and_flat(name: str, shape: tuple[int, ...], device: str) -> None:
    J = sample(*shape, device=device)
    value = PENALTIES[name][0](J)
    assert value.shape == shape[:1]
    (first,) = torch.autograd.grad(value.sum(), J, create_graph=True)
    assert first.shape == J.shape


@names
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused_in_a_sentence(name: str, dtype: torch.dtype, device: str) -> None:
    J = torch.ones(2, 3, device=device).to(dtype)
    with pytest.raises(RuntimeError, match="J must be float32, float64, bfloat16 or float16, got"):
        PENALTIES[name][0](J)


@names
def test_an_in_place_change_between_forward_and_backward_raises(name: str) -> None:
    J = sample(3, 4)
    copy = J.clone()
    value = PENALTIES[name][0](copy).sum()
    copy.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
