"""The chain family: the four sweeps of a chain, native and reference, against autograd in float64.

`sweeps` runs all four as a layer would, and returns what autograd can give, too. Letters as in ops/chain.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import assert_native, chain_parameters, directly
from oracle import difference
from torch import Tensor

import datagrad_ext
from datagrad_ext.ops import chain
from datagrad_ext.ops.activation import ACTIVATIONS

DEVICES = ("cpu", "cuda", "emulated")
NAMES = ("chain_forward", "chain_data_vjp", "chain_data_jvp", "chain_reverse")
IMPLEMENTATIONS: dict[str, dict[str, Callable[..., list[Tensor]]]] = {
    "op": {name: getattr(torch.ops.datagrad, name).default for name in NAMES},
    "direct": {name: directly(name) for name in NAMES},
    "reference": {name: getattr(chain, name) for name in NAMES},
}
# The largest error of a result, by norm. In 16 bits all that flows between links is rounded: a relu may change side.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 0.05}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.leaky_relu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}
CONSTANTS = {"relu": ":0.1", "softplus": ":2.0:5.0", "elu": ":0.7"}
CHAINS = {
    "one linear": ("linear+b", [7, 5]),
    "rectifiers": ("linear+b relu:0.0 linear+b relu:0.0 linear+b", [12, 33, 17, 3]),
    "biases at rectifiers": ("linear relu+b:0.0 linear relu+b:0.1 linear+b", [12, 40, 8, 1]),
    "no bias": ("linear relu:0.0 linear linear", [5, 16, 16, 9]),
    "rectifiers at the end": ("linear+b relu:0.0 relu:0.1", [6, 10]),
    "curved below": ("linear softplus+b:1.0:20.0 linear relu+b:0.0 linear+b", [6, 20, 24, 2]),
    "curved above": ("linear relu+b:0.0 linear+b tanh", [6, 20, 9]),
    "two curves in a row": ("linear+b silu gelu linear sigmoid+b relu:0.0", [4, 15, 11]),
    "wide": ("linear relu+b:0.0 linear tanh+b linear+b", [130, 150, 140, 10]),
    "wide at the head": ("linear+b relu:0.0 linear+b", [20, 30, 200]),
    **{name: (f"linear {name}+b{CONSTANTS.get(name, '')} linear+b", [5, 18, 4]) for name in FUNCTIONS},
}
ROWS = (0, 1, 3, 8, 70, 300)


@dataclass
class Example:
    """Everything that enters the sweeps of a chain, `pairs` times a cotangent g and a seed v."""

    links: str
    params: list[Tensor]
    x: Tensor
    zeta: Tensor
    g: list[Tensor]
    v: list[Tensor]

    def map(self, f: Callable[[Tensor], Tensor]) -> Example:
        lists = [[f(t) for t in group] for group in (self.params, [self.x, self.zeta], self.g, self.v)]
        return Example(self.links, lists[0], *lists[1], *lists[2:])


def example(name: str, rows: int, pairs: int = 1) -> Example:
    """In float64 on the CPU."""
    links, linear_widths = CHAINS[name]
    generator = torch.Generator().manual_seed(len(name) + rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params, width = chain_parameters(links, linear_widths, random)
    g, v = ([random(rows, n) for _ in range(pairs)] for n in (width, linear_widths[0]))
    return Example(links, params, random(rows, linear_widths[0]), random(rows, width), g, v)


Results = Mapping[str, "Tensor | None"]


def oracle(e: Example, with_zeta: bool) -> Results:
    """The same by autograd in float64."""
    e = e.map(lambda t: t.detach().cpu().double().requires_grad_())
    y, rest = e.x, iter(e.params)
    for link in chain.parse(e.links):
        if link.weight is not None:
            y = y @ next(rest).t()
        if link.bias is not None:
            y = y + next(rest)
        if link.name != "linear":
            y = FUNCTIONS[link.name](y, *link.constants)
    return by_autograd(e, y, with_zeta)


def by_autograd(e: Any, y: Tensor, with_zeta: bool) -> Results:
    """What the sweeps find of a network's value y at an example, which has x, params, g, v and zeta."""
    J = [torch.autograd.grad(y, e.x, g, create_graph=True)[0] for g in e.g]
    total = sum(((j * v).sum() for j, v in zip(J, e.v, strict=True)), (y * e.zeta).sum() * with_zeta)
    found = torch.autograd.grad(total, [e.x, *e.params, *e.g], allow_unused=True)
    results: dict[str, Tensor | None] = {"y": y, "x": found[0]}
    results |= {f"J {k}": j for k, j in enumerate(J)}
    results |= {f"parameter {i}": bar for i, bar in enumerate(found[1 : 1 + len(e.params)])}
    results |= {f"y tangent {k}": bar for k, bar in enumerate(found[1 + len(e.params) :])}
    return results


def sweeps(
    implementation: str,
    e: Example,
    *,
    with_zeta: bool = True,
    wanted: Sequence[bool] | None = None,
    want_x: bool = True,
    want_y: bool = True,
) -> Results:
    """The four sweeps by the ops; a result that is not there is zero."""
    ops, links = IMPLEMENTATIONS[implementation], chain.parse(e.links)
    flags = [True] * len(e.params) if wanted is None else list(wanted)
    y, *saved = ops["chain_forward"](e.x, e.params, e.links)
    results: dict[str, Tensor | None] = {"y": y}
    sums: list[Tensor] = []
    records, tangents = [], []
    for k, (g, v) in enumerate(zip(e.g, e.v, strict=True)):
        results[f"J {k}"], *buffers = ops["chain_data_vjp"](g, e.params, saved, e.links)
        records += [g, *buffers]
        rest = ops["chain_data_jvp"](v, e.params, saved, [g, *buffers], e.links, flags, want_y, sums)
        results[f"y tangent {k}"] = rest.pop(0) if want_y else None
        n_sums = 0 if sums else sum(flags[k.weight] for k in links if k.weight is not None)
        sums = sums or rest[:n_sums]
        tangents += [v, *rest[n_sums:]]
    curved = [i for i, link in enumerate(links) if link.smooth]
    want_x = want_x and (with_zeta or bool(curved))
    zeta = e.zeta if with_zeta else None
    found = iter(ops["chain_reverse"](zeta, records, tangents, e.x, e.params, saved, e.links, flags, want_x, sums))
    results["x"] = next(found) if want_x else None
    totals = iter(sums)
    for i, link in enumerate(links):
        here = with_zeta or i <= max(curved, default=-1)
        for place in (link.weight, link.bias):
            if place is not None and flags[place]:
                source = totals if sums and place == link.weight else found if here else iter([None])
                results[f"parameter {place}"] = next(source)
    assert next(found, None) is None
    return results


def agree(actual: Results, expected: Results, dtype: torch.dtype) -> None:
    """Everything there is as expected; what autograd has no path to is not there, or zero."""
    for name, ours in actual.items():
        truth = expected[name]
        if ours is None:
            assert truth is None or not truth.any() or name.startswith(("y tangent", "x")), name
        else:
            truth = torch.zeros(ours.shape) if truth is None else truth
            assert (ours.shape, ours.dtype) == (truth.shape, dtype), name
            assert ours.isfinite().all(), name
            error = difference(ours, truth)
            assert error.norm <= TOLERANCES[dtype] or float(ours.double().norm()) <= 1e-3 * TOLERANCES[dtype], (
                name,
                error,
            )


implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
chains = pytest.mark.parametrize("name", CHAINS)


def test_every_activation_is_a_row() -> None:
    assert {"relu", *ACTIVATIONS} == set(FUNCTIONS)


@implementations
@dtypes
@pytest.mark.parametrize("with_zeta", [True, False], ids=["zeta", "no zeta"])
@chains
def test_sweeps(name: str, with_zeta: bool, dtype: torch.dtype, implementation: str, device: str) -> None:
    for rows in ROWS:
        e = example(name, rows).map(lambda t: t.to(device, dtype))
        found = sweeps(implementation, e, with_zeta=with_zeta)
        agree(found, oracle(e, with_zeta), dtype)


@implementations
@pytest.mark.parametrize(("name", "rows"), [("rectifiers", 40000), ("curved below", 30000), ("wide", 8000)])
def test_large_matrices(name: str, rows: int, implementation: str, device: str) -> None:
    """Too many elements for one buffer."""
    e = example(name, rows, 2).map(lambda t: t.to(device))
    agree(sweeps(implementation, e), oracle(e, True), torch.float64)


@implementations
@dtypes
@pytest.mark.parametrize("layout", ["dense", "transposed"])
def test_wider_than_what_stays_in_the_cache(
    layout: str, dtype: torch.dtype, implementation: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in several pieces, several groups of panels."""
    monkeypatch.setitem(CHAINS, "wider", ("linear relu+b:0.0 linear+b", [600, 300, 3]))
    for rows in (17, 300):
        e = example("wider", rows).map(lambda t: t.to(device, dtype))
        params = e.params if layout == "dense" else [LAYOUTS[layout](p) for p in e.params]
        e = Example(e.links, params, e.x, e.zeta, e.g, e.v)
        agree(sweeps(implementation, e), oracle(e, True), dtype)


@implementations
@pytest.mark.parametrize("pairs", [0, 2, 3])
@chains
def test_several_data_gradients(name: str, pairs: int, implementation: str, device: str) -> None:
    e = example(name, 9, pairs).map(lambda t: t.to(device))
    agree(sweeps(implementation, e), oracle(e, True), torch.float64)


@implementations
@pytest.mark.parametrize("with_zeta", [True, False], ids=["zeta", "no zeta"])
@chains
def test_only_what_is_wanted(name: str, with_zeta: bool, implementation: str, device: str) -> None:
    """Any subset of parameters, with and without x and the tangent of y."""
    e = example(name, 9).map(lambda t: t.to(device))
    expected, n = oracle(e, with_zeta), len(e.params)
    for wanted in (
        [False] * n,
        [i == n - 1 for i in range(n)],
        [i == 0 for i in range(n)],
        [i % 2 == 1 for i in range(n)],
    ):
        for want_x, want_y in ((True, False), (False, True), (False, False)):
            found = sweeps(
                implementation, e, with_zeta=with_zeta, wanted=wanted, want_x=want_x, want_y=want_y
            )
            agree(found, expected, torch.float64)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t() if t.dim() == 2 else t.repeat_interleave(2)[::2],
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@implementations
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("name", ["biases at rectifiers", "curved below", "wide"])
def test_layouts_of_input_and_parameters(name: str, rows: int, layout: str, implementation: str, device: str) -> None:
    """x, ζ and parameters of any stride; what a sweep leaves for another is dense."""
    e = example(name, rows).map(lambda t: t.to(device))
    change = LAYOUTS[layout]
    e = Example(e.links, [change(p) for p in e.params], change(e.x), change(e.zeta), e.g, e.v)
    agree(sweeps(implementation, e), oracle(e, True), torch.float64)


@implementations
@pytest.mark.parametrize("name", ["rectifiers", "curved below", "wide"])
def test_a_nan_is_not_hidden(name: str, implementation: str, device: str) -> None:
    e = example(name, 5).map(lambda t: t.to(device))
    e.x[2] = math.nan
    found = sweeps(implementation, e)
    assert found["y"] is not None
    assert found["y"].isnan().any(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_native(name: str, device: str) -> None:
    assert_native(name, device)


@pytest.mark.parametrize("name", ["curved below", "wide"])
def test_results_do_not_depend_on_threads(name: str) -> None:
    library = datagrad_ext.backends().devices[0].library or ""
    if name == "wide" and "avx" not in library:
        pytest.skip("without AVX2 the products of wide chains are a vendor's")
    threads, results = torch.get_num_threads(), []
    e = example(name, 700).map(lambda t: t.float())
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(sweeps("op", e))
    finally:
        torch.set_num_threads(threads)
    for key, value in results[0].items():
        assert all(torch.equal(value, other[key]) for other in results[1:]), key  # type: ignore[arg-type]


def test_two_threads_at_once() -> None:
    """The sweeps hold no lock and share no state."""
    examples = [example(name, 50) for name in ("rectifiers", "curved below")]
    alone = [sweeps("op", e) for e in examples]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda e=e: [sweeps("op", e) for _ in range(50)]) for e in examples]
        for expected, found in zip(alone, [r.result() for r in runs], strict=True):
            for results in found:
                assert all(torch.equal(results[k], v) for k, v in expected.items() if v is not None)  # type: ignore[arg-type]


def calls(e: Example) -> dict[str, dict[str, Any]]:
    """Arguments of a right call of every op."""
    ops = IMPLEMENTATIONS["reference"]
    _, *saved = ops["chain_forward"](e.x, e.params, e.links)
    record = [e.g[0], *ops["chain_data_vjp"](e.g[0], e.params, saved, e.links)[1:]]
    common = dict(params=e.params, saved=saved, links=e.links)
    flags = dict(wanted=[True] * len(e.params), sums=[])
    tangents = [e.v[0], *ops["chain_data_jvp"](t=e.v[0], record=record, want_y=False, **common, **flags)[3:]]
    return {
        "chain_forward": dict(x=e.x, params=e.params, links=e.links),
        "chain_data_vjp": dict(g=e.g[0], **common),
        "chain_data_jvp": dict(t=e.v[0], record=record, want_y=True, **common, **flags),
        "chain_reverse": dict(
            zeta=e.zeta, records=record, tangents=tangents, x=e.x, want_x=True, **common, **flags
        ),
    }


ALL = NAMES
LATER = NAMES[1:]
# ops, the argument that is wrong, how, what the message says
ERRORS: list[tuple[Sequence[str], str, Callable[[Any], Any], str]] = [
    (ALL, "links", lambda links: "relu:0.0", "must begin with a linear layer"),
    (ALL, "links", lambda links: "linear:2.0", "linear has 0 constants, got 1"),
    (ALL, "links", lambda links: "linear linear<1", "a link of matrices reads what is before it"),
    (ALL, "params", lambda params: params[:-1], "the chain has 6 parameters, got 5"),
    (("chain_forward",), "x", lambda x: x[0], "x must be a matrix, got shape"),
    (("chain_forward",), "x", lambda x: x[:, 1:], "mat1 and mat2 shapes cannot be multiplied"),
    (("chain_forward",), "x", lambda x: x.float(), "weight must have x's dtype float32, got float64"),
    (("chain_forward",), "x", lambda x: x.long(), "x must be float32, float64, bfloat16 or float16, got int64"),
    (LATER, "saved", lambda saved: saved[:1], "the chain has 2 saved buffers, got 1"),
    (LATER, "saved", lambda saved: [saved[0], saved[1][:-64]], "saved values must have shape"),
    (LATER, "saved", lambda saved: [saved[0].int(), saved[1]], "saved bits must have dtype uint8"),
    (("chain_data_vjp",), "g", lambda g: g[:, :1], "g must have shape"),
    (("chain_data_vjp",), "g", lambda g: g[0], "g must be a matrix"),
    (("chain_data_jvp",), "t", lambda t: t.float(), "t must have the weight's dtype float64, got float32"),
    (("chain_data_jvp",), "record", lambda r: r[:1], "the chain has 2 tensors in a record, got 1"),
    (("chain_data_jvp",), "record", lambda r: [r[0].t().contiguous().t(), r[1]], "record must be contiguous"),
    (("chain_reverse",), "zeta", lambda z: z[:-1], "zeta must have shape"),
    (("chain_reverse",), "tangents", lambda t: t[:1], "a record has 2 tensors here and its tangents have 2"),
    (("chain_reverse",), "tangents", lambda t: [t[0], t[1][:-64]], "tangents must have shape"),
    (NAMES[2:], "wanted", lambda wanted: wanted[:-1], "the chain has 6 flags, got 5"),
    (
        NAMES[2:],
        "sums",
        lambda sums: [torch.zeros(20, 6, dtype=torch.float64)],
        "needs a sum for every wanted weight, got 1",
    ),
    (NAMES[2:], "sums", lambda sums: [torch.zeros(2, 2, dtype=torch.float64)] * 3, "sum must have shape"),
]


@implementations
@pytest.mark.parametrize(
    ("name", "argument", "change", "message"),
    [(name, argument, change, message) for names, argument, change, message in ERRORS for name in names],
)
def test_wrong_arguments(
    name: str, argument: str, change: Callable[[Any], Any], message: str, implementation: str, device: str
) -> None:
    arguments = calls(example("curved below", 4).map(lambda t: t.to(device)))[name]
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        IMPLEMENTATIONS[implementation][name](**arguments)


@implementations
def test_reverse_needs_something_to_reverse(implementation: str) -> None:
    reverse = IMPLEMENTATIONS[implementation]["chain_reverse"]
    arguments = calls(example("rectifiers", 4))["chain_reverse"] | dict(zeta=None)
    with pytest.raises(RuntimeError, match="without a zeta a chain without smooth links has no cotangent of x"):
        reverse(**arguments)
    with pytest.raises(RuntimeError, match="needs a zeta or a record"):
        reverse(**arguments | dict(records=[], tangents=[]))
