"""The convolution ops, native and reference, against aten in float64, where one call is one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import data, ids
from kernels import assert_native, same_layout
from oracle import difference
from torch import Tensor

from datagrad_ext.ops import activation, convolution
from datagrad_ext.ops._library import is_channels_last

_ALONE = ("convolution_forward", "convolution_reverse")
_RECTIFIED = tuple(f"convolution_relu_{sweep}" for sweep in ("forward", "vjp", "jvp", "reverse"))


def _both(names: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    ops = {name: getattr(torch.ops.datagrad, name).default for name in names}
    return {"op": tuple(ops.values()), "reference": tuple(getattr(convolution, name) for name in names)}


IMPLEMENTATIONS, RECTIFIED = _both(_ALONE), _both(_RECTIFIED)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6}


@dataclass(frozen=True)
class Row:
    """x and weight shapes, and the geometry."""

    name: str
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        return [*self.stride], [*self.padding], [*self.dilation]


ROWS = [
    Row("one_pixel", (1, 3, 4, 4), (5, 3, 4, 4)),
    Row("critic", (2, 8, 8, 8), (16, 8, 4, 4), (2, 2), (1, 1)),
    Row("three", (3, 5, 6, 7), (9, 5, 3, 3), (1, 1), (1, 1)),
    Row("one_by_one", (2, 33, 3, 5), (7, 33, 1, 1), (2, 2)),
    Row("uneven", (1, 2, 7, 9), (3, 2, 2, 5), (3, 2), (1, 2), (2, 1)),
    Row("dilation", (2, 3, 9, 8), (4, 3, 3, 2), (1, 2), (0, 2), (2, 3)),
    Row("wide_padding", (1, 1, 2, 2), (2, 1, 2, 2), (1, 1), (3, 3)),
    Row("long_row", (1, 40, 1, 6), (18, 40, 1, 3), (1, 1), (0, 1)),
    Row("column", (2, 4, 9, 1), (3, 4, 3, 1), (2, 1), (1, 0)),
    Row("many_pixels", (2, 3, 21, 19), (4, 3, 4, 4), (1, 1), (2, 2)),
    Row("groups_of_samples", (40, 6, 16, 16), (8, 6, 3, 3), (1, 1), (1, 1)),
    Row("chain", (4, 16, 9, 8), (16, 16, 3, 3), (1, 1), (1, 1)),
    Row("wide", (3, 37, 6, 5), (50, 37, 3, 3), (1, 1), (1, 1)),
    Row("stride_beyond_the_kernel", (3, 5, 8, 9), (6, 5, 2, 2), (3, 3), (1, 0)),
    Row("stride_and_dilation", (3, 6, 11, 10), (5, 6, 3, 3), (2, 2), (2, 2), (2, 2)),
    Row("padding_beyond_the_kernel", (2, 5, 4, 4), (6, 5, 2, 3), (2, 1), (3, 4)),
    Row("filtered", (3, 16, 9, 8), (16, 16, 3, 3), (1, 1), (1, 1)),
    Row("filtered_wide", (3, 32, 13, 12), (48, 32, 3, 3), (1, 1), (0, 2)),
    Row("filtered_one_sample", (1, 16, 28, 23), (32, 16, 3, 3), (1, 1), (1, 1)),
    Row("filtered_stride", (9, 32, 8, 8), (64, 32, 4, 4), (2, 2), (1, 1)),
    Row("filtered_stride_odd", (6, 16, 11, 13), (48, 16, 4, 4), (2, 2), (2, 0)),
    Row("large_tiles", (4, 16, 32, 12), (32, 16, 3, 3), (1, 1), (1, 1)),
    Row("large_tiles_one_sample", (1, 32, 34, 34), (16, 32, 3, 3), (1, 1), (0, 2)),
    Row("large_tiles_stride", (6, 16, 32, 24), (48, 16, 4, 4), (2, 2), (1, 1)),
    Row("no_sample", (0, 3, 5, 5), (4, 3, 3, 3)),
]

rows = pytest.mark.parametrize("row", ROWS, ids=ids)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
weight_layouts = pytest.mark.parametrize("weight_layout", LAYOUTS)


def _sample(shape: tuple[int, ...], seed: int, dtype: torch.dtype, layout: str) -> Tensor:
    return data(*shape, seed=seed).to(dtype).contiguous(memory_format=LAYOUTS[layout])


def _error(actual: Tensor, expected: Tensor) -> float:
    return difference(actual, expected).norm


def _expected(row: Row, x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    x, weight = x.double().contiguous(), weight.double().contiguous()
    return torch.convolution(x, weight, bias, *row.geometry, False, [0, 0], 1)


@pytest.mark.parametrize("name", [*_ALONE, *_RECTIFIED])
def test_is_native(name: str) -> None:
    assert_native(name, "cpu")


@rows
@implementations
@dtypes
@layouts
@weight_layouts
def test_maps(row: Row, implementation: str, dtype: torch.dtype, layout: str, weight_layout: str) -> None:
    forward, reverse = IMPLEMENTATIONS[implementation]
    x, t = (_sample(row.x, seed, dtype, layout) for seed in (1, 2))
    weight, bias = _sample(row.weight, 3, dtype, weight_layout), data(row.weight[0], seed=4).to(dtype)
    leaf, kernel = (a.double().clone().requires_grad_() for a in (x, weight))
    y = _expected(row, leaf, kernel, bias.double())
    zeta, delta = (_sample(tuple(y.shape), seed, dtype, layout) for seed in (5, 6))

    found = forward(x, weight, bias, *row.geometry)
    same_layout(found, y.to(dtype).contiguous(memory_format=LAYOUTS["contiguous" if x.is_contiguous() else layout]))
    assert _error(found, y) < TOLERANCES[dtype]
    assert _error(forward(x, weight, None, *row.geometry), _expected(row, x, weight)) < TOLERANCES[dtype]

    value = (y * zeta.double()).sum() + (_expected(row, t, kernel) * delta.double()).sum()
    for mask in ((True, True), (True, False), (False, True)):
        wanted = [target for target, want in zip((leaf, kernel), mask, strict=True) if want]
        expected = torch.autograd.grad(value, wanted, retain_graph=True)
        likes = [like for like, want in zip((x, weight), mask, strict=True) if want]
        bars = reverse(zeta, x, [delta], [t], weight, *row.geometry, *mask)
        for bar, wanted_bar, like in zip(bars, expected, likes, strict=True):
            same_layout(bar, like)
            assert _error(bar, wanted_bar) < TOLERANCES[dtype]
    (w_bar,) = reverse(None, x, [delta, zeta], [t, x], weight, *row.geometry, False, True)
    assert _error(w_bar, torch.autograd.grad(value, kernel)[0]) < TOLERANCES[dtype]


@rows
@implementations
@dtypes
@layouts
@weight_layouts
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_rectified_maps(
    row: Row, implementation: str, dtype: torch.dtype, layout: str, weight_layout: str, slope: float
) -> None:
    """The value, and the maps of the convolution between cotangents that the bits gate."""
    forward, vjp, jvp, reverse = RECTIFIED[implementation]
    x, t = (_sample(row.x, seed, dtype, layout) for seed in (1, 2))
    weight, bias = _sample(row.weight, 3, dtype, weight_layout), data(row.weight[0], seed=4).to(dtype)
    leaf, kernel = (a.double().clone().requires_grad_() for a in (x, weight))
    z = _expected(row, leaf, kernel, bias.double())
    g, zeta = (_sample(tuple(z.shape), seed, dtype, layout) for seed in (5, 6))

    y, bits = forward(x, weight, bias, slope, *row.geometry)
    channels_last = is_channels_last(x)
    same_layout(y, z.to(dtype).contiguous(memory_format=LAYOUTS["channels_last" if channels_last else "contiguous"]))
    assert _error(y, torch.nn.functional.leaky_relu(z, slope)) < TOLERANCES[dtype]
    assert torch.equal(activation.relu_gate(torch.ones_like(y), bits, 0.0, channels_last), (y > 0).to(dtype))
    without_bias = forward(x, weight, None, slope, *row.geometry)[0]
    assert _error(without_bias, torch.nn.functional.leaky_relu(_expected(row, x, weight), slope)) < TOLERANCES[dtype]

    def gated(a: Tensor) -> Tensor:
        return activation.relu_gate(a.double(), bits, slope, channels_last)

    gate = (bits, slope, x, weight)
    x_bar = vjp(g, *gate, *row.geometry)
    same_layout(x_bar, x)
    assert _error(x_bar, torch.autograd.grad(z, leaf, gated(g), retain_graph=True)[0]) < TOLERANCES[dtype]
    t_y = jvp(t, *gate, *row.geometry)
    same_layout(t_y, y)
    assert _error(t_y, gated(_expected(row, t, weight))) < TOLERANCES[dtype]

    value = (z * gated(zeta)).sum() + (_expected(row, t, kernel) * gated(g)).sum()
    bars = reverse(zeta, *gate, [g], [t], *row.geometry, True, True, True)
    expected = [*torch.autograd.grad(value, [leaf, kernel], retain_graph=True), gated(zeta).sum((0, 2, 3))]
    for bar, wanted, like in zip(bars, expected, (x, weight, bias), strict=True):
        same_layout(bar, like)
        assert _error(bar, wanted) < TOLERANCES[dtype]
    bars = reverse(zeta, *gate, [], [], *row.geometry, True, False, True)
    assert max(map(_error, bars, (torch.autograd.grad(z, leaf, gated(zeta))[0], expected[2]))) < TOLERANCES[dtype]
    (w_bar,) = reverse(None, *gate, [g], [t], *row.geometry, False, True, False)
    alone = torch.autograd.grad((_expected(row, t, kernel) * gated(g)).sum(), kernel)[0]
    assert _error(w_bar, alone) < TOLERANCES[dtype]


@implementations
def test_any_strides(implementation: str) -> None:
    """Inputs that are neither contiguous nor channels_last: transposed, sliced, expanded."""
    forward, reverse = IMPLEMENTATIONS[implementation]
    row = ROWS[2]
    _, channels, height, width = row.x
    weight = data(*row.weight, seed=3).transpose(2, 3)
    y_shape = tuple(_expected(row, data(*row.x), weight).shape)
    for x, g in (
        (data(*row.x).transpose(2, 3).contiguous().transpose(2, 3), data(*y_shape).flip(3).mT.contiguous().mT),
        (data(3, channels, height, 2 * width)[..., ::2], data(3, 2 * y_shape[1], *y_shape[2:])[:, ::2]),
        (data(1, channels, 1, width).expand(row.x), data(1, 1, 1, 1).expand(y_shape)),
    ):
        leaf, kernel = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = _expected(row, leaf, kernel)
        expected = torch.autograd.grad(y, [leaf, kernel], g)
        assert _error(forward(x, weight, None, *row.geometry), y) < 1e-14
        bars = reverse(g, x, [], [], weight, *row.geometry, True, True)
        assert max(map(_error, bars, expected)) < 1e-14


def test_nan_and_infinity_arrive() -> None:
    """As in aten: what is not finite reaches what it touches and nothing else."""
    row = ROWS[2]
    forward, reverse = IMPLEMENTATIONS["op"]
    x, weight = data(*row.x), data(*row.weight, seed=3)
    x[0, 0, 0, 0], x[1, 2, 3, 3] = float("nan"), float("inf")
    y = _expected(row, x, weight)
    torch.testing.assert_close(forward(x, weight, None, *row.geometry), y, equal_nan=True)
    numbers = (*row.geometry, False, [0, 0], 1, [True, True, False])
    expected = torch.ops.aten.convolution_backward.default(y, x, weight, None, *numbers)[:2]
    bars = reverse(y, x, [], [], weight, *row.geometry, True, True)
    torch.testing.assert_close(bars, list(expected), equal_nan=True)


@pytest.mark.parametrize("name", ["filtered", "filtered_stride", "large_tiles", "large_tiles_stride"])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_visible_and_in_its_sample(name: str, spoilt: float) -> None:
    """In minimal filtering, which spoils whole tiles: all that aten spoils, and no other sample."""
    row = next(row for row in ROWS if row.name == name)
    forward, reverse = IMPLEMENTATIONS["op"]
    x, weight = data(*row.x), data(*row.weight, seed=3)
    x[1, 2, 3, 3] = spoilt
    y, found = _expected(row, x, weight), forward(x, weight, None, *row.geometry)
    numbers = (*row.geometry, False, [0, 0], 1, [True, True, False])
    g = torch.where(y.isfinite(), torch.ones_like(y), spoilt)
    expected = [y, *torch.ops.aten.convolution_backward.default(g, x, weight, None, *numbers)[:2]]
    for a, b in zip([found, *reverse(g, x, [], [], weight, *row.geometry, True, True)], expected, strict=True):
        assert not a[~b.isfinite()].isfinite().any()
    others = [n for n in range(row.x[0]) if n != 1]
    assert _error(found[others], y[others]) < 1e-14
    assert _error(reverse(g, x, [], [], weight, *row.geometry, True, False)[0][others], expected[1][others]) < 1e-14


@pytest.mark.parametrize("row", [row for row in ROWS if row.name.startswith(("filtered", "large_tiles"))], ids=ids)
def test_what_decides_masks_rounds_little(row: Row) -> None:
    """Sweep 1 takes small tiles: a sign that rounding decides is another gradient. Sums of float32 have such errors."""
    x, weight = data(*row.x).float(), data(*row.weight, seed=3).float()
    y, exact = IMPLEMENTATIONS["op"][0](x, weight, None, *row.geometry), _expected(row, x.double(), weight.double())
    rectified, _ = RECTIFIED["op"][0](x, weight, None, 1.0, *row.geometry)
    assert _error(y.double(), exact) < 5e-7
    assert torch.equal(y, rectified)


_X, _W = (2, 3, 5, 5), (4, 3, 3, 3)
REFUSALS: list[tuple[dict[str, Any], str]] = [
    (dict(x=torch.zeros(_X, dtype=torch.bfloat16)), "x must be float32 or float64, got bfloat16"),
    (dict(x=torch.zeros(2, 3, 5)), "do not fit, got .2, 3, 5. and .4, 3, 3, 3."),
    (dict(x=torch.zeros(2, 5, 5, 5)), "do not fit"),
    (dict(weight=torch.zeros(_W, dtype=torch.float64)), "weight must have x's dtype float32, got float64"),
    (dict(x=torch.zeros(2, 0, 5, 5), weight=torch.zeros(4, 0, 3, 3)), "needs channels, got .4, 0, 3, 3."),
    (dict(weight=torch.zeros(0, 3, 3, 3)), "needs channels, got .0, 3, 3, 3."),
    (dict(stride=[1]), "stride must be 2 numbers, got 1"),
    (dict(stride=[0, 1]), "stride and dilation must be positive"),
    (dict(dilation=[3, 1]), "does not fit into the padded input"),
]


@implementations
@pytest.mark.parametrize(("wrong", "sentence"), REFUSALS)
def test_refusals(implementation: str, wrong: dict[str, Any], sentence: str) -> None:
    forward, reverse = IMPLEMENTATIONS[implementation]
    given = dict(x=torch.zeros(_X), weight=torch.zeros(_W), stride=[1, 1], padding=[0, 0], dilation=[1, 1]) | wrong
    x, weight, *geometry = given.values()
    with pytest.raises(RuntimeError, match=sentence):
        forward(x, weight, None, *geometry)
    with pytest.raises(RuntimeError, match=sentence):
        reverse(torch.zeros(2, 4, 3, 3), x, [], [], weight, *geometry, True, True)


@implementations
def test_refuses_what_does_not_belong_together(implementation: str) -> None:
    forward, reverse = IMPLEMENTATIONS[implementation]
    x, weight, geometry = torch.zeros(_X), torch.zeros(_W), ([1, 1], [0, 0], [1, 1])
    g = torch.zeros(2, 4, 3, 3)
    with pytest.raises(RuntimeError, match=r"bias must have shape .4., got .3."):
        forward(x, weight, torch.zeros(3), *geometry)
    with pytest.raises(RuntimeError, match="as many cotangents as tangents, got 1 and 0"):
        reverse(g, x, [g], [], weight, *geometry, True, True)
    with pytest.raises(RuntimeError, match=r"every cotangent must have shape .2, 4, 3, 3., got .2, 4, 3, 2."):
        reverse(g[..., 1:], x, [], [], weight, *geometry, True, True)
    with pytest.raises(RuntimeError, match="the gradient of x needs zeta"):
        reverse(None, x, [g], [x], weight, *geometry, True, True)


@implementations
def test_rectified_refuses_what_does_not_belong_together(implementation: str) -> None:
    forward, vjp, jvp, reverse = RECTIFIED[implementation]
    x, weight, geometry = torch.zeros(_X), torch.zeros(_W), ([1, 1], [0, 0], [1, 1])
    g, (_, bits) = torch.zeros(2, 4, 3, 3), forward(x, weight, None, 0.0, *geometry)
    with pytest.raises(RuntimeError, match=r"bias must have shape .4., got .3."):
        forward(x, weight, torch.zeros(3), 0.0, *geometry)
    with pytest.raises(RuntimeError, match=r"bits must have shape .9., got .8."):
        vjp(g, bits[1:], 0.0, x, weight, *geometry)
    with pytest.raises(RuntimeError, match=r"every cotangent must have shape .2, 4, 3, 3., got .1, 4, 6, 3."):
        vjp(g.view(1, 4, 6, 3), bits, 0.0, x, weight, *geometry)
    with pytest.raises(RuntimeError, match=r"every tangent must have shape .2, 3, 5, 5., got .2, 3, 5, 4."):
        jvp(x[..., 1:], bits, 0.0, x, weight, *geometry)
    with pytest.raises(RuntimeError, match="the gradient of the bias needs zeta"):
        reverse(None, bits, 0.0, x, weight, [g], [x], *geometry, False, True, True)


@pytest.mark.parametrize("name", ["groups_of_samples", "filtered_one_sample", "filtered_stride", "large_tiles"])
def test_same_result_for_any_number_of_threads(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    forward, reverse = IMPLEMENTATIONS["op"]
    x, weight = data(*row.x).float(), data(*row.weight, seed=3).float()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = forward(x, weight, None, *row.geometry)
            found.append([y, *reverse(y, x, [y], [x], weight, *row.geometry, True, True)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
