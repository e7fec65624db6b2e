"""Convolutions of any shape: hypothesis draws rank, batch, channels, kernel, stride, padding, dilation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from cases import data
from hypothesis import HealthCheck, given, settings
from kernels import assert_native
from oracle import check, difference
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext.layers.convolution import Convolution
from datagrad_ext.layers.few import Few

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _each(draw: Any, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(rank))


@st.composite
def convolutions(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution, perhaps an activation after it, and an input shape (not always a possible one)."""
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    stride = _each(draw, rank, 1, 3)
    padding: Any = draw(st.sampled_from(["numbers", "same", "valid"]))
    if padding == "numbers":
        padding = _each(draw, rank, 0, 2)
    elif padding == "same":
        stride = (1,) * rank
    conv = CONVS[rank](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        _each(draw, rank, 1, 4),
        stride,
        padding,
        _each(draw, rank, 1, 2),
        groups,
        draw(st.booleans()),
    )
    return _finished(draw, conv, rank)


@st.composite
def transposed(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    stride, dilation = _each(draw, rank, 1, 3), _each(draw, rank, 1, 2)
    output_padding = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    conv = TRANSPOSED[rank](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        _each(draw, rank, 1, 3),
        stride,
        _each(draw, rank, 0, 1),
        output_padding,
        groups,
        draw(st.booleans()),
        dilation,
    )
    return _finished(draw, conv, rank)


@st.composite
def filtered(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution that the CPU computes by minimal filtering where the batch has tiles enough."""
    kernel, stride = draw(st.sampled_from([(3, 1), (4, 2)]))
    channels = [16 * draw(st.integers(1, 3)) for _ in range(2)]
    conv = nn.Conv2d(*channels, kernel, stride, _each(draw, 2, 0, 4), bias=draw(st.booleans()))
    return _finished(draw, conv, 2, (3, 16))


def _finished(
    draw: Any, conv: nn.Module, rank: int, sizes: tuple[int, int] = (1, 6)
) -> tuple[nn.Module, tuple[int, ...]]:
    with torch.no_grad():
        for k, parameter in enumerate(conv.parameters()):
            parameter.copy_(data(*parameter.shape, seed=k))
    batch = draw(st.sampled_from([(), (0,), (1,), (2,), (3,)]))
    shape = (*batch, conv.in_channels, *_each(draw, rank, *sizes))
    after = draw(st.sampled_from([None, nn.ReLU, nn.Tanh]))
    module = conv if after is None else nn.Sequential(conv, after())
    if draw(st.booleans()):
        module = nn.Sequential(nn.Softplus(), module)
    return module.double(), shape


def _step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = model(x)
    loss = torch.nn.functional.softplus(y).sum()
    (J,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + J.square().sum() + J.abs().sum()).backward()
    return {"y": y, "J": J}


def _refusal(model: nn.Module, x: Tensor) -> type[Exception] | None:
    """What plain PyTorch raises for this shape."""
    try:
        _step(model, x.clone().requires_grad_())
    except Exception as error:
        return type(error)
    finally:
        model.zero_grad()
    return None


def _agrees(module: nn.Module, shape: tuple[int, ...], device: str) -> None:
    x = data(*shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same'")  # torch's, of an even kernel
        refusal = _refusal(module, x)
        if refusal is None:
            check(module, [x], _step, datagrad_ext.accelerate, device=device)
            return
        found = _refusal(datagrad_ext.accelerate(module), x)
    assert found is refusal, f"raises {found}, plain PyTorch {refusal}"


@QUICK
@given(case=convolutions())
def test_convolution(device: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    _agrees(*case, device)


@QUICK
@given(case=transposed())
def test_transposed_convolution(device: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    _agrees(*case, device)


@settings(QUICK, max_examples=30)
@given(case=filtered())
def test_filtered_convolution(device: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    _agrees(*case, device)


@pytest.mark.parametrize(
    ("shape", "weight", "options", "alone", "rectified"),
    [
        ((1, 64, 8, 8), (128, 64, 4, 4), dict(stride=2, padding=1), Few.PIXELS, Few.PIXELS),
        ((8, 64, 8, 8), (128, 64, 4, 4), dict(stride=2, padding=1), Few.PIXELS, Few.PIXELS),
        ((64, 64, 8, 8), (128, 64, 4, 4), dict(stride=2, padding=1), Few.PIXELS, Few.PIXELS),
        ((64, 60, 8, 8), (128, 60, 4, 4), dict(stride=2, padding=1), None, Few.PIXELS),
        ((64, 64, 16, 16), (120, 64, 4, 4), dict(stride=2, padding=1), None, None),
        ((14, 16, 32, 32), (16, 16, 3, 3), dict(padding=1), Few.PIXELS, Few.PIXELS),
        ((64, 16, 32, 32), (16, 16, 3, 3), dict(padding=1), Few.PIXELS, Few.PIXELS),
        ((64, 16, 32, 32), (16, 16, 3, 3), dict(padding=2, dilation=2), None, None),
        ((64, 64, 64, 64), (64, 64, 3, 3), dict(padding=1), None, None),
        ((15, 10, 32, 32), (16, 10, 3, 3), dict(padding=1), Few.PIXELS, Few.PIXELS),
        ((1, 16, 32, 32), (32, 16, 1, 1), dict(stride=2), Few.PIXELS, Few.PIXELS),
        ((1, 16, 32, 32), (32, 16, 1, 1), {}, None, None),
        ((32, 3, 32, 32), (32, 3, 4, 4), dict(stride=2, padding=1), Few.PIXELS, Few.PIXELS),
        ((64, 3, 64, 64), (64, 3, 4, 4), dict(stride=2, padding=1), Few.CHANNELS, Few.CHANNELS),
        ((64, 3, 64, 64), (64, 3, 3, 3), dict(padding=1), None, None),
        ((1, 64, 8, 8), (128, 32, 4, 4), dict(groups=2), None, None),
        ((0, 64, 8, 8), (128, 64, 4, 4), {}, None, None),
    ],
)
def test_which_products_are_own(
    shape: tuple, weight: tuple, options: dict, alone: Few | None, rectified: Few | None
) -> None:
    assert_native("convolution_forward", "cpu")
    layer = Convolution(2, **dict(stride=1, padding=0, dilation=1, groups=1) | options)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, w = torch.empty(shape, dtype=dtype), torch.empty(weight, dtype=dtype)
        expected = (None, None) if dtype == torch.bfloat16 else (alone, rectified)
        assert (layer.few(x, w), layer.few(x, w, rectified=True)) == expected


def test_a_weight_follows_its_input_into_channels_last_once() -> None:
    """float32, where the vendor's convolutions read channels_last: one copy a forward, the same gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(24, 25, 3), nn.Tanh(), nn.Conv2d(25, 8, 1), nn.Softplus(), nn.Conv2d(8, 7, 3))
    exact, x = copy.deepcopy(model).double(), data(24, 24, 30, 30)
    _step(exact, x.clone().requires_grad_())
    fast = datagrad_ext.accelerate(model)
    x = x.float().contiguous(memory_format=torch.channels_last)
    _step(fast, x.clone().requires_grad_())
    for found, expected in zip(fast.parameters(), exact.parameters(), strict=True):
        assert difference(found.grad, expected.grad).norm < 1e-5
    _, saved = Convolution(2, 1, 0, 1, 1).forward((x,), (model[0].weight.detach(),))
    assert saved[2].is_contiguous(memory_format=torch.channels_last)
