"""Autocast and GradScaler: dtypes are those of torch's own mixed precision, errors no larger, nothing slow."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch
from cases import NETWORKS, Case, flat, ids, mlp, network
from oracle import Results, assert_equal, assert_similar, observe
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from training_code import data_gradient, loss_of
from zoo import OWN, TORCHVISION, needs_torchvision

import datagrad_ext

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
WHOLE = [*NETWORKS, *OWN]


class Penalised:
    """Loss and penalty; forward and data gradient under autocast, as torch's own recipe has them."""

    def __init__(self, device: str, dtype: torch.dtype | None) -> None:
        self.device, self.dtype = device, dtype

    def __call__(self, model: nn.Module, *inputs: Tensor) -> Results:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None), sdpa_kernel(SDPBackend.MATH):
            y = flat(model(*inputs))
            loss = loss_of(y if self.dtype is None else y.float())
            gradients = torch.autograd.grad(loss, inputs, create_graph=True)
            total = loss + sum(J.square().sum() for J in gradients)
        total.backward()
        return {"y": y, **{f"J{i}": J for i, J in enumerate(gradients)}}


def _three(case: Case, device: str, dtype: torch.dtype) -> tuple[Results, Results, Results]:
    """What ours and torch's leave behind under autocast, and what float64 does."""
    single, code = case.build().to(device, torch.float32), Penalised(device, dtype)
    inputs = [t.to(device, torch.float32) for t in case.inputs()]
    try:
        usual = observe(copy.deepcopy(single), inputs, code)
    except RuntimeError as error:
        pytest.skip(f"torch's own: {error}")
    ours = observe(datagrad_ext.accelerate(single), inputs, code)
    exact = [t.double() for t in inputs]
    return ours, usual, observe(case.build().to(device), exact, Penalised(device, None))


def _no_worse(ours: Results, usual: Results, exact: Results) -> None:
    """Same dtypes, and an error of at most twice torch's own and 0.05 (a kink may round otherwise), in direction too.

    Errors of a gradient that cancels are relative to 0.03 of the largest one. What is not finite in torch is left out.
    """
    largest = max((float(t.norm()) for k, t in exact.items() if t is not None and k.startswith("grad ")), default=0.0)
    for name, b in exact.items():
        a, theirs = ours[name], usual[name]
        assert a is not None or theirs is None, name
        if a is None or theirs is None or b is None or not b.is_floating_point():
            continue
        assert a.dtype == theirs.dtype, f"{name}: {a.dtype}, torch has {theirs.dtype}"
        if not bool(theirs.isfinite().all()):
            continue
        scale = max(float(b.norm()), 0.03 * largest)
        errors = [_ratio(t.double() - b, scale) for t in (a, theirs)]
        assert errors[0] <= 2 * errors[1] + 0.05, f"{name}: error {errors[0]:.3f}, torch's own {errors[1]:.3f}"
        turned = [_ratio(t.double() * float(b.norm() / t.double().norm()) - b, scale) for t in (a, theirs) if t.any()]
        assert len(turned) < 2 or turned[0] <= 2 * turned[1] + 0.1, f"{name}: direction {turned}"


def _ratio(error: Tensor, scale: float) -> float:
    return float(error.norm()) / scale if scale else float(error.any())


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("case", WHOLE, ids=ids)
def test_networks(case: Case, dtype: str, device: str) -> None:
    _no_worse(*_three(case, device, LOW[dtype]))


def _single(case: Case, device: str) -> list[Tensor]:
    return [t.to(device, torch.float32) for t in case.inputs()]


def _accelerated(case: Case, device: str) -> nn.Module:
    return datagrad_ext.accelerate(case.build().to(device, torch.float32))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "case",
    [
        *[case for case in NETWORKS if case.opaque is False],
        *OWN,
        *[pytest.param(case, marks=needs_torchvision) for case in TORCHVISION],
    ],
    ids=ids,
)
def test_nothing_is_opaque(case: Case, mode: str, device: str) -> None:
    model = _accelerated(replace(case, train=mode == "train"), device)
    with torch.autocast(device, torch.bfloat16):
        table = datagrad_ext.program(model, *_single(case, device))
    assert not table.note, table.note
    assert [row.layer for row in table.rows if row.kind == "opaque"] == [], str(table)


@pytest.mark.parametrize(
    ("width", "dtype", "casts", "what"),
    [
        (128, torch.bfloat16, [], " (in float32)"),
        (129, torch.bfloat16, ["Cast"], ""),
        (129, torch.float16, [], " (in float32)"),
    ],
)
def test_program_shows_the_casts_and_keeps_its_chains(
    width: int, dtype: torch.dtype, casts: list[str], what: str
) -> None:
    model = datagrad_ext.accelerate(mlp(width=width))
    with torch.autocast("cpu", dtype):
        assert model(torch.ones(2, 6, requires_grad=True)).dtype == dtype
    layers = [row.layer for row in datagrad_ext.program(model).rows]
    assert layers == [*casts, f"Linear → bias + ReLU → Linear → bias + ReLU → Linear{what}"]


def test_the_state_at_the_call_selects_the_trace(device: str) -> None:
    case = network("mlp_relu")
    model = datagrad_ext.accelerate(case.build().to(device, torch.float32))
    x = case.inputs()[0].to(device, torch.float32).requires_grad_()
    states = {False: torch.float32, True: torch.bfloat16}
    for enabled in (False, True, False, True, True, False):
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            assert model(x).dtype == states[enabled]
    with torch.autocast(device, torch.float16):
        assert model(x).dtype == torch.float16


@pytest.mark.parametrize("name", ["mlp_relu", "conv_critic", "dag_dense"])
def test_backward_under_autocast_of_a_forward_without(name: str, device: str) -> None:
    """The sweeps keep the forward's dtype, and leave no cast without a graph in autocast's cache."""
    case = network(name)
    model, plain = (m.to(device, torch.float32) for m in (case.build(), case.build()))
    datagrad_ext.accelerate(model)

    def code(net: nn.Module, x: Tensor, enabled: bool) -> Results:
        y = net(x)
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            J = data_gradient(loss_of(y), x)
            (loss_of(y) + J.square().sum()).backward()
            again = torch.autograd.grad(loss_of(net(x).float()), [*net.parameters()]) if enabled else []
        assert all(g is not None for g in again)
        return {"J": J}

    x = [t.to(device, torch.float32) for t in case.inputs()]
    ours = observe(model, x, lambda m, v: code(m, v, True))
    assert_equal(ours, observe(plain, x, lambda m, v: code(m, v, False)), rtol=1e-4)


def test_functional(device: str) -> None:
    def code(model: nn.Module, x: Tensor, f: object) -> Results:
        with torch.autocast(device, torch.bfloat16):
            h = f.softplus(f.linear(x, model.weight, model.bias))  # type: ignore[attr-defined]
            J = data_gradient(loss_of(h.float()), x)
        J.square().sum().backward()
        return {"h": h, "J": J}

    model = nn.Linear(6, 5).to(device)
    x = [network("mlp_relu").inputs()[0].to(device, torch.float32)]
    usual = observe(model, x, lambda m, v: code(m, v, torch.nn.functional))
    ours = observe(model, x, lambda m, v: code(m, v, datagrad_ext.functional))
    assert ours["value h"].dtype == usual["value h"].dtype
    assert_similar(ours, usual, norm=0.05, cosine=0.01, bias=0.05)
    assert model.weight.grad.dtype == torch.float32


# ---------------------------------------------------------------------------------------------- GradScaler


def _scaled_steps(model: nn.Module, x: Tensor, device: str, by_hand: bool) -> tuple[Results, list[float]]:
    """Two float16 steps by torch's recipe, or with `amp.data_gradient`; a third one whose scale overflows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**7, growth_interval=1)
    scales = []
    for step in range(3):
        v = x.clone().requires_grad_()
        if step == 2:
            scaler.update(2.0**40)
        with torch.autocast(device, torch.float16):
            loss = loss_of(model(v).float())
        if by_hand:
            (J,) = torch.autograd.grad(scaler.scale(loss), v, create_graph=True)
            J = J / scaler.get_scale()
        else:
            J = datagrad_ext.amp.data_gradient(loss, v, scaler)
        optimizer.zero_grad()
        scaler.scale(loss + J.square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {name: p.detach().clone() for name, p in model.named_parameters()}, scales


@pytest.mark.parametrize("name", ["mlp_relu", "conv_critic"])
def test_grad_scaler(name: str, device: str) -> None:
    """Same parameters as torch's recipe on the plain model; an overflow skips the step and lowers the scale."""
    case = network(name)
    plain = case.build().to(device, torch.float32)
    ours = datagrad_ext.accelerate(copy.deepcopy(plain))
    start = {key: p.detach().clone() for key, p in plain.named_parameters()}
    x = case.inputs()[0].to(device, torch.float32)
    expected, scales = _scaled_steps(plain, x, device, by_hand=True)
    actual, our_scales = _scaled_steps(ours, x, device, by_hand=False)
    assert our_scales == scales == [2.0**8, 2.0**9, 2.0**39]
    moved = {key: actual[key] - start[key] for key in start}
    assert_similar(moved, {key: expected[key] - start[key] for key in start}, norm=0.1, cosine=0.01, bias=0.1)


def test_data_gradient_without_a_scaler_is_that_of_autograd() -> None:
    model, (x, z) = network("dag_two_inputs_mul").build(), network("dag_two_inputs_mul").inputs()
    inputs = [x.requires_grad_(), z.requires_grad_()]
    loss = loss_of(model(*inputs))
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu")):
        found = datagrad_ext.amp.data_gradient(loss, inputs, scaler)
        assert_equal(dict(zip("xz", found, strict=True)), dict(zip("xz", expected, strict=True)))
        assert all(J.requires_grad for J in found)


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_critic"])
def test_third_order_under_autocast_takes_the_reference_path(name: str, device: str) -> None:
    """A penalty on ∂ mean ‖J‖² / ∂x: the program's own casts, run again under ordinary autograd."""
    case = network(name)

    def code(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Results:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            y = model(x)
            J = data_gradient(loss_of(y if dtype is None else y.float()), x)
            K = data_gradient(J.square().sum(), x)
            total = K.square().sum()
        total.backward()
        return {"K": K}

    single, x = case.build().to(device, torch.float32), case.inputs()[0].to(device, torch.float32)
    usual = observe(copy.deepcopy(single), [x], lambda m, v: code(m, v, torch.bfloat16))
    with pytest.warns(datagrad_ext.ReferencePathWarning, match="third order"):
        ours = observe(datagrad_ext.accelerate(single), [x], lambda m, v: code(m, v, torch.bfloat16))
    exact = observe(case.build().to(device), [x.double()], lambda m, v: code(m, v, None))
    _no_worse(ours, usual, exact)


def test_no_reference_cycles(device: str) -> None:
    """With the garbage collector off, ten steps under autocast leave not one tensor behind."""
    model = datagrad_ext.accelerate(network("mlp_layer_norm").build().to(device, torch.float32))
    x = network("mlp_layer_norm").inputs()[0].to(device, torch.float32).requires_grad_()
    step = Penalised(device, torch.bfloat16)

    def alive() -> int:
        return sum(type(o) in (Tensor, nn.Parameter) for o in gc.get_objects())

    step(model, x)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(10):
            step(model, x)
        assert alive() <= before
    finally:
        gc.enable()
