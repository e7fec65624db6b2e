"""The image chain family: the four sweeps, native and reference, against autograd in float64.

`sweeps` runs all four as a layer would, and returns what autograd can give, too. Letters as in ops/image_chain.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from kernels import assert_native, directly, same_layout
from oracle import difference
from test_ops_chain import FUNCTIONS, Results, by_autograd
from torch import Tensor

from datagrad_ext.ops import image_chain
from datagrad_ext.ops._library import in_layout, is_channels_last
from datagrad_ext.ops.image_chain import parse

NAMES = tuple(f"image_chain_{sweep}" for sweep in ("forward", "data_vjp", "data_jvp", "reverse"))
IMPLEMENTATIONS: dict[str, dict[str, Callable[..., list[Tensor]]]] = {
    "op": {name: getattr(torch.ops.datagrad, name).default for name in NAMES},
    "direct": {name: directly(name) for name in NAMES},
    "reference": {name: getattr(image_chain, name) for name in NAMES},
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

CONV, PLAIN = "convolution:2:2:1:1:1:1", "convolution:1:1:0:0:1:1"
SAME, WIDE = "convolution:1:1:1:1:1:1", "convolution+b:1:2:2:0:2:1"
NORM = "normalise+w+b:0:1e-3:"
BIASED = "convolution+b:1:1:0:0:1:1"
# links, the shape of x, the shapes of the weights
CHAINS: dict[str, tuple[str, tuple[int, ...], list[tuple[int, ...]]]] = {
    "critic": (
        f"{CONV} relu+b:0.2 {CONV} relu+b:0.2 flatten linear+b",
        (3, 3, 8, 8),
        [(4, 3, 4, 4), (6, 4, 4, 4), (5, 24)],
    ),
    "pooled": (
        f"{SAME} relu+b:0.0 max_pool:2:2:2:2:0:0:1:1 {SAME} relu:0.0 avg_pool:2:2:2:2:0:0:1 flatten linear",
        (2, 3, 8, 8),
        [(8, 3, 3, 3), (4, 8, 3, 3), (3, 16)],
    ),
    "pools of other windows": (
        f"{BIASED} max_pool:3:2:2:1:1:0:1:2 relu:0.1 avg_pool:2:3:1:2:1:1:0",
        (3, 2, 9, 8),
        [(5, 2, 2, 3)],
    ),
    "smooth": (
        f"{PLAIN} softplus+b:2.0:5.0 {WIDE} tanh flatten linear silu+b linear+b",
        (2, 3, 6, 7),
        [(4, 3, 2, 2), (5, 4, 2, 3), (6, 70), (2, 6)],
    ),
    "smooth below": (f"{PLAIN} gelu+b {BIASED}", (2, 2, 5, 5), [(3, 2, 2, 2), (7, 3, 2, 2)]),
    "smooth above": (f"{PLAIN} relu+b:0.0 {BIASED} elu:0.7", (2, 2, 5, 5), [(3, 2, 2, 2), (7, 3, 2, 2)]),
    "rectifiers alone": (f"{BIASED} avg_pool:2:2:1:1:0:0:1 relu+b:0.0 relu:0.5", (2, 2, 6, 5), [(3, 2, 2, 2)]),
    "one pixel": (
        f"{PLAIN} relu+b:0.0 flatten linear relu+b:0.0 linear+b",
        (2, 2, 3, 3),
        [(9, 2, 3, 3), (4, 9), (2, 4)],
    ),
    "left to sweep 4": (
        f"{SAME}@pl relu+b:0.0 {BIASED}@p flatten linear+b",
        (1, 4, 3, 3),
        [(40, 4, 3, 3), (50, 40, 3, 3), (3, 50)],
    ),
    "one channel": (f"{SAME} relu+b:0.0 {SAME} relu+b:0.0", (2, 1, 4, 4), [(1, 1, 3, 3), (3, 1, 3, 3)]),
    "one channel between": (f"{SAME} relu+b:0.0 {SAME} relu+b:0.0", (2, 3, 4, 4), [(1, 3, 3, 3), (3, 1, 3, 3)]),
    "norms": (
        f"{CONV} {NORM}1 relu:0.0 {SAME} normalise+b:2:1e-3:0 {CONV} normalise:0:1e-2:1 relu:0.1 flatten linear "
        "normalise+w:0:1e-3:0 relu:0.0 linear+b",
        (3, 3, 8, 8),
        [(4, 3, 4, 4), (4,), (6, 4, 3, 3), (5, 6, 4, 4), (6, 20), (6,), (2, 6)],
    ),
    "block": (
        f"{SAME} {NORM}1 relu:0.0 {SAME} {NORM}1 relu:0.0 {SAME} {NORM}1 add<8<3 relu:0.0 {CONV} {NORM}0 {CONV}<10 "
        "add<12<13 relu:0.2 avg_pool:0:0:1:1:0:0:1 flatten linear",
        (3, 2, 6, 6),
        [(4, 2, 3, 3), (4,), (4, 4, 3, 3), (4,), (4, 4, 3, 3), (4,), (5, 4, 4, 4), (5,), (5, 4, 4, 4), (2, 5)],
    ),
    "branches": (
        f"{BIASED} {BIASED}<0 add<1<2 add<3<1 {SAME}<3 relu:0.0 softplus:1.0:20.0<5 add<4<6 add<7<8 add<9<9",
        (2, 3, 5, 4),
        [(4, 3, 2, 2), (4, 3, 2, 2), (4, 4, 3, 3)],
    ),
    "branches in parts": (
        f"{SAME} relu+b:0.0 {SAME} relu+b:0.0 {SAME} add<5<2 relu:0.0 {SAME}<0 add<7<8 max_pool:2:2:2:2:0:0:1:1",
        (21, 3, 32, 32),
        [(8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (8, 3, 3, 3)],
    ),
    "in parts": (
        f"{SAME} relu+b:0.0 max_pool:2:2:2:2:0:0:1:1 {PLAIN} relu+b:0.1 flatten linear+b",
        (37, 3, 32, 32),
        [(9, 3, 3, 3), (2, 9, 2, 2), (3, 450)],
    ),
}
FAST = [name for name in CHAINS if "in parts" not in name]

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
chains = pytest.mark.parametrize("name", CHAINS)
fast_chains = pytest.mark.parametrize("name", FAST)
layouts = pytest.mark.parametrize("layout", [*FORMATS, "channels_last inside"])


@dataclass(frozen=True)
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

    def in_format(self, layout: str) -> Example:
        """Images in this memory format, if x can tell it from the other; weights stay as they are."""
        if layout == "channels_last inside":
            inside = replace(self, links=self.links.replace(" ", "@l ", 1) if "@" not in self.links else self.links)
            return replace(inside, g=[in_layout(g, g.dim() == 4 and "@l" in inside.links) for g in self.g])
        last = is_channels_last(self.x.contiguous(memory_format=FORMATS[layout]))
        return replace(self.map(lambda t: in_layout(t, last) if t.dim() == 4 else t), params=self.params)


def example(name: str, pairs: int = 1) -> Example:
    """In float64 on the CPU."""
    links, shape, weights = CHAINS[name]
    rest, params, width = iter(weights), [], shape[1]
    for seed, word in enumerate(links.split()):
        if word.startswith(("convolution", "linear")) or "+w" in word:
            weight = next(rest)
            width = weight[0]
            params.append(data(*weight, seed=seed) / math.sqrt(math.prod(weight[1:])))
        if "+b" in word:
            params.append(data(width, seed=seed + 50) / 4)
    x = data(*shape, seed=len(name))
    y_shape = image_chain.sizes(x, params, links)[-1][2]
    g, v = ([data(*size, seed=k + first) for k in range(pairs)] for first, size in ((100, y_shape), (200, shape)))
    return Example(links, params, x, data(*y_shape, seed=7), g, v)


def _apply(word: Any, operands: Sequence[Tensor], rest: Any) -> Tensor:
    """A link in plain PyTorch."""
    numbers, x = [int(n) for n in word.constants], operands[0]
    if word.name == "normalise":
        groups, eps, _ = word.constants
        weight, bias = (None if place is None else next(rest) for place in (word.weight, word.bias))
        if not groups:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        ones = torch.ones(x.shape[1], dtype=x.dtype)  # torch's second derivative fails without a weight
        return F.group_norm(x, int(groups), ones if weight is None else weight, bias, eps)
    if word.name == "add":
        return operands[0] + operands[1]
    if word.name == "convolution":
        x = F.conv2d(x, next(rest), None, numbers[:2], numbers[2:4], numbers[4:])
    elif word.name == "linear":
        x = x @ next(rest).t()
    if word.bias is not None:
        x = x + next(rest).view(-1, *[1] * (x.dim() - 2))
    if word.name == "max_pool":
        return F.max_pool2d(x, numbers[:2], numbers[2:4], numbers[4:6], numbers[6:])
    if word.name == "avg_pool":
        kernel = [k or n for k, n in zip(numbers, x.shape[2:], strict=False)]
        return F.avg_pool2d(x, kernel, numbers[2:4], numbers[4:6], False, numbers[6] == 1)
    if word.name == "flatten":
        return x.flatten(1)
    return FUNCTIONS[word.name](x, *word.constants) if word.name in FUNCTIONS else x


def oracle(e: Example, with_zeta: bool) -> Results:
    """The same by autograd in float64."""
    e = e.map(lambda t: t.detach().double().contiguous().requires_grad_())
    values, rest = [e.x], iter(e.params)
    statistics, momenta = running(e)
    for word in image_chain.words(e.links):
        values.append(_apply(word, [values[v] for v in word.reads or (-1,)], rest))
    for unit, k in zip((u for u in parse(e.links) if u.updates), range(len(momenta)), strict=True):
        x = values[unit.reads[0]].detach()
        F.batch_norm(x, *statistics[2 * k : 2 * k + 2], None, None, True, momenta[k])
    return by_autograd(e, values[-1], with_zeta) | _numbered(statistics)


def _numbered(statistics: Sequence[Tensor]) -> Results:
    return {f"running {k}": t for k, t in enumerate(statistics)}


def running(e: Example) -> tuple[list[Tensor], list[float]]:
    """Running means and variances of the norms that have some, and momenta."""
    units = image_chain.sizes(e.x, e.params, e.links)
    widths = [size[1] for unit, size, _ in units if unit.updates]
    found = [e.x.new_tensor(range(width)) + k for width in widths for k in (0, 1)]
    return found, [0.25 + k / 8 for k in range(len(widths))]


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
    ops, units = IMPLEMENTATIONS[implementation], parse(e.links)
    flags = [True] * len(e.params) if wanted is None else list(wanted)
    weights = [u.link.weight for u in units if u.wants(flags) and not u.keeps(flags)]
    keeping = [u for u in units if u.keeps(flags)]
    statistics, momenta = running(e)
    y, *saved = ops["image_chain_forward"](e.x, e.params, e.links, statistics, momenta)
    results: dict[str, Tensor | None] = {"y": y} | _numbered(statistics)
    sums: list[Tensor] = []
    records, tangents = [], []
    for k, (g, v) in enumerate(zip(e.g, e.v, strict=True)):
        results[f"J {k}"], *record = ops["image_chain_data_vjp"](g, e.x, e.params, saved, e.links)
        record += [g] if units[-1].record is not None else []
        rest = ops["image_chain_data_jvp"](v, e.x, e.params, saved, record, e.links, flags, want_y, sums)
        results[f"y tangent {k}"] = rest.pop(0) if want_y else None
        n_sums = 0 if sums else len(weights)
        sums = sums or rest[:n_sums]
        records += [record[u.record] for u in keeping]  # type: ignore[index]
        tangents += [v] * (units[0] in keeping) + rest[n_sums:]
    want_x = want_x and (with_zeta or any(u.curved for u in units))
    found: Any = iter(())
    if with_zeta or records:
        zeta = e.zeta if with_zeta else None
        arguments = (zeta, records, tangents, e.x, e.params, saved, e.links, flags, want_x, sums)
        found = iter(ops["image_chain_reverse"](*arguments))
    results["x"] = next(found, None) if want_x else None
    totals = dict(zip(weights, sums, strict=False)) if sums else {}
    for place, want in enumerate(flags):
        if want:
            results[f"parameter {place}"] = totals[place] if place in totals else next(found, None)
    assert next(found, None) is None
    return results


def agree(actual: Results, expected: Results, dtype: torch.dtype = torch.float64) -> None:
    """Everything there is as expected; what autograd has no path to is not there, or zero."""
    for name, ours in actual.items():
        truth = expected[name]
        if ours is None or truth is None:
            assert truth is None or not truth.any() or name.startswith(("y tangent", "x")), name
            assert ours is None or not ours.any(), name
        else:
            assert ours.dtype == dtype
            assert difference(ours, truth).norm < TOLERANCES[dtype], name


@pytest.mark.parametrize("name", NAMES)
def test_is_native(name: str) -> None:
    assert_native(name, "cpu")


@implementations
@layouts
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@chains
def test_sweeps(name: str, dtype: torch.dtype, layout: str, implementation: str) -> None:
    e = example(name).map(lambda t: t.to(dtype)).in_format(layout)
    found = sweeps(implementation, e)
    agree(found, oracle(e, True), dtype)
    for key in ("J 0", "x"):
        same_layout(found[key], e.x)  # type: ignore[arg-type]


@implementations
@pytest.mark.parametrize("pairs", [0, 2, 3])
@chains
def test_several_data_gradients(name: str, pairs: int, implementation: str) -> None:
    e = example(name, pairs)
    agree(sweeps(implementation, e), oracle(e, True))


@implementations
@pytest.mark.parametrize("with_zeta", [True, False], ids=["zeta", "no zeta"])
@fast_chains
def test_only_what_is_wanted(name: str, with_zeta: bool, implementation: str) -> None:
    """Any subset of parameters, with and without x and the tangent of y."""
    e = example(name)
    expected, n = oracle(e, with_zeta), len(e.params)
    for wanted in (
        [True] * n,
        [False] * n,
        [i == n - 1 for i in range(n)],
        [i == 0 for i in range(n)],
        [i % 2 == 1 for i in range(n)],
    ):
        for want_x, want_y in ((True, False), (False, True), (False, False)):
            found = sweeps(implementation, e, with_zeta=with_zeta, wanted=wanted, want_x=want_x, want_y=want_y)
            agree(found, expected)


@implementations
@pytest.mark.parametrize("name", ["critic", "pooled", "smooth"])
def test_weights_in_channels_last_and_inputs_of_any_stride(name: str, implementation: str) -> None:
    e = example(name)
    params = [in_layout(p, True) if p.dim() == 4 else p.repeat_interleave(2, -1)[..., ::2] for p in e.params]
    x = e.x.transpose(2, 3).contiguous().transpose(2, 3)
    zeta = e.zeta.repeat_interleave(2, 1)[:, ::2]
    e = replace(e, params=params, x=x, zeta=zeta)
    agree(sweeps(implementation, e), oracle(e, True))


def test_same_result_for_any_number_of_threads() -> None:
    threads, e = torch.get_num_threads(), example("in parts").map(lambda t: t.float())
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(sweeps("op", e))
    finally:
        torch.set_num_threads(threads)
    # The linear link's products at few columns are the vendor's, and they do not promise as much.
    for key, value in results[0].items():
        assert difference(results[1][key], value).norm < 1e-6, key  # type: ignore[arg-type]


def test_two_threads_at_once() -> None:
    """The sweeps hold no lock and share no state."""
    examples = [example(name) for name in ("critic", "pooled")]
    alone = [sweeps("direct", e) for e in examples]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda e=e: [sweeps("direct", e) for _ in range(30)]) for e in examples]
        for expected, found in zip(alone, [r.result() for r in runs], strict=True):
            for results in found:
                assert all(torch.equal(results[k], v) for k, v in expected.items() if v is not None)  # type: ignore[arg-type]


def calls(e: Example) -> dict[str, dict[str, Any]]:
    """Arguments of a right call of every op."""
    ops = IMPLEMENTATIONS["reference"]
    statistics, momenta = running(e)
    _, *saved = ops["image_chain_forward"](e.x, e.params, e.links, statistics, momenta)
    common = dict(x=e.x, params=e.params, saved=saved, links=e.links)
    record = [*ops["image_chain_data_vjp"](g=e.g[0], **common)[1:], e.g[0]]
    flags = dict(wanted=[True] * len(e.params), sums=[])
    n_sums = sum(u.wants(flags["wanted"]) and not u.keeps(flags["wanted"]) for u in parse(e.links))
    rest = ops["image_chain_data_jvp"](t=e.v[0], record=record, want_y=False, **common, **flags)[n_sums:]
    units = parse(e.links)
    kept = [u.record for u in units if u.keeps(flags["wanted"])]
    first = [e.v[0]] * units[0].keeps(flags["wanted"])
    pairs = dict(records=[record[k] for k in kept], tangents=[*first, *rest])
    return {
        "image_chain_forward": dict(x=e.x, params=e.params, links=e.links, running=statistics, momenta=momenta),
        "image_chain_data_vjp": dict(g=e.g[0], **common),
        "image_chain_data_jvp": dict(t=e.v[0], record=record, want_y=True, **common, **flags),
        "image_chain_reverse": dict(zeta=e.zeta, want_x=True, **pairs, **common, **flags),
    }


ALL, LATER, LAST = NAMES, NAMES[1:], NAMES[2:]
# ops, the argument that is wrong, how, what the message says
ERRORS: list[tuple[Sequence[str], str, Callable[[Any], Any], str]] = [
    (ALL, "links", lambda links: "relu:0.0", "must begin with a convolution"),
    (ALL, "links", lambda links: "convolution:1.0", "convolution has 6 constants, got 1"),
    (ALL, "links", lambda links: links.replace("flatten ", ""), "a linear link needs a matrix"),
    (ALL, "links", lambda links: links + " max_pool:2:2:2:2:0:0:1:1", "pooling needs images"),
    (ALL, "links", lambda links: links + " flatten", "flatten needs images"),
    (ALL, "links", lambda links: links.replace(PLAIN, "convolution:0:1:0:0:1:1"), "must be positive"),
    (ALL, "links", lambda links: links.replace(PLAIN, "convolution:1:1:0:0:9:1"), "does not fit into a padded input"),
    (ALL, "params", lambda params: params[:-1], "the chain has 8 parameters, got 7"),
    (ALL, "params", lambda params: [p.float() for p in params], "every parameter must have x's dtype float64"),
    (ALL, "params", lambda params: [params[0][:, 1:], *params[1:]], "does not fit an input of shape"),
    (ALL, "x", lambda x: x[0], "x must be .N, C, H, W., got shape"),
    (ALL, "x", lambda x: x.long(), "x must be float32 or float64, got int64"),
    (ALL[:1], "running", lambda _: [torch.zeros(2).double()], "the chain has 0 running statistics, got 1"),
    (ALL[:1], "params", lambda params: [params[0], params[1][1:], *params[2:]], "bias must have shape .4., got .3."),
    (LATER, "saved", lambda saved: saved[1:], "the chain has 6 saved tensors, got 5"),
    (LATER, "saved", lambda saved: [saved[0][:1], *saved[1:]], "saved input must have shape"),
    (LATER, "saved", lambda saved: [saved[0].mT.contiguous().mT, *saved[1:]], "saved input must be dense"),
    (("image_chain_data_vjp",), "g", lambda g: g[:, :1], "g must have shape"),
    (("image_chain_data_jvp",), "t", lambda t: t.float(), "t must have the weight's dtype float64, got float32"),
    (("image_chain_data_jvp",), "record", lambda r: r[:1], "the chain has 7 tensors in a record, got 1"),
    (("image_chain_data_jvp",), "record", lambda r: [r[0][:1], *r[1:]], "record must have shape"),
    (("image_chain_reverse",), "zeta", lambda z: z[:-1], "zeta must have shape"),
    (("image_chain_reverse",), "tangents", lambda t: t[:1], "needs pairs of 3 links, got 3 records and 1 tangents"),
    (("image_chain_reverse",), "tangents", lambda t: [t[0][:1], *t[1:]], "tangent must have shape"),
    (LAST, "wanted", lambda wanted: wanted[:-1], "the chain has 8 flags, got 7"),
    (LAST, "sums", lambda sums: [torch.zeros(4, 3, 2, 2).double()], "needs a sum for every wanted weight, got 1"),
    (LAST, "sums", lambda sums: [torch.zeros(4, 3, 2, 1).double()] * 4, "sum must have shape"),
    (LAST, "sums", lambda sums: [torch.zeros(4, 3, 2, 2).double().mT] * 4, "sum must be dense in its weight's layout"),
]


@implementations
@pytest.mark.parametrize(
    ("name", "argument", "change", "message"),
    [(name, argument, change, message) for names, argument, change, message in ERRORS for name in names],
)
def test_wrong_arguments(
    name: str, argument: str, change: Callable[[Any], Any], message: str, implementation: str
) -> None:
    """An exception arrives in Python with its message."""
    arguments = calls(example("smooth"))[name]
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        IMPLEMENTATIONS[implementation][name](**arguments)


_ONE = "convolution:1:1:0:0:1:1"
# a text of which every convolution has the weight (3, 2, 2, 2), of x (1, 2, 3, 3), and what is wrong with it
LINKS: list[tuple[str, str]] = [
    (f"{_ONE} add<1", "add reads 2 values, got 1"),
    (f"{_ONE} relu:0.0<1<1", "relu reads 1 values, got 2"),
    (f"{_ONE} add<1<2", "link 2 can read values 0 to 1, got 2"),
    (f"{_ONE} add<1<-1", "link 2 can read values 0 to 1, got -1"),
    (f"{_ONE} relu:0.0<0 add<1<2", "convolutions alone can read x"),
    (f"{_ONE} relu:0.0 relu:0.1<1", "nothing reads value 2"),
    (f"{_ONE} relu:0.0 avg_pool:2:2:1:1:0:0:1<1 add<2<3", "add needs two values of one shape, got"),
    (f"{_ONE} normalise:2:1e-3:0", "groups must be 0 .statistics over the batch. or divide C = 3, got 2"),
    (f"{_ONE} avg_pool:0:0:1:1:0:0:1 normalise:0:1e-3:0", "normalise needs several values, got shape"),
    (f"{_ONE} normalise:0:1e-3", "normalise has 3 constants, got 2"),
    (f"{_ONE} normalise:0:1e-3:1", "the chain has 1 momenta, got 0"),
]


@implementations
@pytest.mark.parametrize(("links", "message"), LINKS)
def test_wrong_links(links: str, message: str, implementation: str) -> None:
    forward = IMPLEMENTATIONS[implementation]["image_chain_forward"]
    with pytest.raises(RuntimeError, match=message):
        forward(data(1, 2, 3, 3), [data(3, 2, 2, 2)], links, [], [])


@implementations
def test_reverse_needs_something_to_reverse(implementation: str) -> None:
    reverse = IMPLEMENTATIONS[implementation]["image_chain_reverse"]
    with pytest.raises(RuntimeError, match="needs a zeta or a record"):
        reverse(**calls(example("critic"))["image_chain_reverse"] | dict(zeta=None))
    with pytest.raises(RuntimeError, match="without a zeta a chain without curved links has no cotangent of x"):
        reverse(**calls(example("left to sweep 4"))["image_chain_reverse"] | dict(zeta=None))


@implementations
def test_places_must_be_places(implementation: str) -> None:
    e = example("pooled")
    arguments = calls(e)["image_chain_data_vjp"]
    place = next(u.extra for u in parse(e.links) if u.link.name == "max_pool")
    saved = list(arguments["saved"])
    for wrong, message in (
        (saved[place].int(), "saved places must have dtype int64"),
        (saved[place][:1], "saved places must have shape"),
    ):
        arguments["saved"] = [*saved[:place], wrong, *saved[place + 1 :]]
        with pytest.raises(RuntimeError, match=message):
            IMPLEMENTATIONS[implementation]["image_chain_data_vjp"](**arguments)
