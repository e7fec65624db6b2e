"""The op of a whole penalty step of a chain, native and reference, against autograd in float64.

Rows of data over one body: chains x losses x penalties x batches x what is asked for. Letters as in the op's file.
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
from kernels import assert_native, chain_parameters, directly
from oracle import difference
from torch import Tensor

import datagrad_ext  # noqa: F401  (loads the kernels)
from datagrad_ext.ops import chain, heads, penalty_step, seeds
from datagrad_ext.ops.penalty import NORMS

NAME = "chain_penalty_step"
IMPLEMENTATIONS: dict[str, Callable[..., list[Tensor]]] = {
    "op": getattr(torch.ops.datagrad, NAME).default,
    "direct": directly(NAME),
    "reference": penalty_step.chain_penalty_step,
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
ROWS = (0, 1, 3, 15, 64, 257)

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.leaky_relu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
CHAINS = {
    "rectifiers": ("linear+b relu:0.0 linear+b relu:0.0 linear+b", [12, 33, 17, 3]),
    "biases at rectifiers": ("linear relu+b:0.0 linear relu+b:0.1 linear+b", [13, 40, 8, 5]),
    "multiples of eight": ("linear relu+b:0.0 linear relu+b:0.0 linear+b", [64, 64, 32, 8]),
    "one linear": ("linear+b", [7, 5]),
    "no bias": ("linear relu:0.2 linear", [5, 16, 9]),
    "softplus": ("linear softplus+b:2.0:20.0 linear+b", [3, 18, 4]),
    "curved below": ("linear tanh+b linear relu+b:0.0 linear+b", [6, 20, 24, 2]),
    "curved at the end": ("linear relu+b:0.0 linear+b tanh", [6, 20, 9]),
    "one output": ("linear sigmoid+b linear softplus+b:1.0:20.0 linear+b", [3, 24, 15, 1]),
    "wide": ("linear relu+b:0.0 linear+b", [150, 140, 130]),
}


@dataclass(frozen=True)
class Loss:
    """A loss by its name and constants, its formula as a mean, and which targets it takes."""

    name: str
    constants: tuple[float, ...]
    mean: Callable[[Tensor, Any], Tensor]
    target: str


def _cross_entropy(**options: Any) -> Callable[[Tensor, Any], Tensor]:
    return lambda y, t: F.cross_entropy(y, t, **options)


LOSSES = {
    "cross_entropy": Loss("cross_entropy", (0.0, -100, 1), _cross_entropy(), "indices"),
    "smoothed": Loss("cross_entropy", (0.1, -100, 1), _cross_entropy(label_smoothing=0.1), "indices"),
    "ignored": Loss("cross_entropy", (0.1, 1, 1), _cross_entropy(label_smoothing=0.1, ignore_index=1), "indices"),
    "ignored over all": Loss(
        "cross_entropy",
        (0.0, 0, 0),
        lambda y, t: F.cross_entropy(y, t, reduction="none", ignore_index=0).mean(),
        "indices",
    ),
    "probabilities": Loss("cross_entropy", (0.0, -100, 1), _cross_entropy(), "probabilities"),
    "squared": Loss("squared", (), F.mse_loss, "values"),
    "absolute": Loss("absolute", (), F.l1_loss, "values"),
    "logistic": Loss("logistic", (), F.binary_cross_entropy_with_logits, "values"),
    "score": Loss("score", (), lambda y, t: y.sum(1).mean(), "values"),
}


def _l2(J: Tensor) -> Tensor:
    return J.norm(dim=1)


PENALTIES: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "l1": (0.0, lambda J: J.abs().sum(1)),
    "l2": (0.0, _l2),
    "l2_squared": (0.0, lambda J: J.square().sum(1)),
    "linf": (0.0, lambda J: J.abs().amax(1)),
    "l2:centred": (0.7, lambda J: (_l2(J) - 0.7).square()),
    "l2:one_sided": (0.1, lambda J: (_l2(J) - 0.1).clamp_min(0).square()),
    "linf:one_sided": (0.05, lambda J: (J.abs().amax(1) - 0.05).clamp_min(0).square()),
    "l1:centred": (1.0, lambda J: (J.abs().sum(1) - 1).square()),
}


@dataclass(frozen=True)
class Example:
    """Everything that enters the op."""

    links: str
    params: list[Tensor]
    x: Tensor
    targets: dict[str, Tensor]
    loss: str
    main: str = ""
    penalties: tuple[str, ...] = ("l2_squared",)
    wanted: tuple[bool, ...] = ()
    want_x: bool = True

    @property
    def target(self) -> Tensor:
        """Of the one of the two losses that reads it."""
        reader = self.main if self.loss == "score" and self.main else self.loss
        return self.targets[LOSSES[reader].target]

    @property
    def weights(self) -> list[float]:
        return [0.3 / (1 + k) for k in range(len(self.penalties))]

    def flags(self) -> list[bool]:
        return list(self.wanted) or [True] * len(self.params)

    def to(self, device: str, dtype: torch.dtype) -> Example:
        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else t.dtype)

        targets = {kind: move(t) for kind, t in self.targets.items()}
        return replace(self, params=[move(p) for p in self.params], x=move(self.x), targets=targets)

    def run(self, implementation: str) -> list[Tensor]:
        loss = LOSSES[self.loss]
        main = LOSSES[self.main] if self.main else None
        return IMPLEMENTATIONS[implementation](
            self.x,
            self.params,
            None if loss.name == "score" and main in (None, loss) else self.target,
            self.links,
            loss.name,
            list(map(float, loss.constants)),
            main.name if main else "",
            list(map(float, main.constants)) if main else [],
            0.8,
            " ".join(self.penalties),
            [PENALTIES[word][0] for word in self.penalties],
            self.weights,
            self.flags(),
            self.want_x,
        )

    def expected(self) -> list[Tensor]:
        """The same by autograd in float64."""
        e = self.to("cpu", torch.float64)
        x, params = e.x.requires_grad_(), [p.requires_grad_() for p in e.params]
        y, rest = x, iter(params)
        for link in chain.parse(e.links):
            y = y @ next(rest).t() if link.weight is not None else y
            y = y + next(rest) if link.bias is not None else y
            y = FUNCTIONS[link.name](y, *link.constants) if link.name != "linear" else y
        (J,) = torch.autograd.grad(LOSSES[e.loss].mean(y, e.target) * len(x), x, create_graph=True)
        values = [PENALTIES[word][1](J).mean() for word in e.penalties]
        means = [LOSSES[e.main].mean(y, e.target)] if e.main else []
        total = sum((w * v for w, v in zip(e.weights, values, strict=True)), 0.8 * sum(means))
        asked = [x] * e.want_x + [p for p, want in zip(params, e.flags(), strict=True) if want]
        bars = torch.autograd.grad(total, asked, allow_unused=True) if asked else []
        bars = [torch.zeros_like(p) if bar is None else bar for p, bar in zip(asked, bars, strict=True)]
        return [t.detach() for t in (total, *means, *values, J, *bars)]


def example(name: str, rows: int, loss: str = "cross_entropy", **more: Any) -> Example:
    """In float64 on the CPU."""
    links, linear_widths = CHAINS[name]
    generator = torch.Generator().manual_seed(len(name) + rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params, width = chain_parameters(links, linear_widths, random)
    targets = {
        "indices": torch.arange(rows) % width,
        "values": random(rows, width),
        "probabilities": random(rows, width).softmax(1),
    }
    return Example(links, params, random(rows, linear_widths[0]), targets, loss, **more)


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    assert len(found) == len(expected)
    scale = max([float(t.norm()) for t in expected[1:]], default=0.0)
    for place, (ours, truth) in enumerate(zip(found, expected, strict=True)):
        assert (ours.shape, ours.dtype) == (truth.shape, dtype), place
        if truth.isnan().any():  # a mean over no rows
            assert ours.isnan().all(), place
            continue
        assert ours.isfinite().all(), place
        error, tolerance = difference(ours, truth), TOLERANCES[dtype]
        assert error.norm <= tolerance or float(truth.norm()) <= 1e-3 * tolerance * scale, (place, error)


implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@implementations
@dtypes
@pytest.mark.parametrize("name", CHAINS)
def test_chains_and_batches(name: str, dtype: torch.dtype, implementation: str, device: str) -> None:
    for rows in ROWS:
        for main in ("cross_entropy", ""):
            e = example(name, rows, main=main).to(device, dtype)
            agree(e.run(implementation), e.expected(), dtype)


@implementations
@pytest.mark.parametrize(
    ("loss", "main"),
    [(loss, main) for loss in LOSSES for main in ("", "same", "score")]
    + [("score", main) for main in ("absolute", "logistic", "cross_entropy")]
    + [("squared", "absolute"), ("logistic", "squared")],
)
def test_losses(loss: str, main: str, implementation: str, device: str) -> None:
    """The loss of the terms, with none, the same or another one beside them."""
    main = loss if main == "same" else main
    for name in ("rectifiers", "curved below"):
        for rows in (1, 15, 150):
            e = example(name, rows, loss, main=main).to(device, torch.float64)
            if loss == "ignored" and rows == 1:
                e = replace(e, targets=e.targets | {"indices": torch.zeros_like(e.target)})
            agree(e.run(implementation), e.expected(), torch.float64)


@implementations
@pytest.mark.parametrize("loss", ["cross_entropy", "score"])
@pytest.mark.parametrize("words", [*[(word,) for word in PENALTIES], ("l1", "l2:centred", "linf"), ()], ids=" ".join)
def test_penalties(words: tuple[str, ...], loss: str, implementation: str, device: str) -> None:
    for name in ("biases at rectifiers", "one output"):
        e = example(name, 15, loss, penalties=words, main=loss).to(device, torch.float64)
        agree(e.run(implementation), e.expected(), torch.float64)


@implementations
@pytest.mark.parametrize("main", ["score", ""])
@pytest.mark.parametrize("name", ["biases at rectifiers", "curved below", "one linear"])
def test_only_what_is_asked_for(name: str, main: str, implementation: str, device: str) -> None:
    for rows in (3, 150):
        e = example(name, rows, "score", main=main).to(device, torch.float64)
        n = len(e.params)
        masks = [[k == one for k in range(n)] for one in range(n)] + [[False] * n, [k % 2 == 0 for k in range(n)]]
        for flags in masks:
            for want_x in (False, True):
                some = replace(e, wanted=tuple(flags), want_x=want_x)
                agree(some.run(implementation), some.expected(), torch.float64)


def test_every_row_is_tested() -> None:
    assert {row.name for row in LOSSES.values()} == {"cross_entropy", "score", *heads.POINTWISE}
    functions = {word.partition(":")[2] for word in PENALTIES}
    assert functions == {"", *seeds.FUNCTIONS}
    assert {word for word in PENALTIES if ":" not in word} == set(NORMS)


def test_the_kernel_is_there() -> None:
    assert_native(NAME, "cpu")


def test_a_zero_data_gradient_has_a_zero_seed() -> None:
    e = example("rectifiers", 5, penalties=("l2", "l1", "linf"))
    e = replace(e, params=[torch.zeros_like(p) for p in e.params])
    assert all(t.isfinite().all() for t in e.run("op"))


def test_nan_passes() -> None:
    e = example("rectifiers", 5, penalties=("l2:one_sided",), main="cross_entropy")
    e.x[2, 3] = math.nan
    total, mean, value, J, *bars = e.run("op")
    assert torch.stack([total, mean, value]).isnan().all()
    assert J[2].isnan().all()
    assert J[:2].isfinite().all()
    assert all(bar.isnan().any() for bar in bars)


@pytest.mark.parametrize("rows", [70, 700, 5000])
def test_the_same_on_any_number_of_threads_and_twice(rows: int) -> None:
    e = example("multiples of eight", rows, main="cross_entropy").to("cpu", torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(e.run("op"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    agree(found[0], e.expected(), torch.float32)


def test_two_threads_at_once() -> None:
    examples = [example(name, 200, main="cross_entropy") for name in ("rectifiers", "curved below", "wide")] * 4
    with ThreadPoolExecutor(4) as pool:
        for e, found in zip(examples, pool.map(lambda e: e.run("op"), examples), strict=True):
            agree(found, e.expected(), torch.float64)


def test_operands_that_are_not_contiguous() -> None:
    e = example("rectifiers", 15, "squared", main="squared")
    turned = replace(
        e,
        x=e.x.t().contiguous().t(),
        params=[p.t().contiguous().t() for p in e.params],
        targets={"values": e.target.t().contiguous().t()},
    )
    assert not turned.x.is_contiguous()
    agree(turned.run("op"), e.run("op"), torch.float64)


BAD: dict[str, tuple[Callable[[Example], Example], str]] = {
    "16 bits": (lambda e: e.to("cpu", torch.bfloat16), "x must be float32 or float64, got bfloat16"),
    "three dimensions": (lambda e: replace(e, x=e.x[None]), "x must be a matrix"),
    "another width": (lambda e: replace(e, x=e.x[:, 1:]), "cannot be multiplied"),
    "a parameter missing": (lambda e: replace(e, params=e.params[1:]), "parameters, got"),
    "a flag missing": (lambda e: replace(e, wanted=(True,)), "flags, got 1"),
    "targets missing": (
        lambda e: replace(e, targets={"indices": e.target[1:]}),
        r"target must have shape \[15\], got \[14\]",
    ),
    "a class that is not there": (lambda e: replace(e, targets={"indices": e.target + 1}), "out of bounds"),
}


@implementations
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str, implementation: str) -> None:
    change, message = BAD[name]
    with pytest.raises(RuntimeError, match=message):
        change(example("rectifiers", 15)).run(implementation)


@implementations
def test_unknown_names(implementation: str) -> None:
    e = example("rectifiers", 15)
    run = IMPLEMENTATIONS[implementation]
    good: list[Any] = [e.x, e.params, e.target, e.links, "cross_entropy", [0.0, -100.0, 1.0], "", [], 1.0]
    good += ["l1", [0.0], [1.0], e.flags(), True]
    assert len(run(*good)) == 3 + 1 + len(e.params)
    changes = {
        4: ("hinge", "a loss must be one of cross_entropy, squared, absolute, logistic, score, got 'hinge'"),
        5: ([0.0], "cross_entropy has 3 constants, got 1"),
        2: (None, "cross_entropy needs a target"),
        9: ("l3", "a penalty must be l1, l2, l2_squared or linf, with :centred or :one_sided or nothing, got 'l3'"),
        10: ([], "needs a constant for every penalty, got 0"),
        11: ([], "needs a weight and a constant for every penalty, got 0 and 1 for 1"),
    }
    for place, (value, message) in changes.items():
        with pytest.raises(RuntimeError, match=message):
            run(*good[:place], value, *good[place + 1 :])
