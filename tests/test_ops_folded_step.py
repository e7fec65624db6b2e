"""The step of a chain with folded norms, native and reference, against autograd in float64 through the norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from kernels import assert_native, directly
from test_ops_penalty_step import FUNCTIONS, agree
from torch import Tensor

import datagrad_ext  # noqa: F401  (loads the kernels)
from datagrad_ext.ops import chain, folded_step
from datagrad_ext.ops.folding import KEPT

NAME = "folded_penalty_step"
IMPLEMENTATIONS: dict[str, Callable[..., list[Tensor]]] = {
    "op": getattr(torch.ops.datagrad, NAME).default,
    "direct": directly(NAME),
    "reference": folded_step.folded_penalty_step,
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
CHAINS = {
    "one norm": ("linear+b relu:0.0 linear+b", [12, 33, 5], "Wwb -"),
    "every norm": ("linear+b relu:0.0 linear+b relu:0.1 linear+b", [12, 40, 17, 3], "Wcwb Wwb Wc"),
    "no affine": ("linear+b relu:0.0 linear+b", [6, 8, 4], "W W"),
    "the last alone": ("linear relu+b:0.0 linear+b", [64, 64, 10], "- Wcw"),
    "curved": ("linear+b tanh linear softplus+b:1.0:20.0 linear+b sigmoid linear+b", [6, 20, 9, 7, 4], "Wwb - Wb -"),
    "curved below": ("linear+b tanh linear+b relu:0.0 linear+b", [5, 9, 8, 4], "Wcwb Wcwb Wcwb"),
}


@dataclass(frozen=True)
class Example:
    """Operands of the op; λ0 = 0.8, a penalty of weight 0.3. Without `main` no ζ comes from the loss."""

    links: str
    given: str
    params: list[Tensor]
    statistics: list[Tensor]
    x: Tensor
    main: bool = True
    loss: str = "cross_entropy"
    wanted: tuple[bool, ...] = ()
    want_x: bool = True

    @property
    def eps(self) -> list[float]:
        return [0.1 / (1 + k) for k in range(len(self.statistics) // 2)]

    @property
    def target(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device) % 3

    def flags(self) -> list[bool]:
        return list(self.wanted) or [True] * len(self.params)

    def to(self, device: str, dtype: torch.dtype) -> Example:
        params, statistics = ([t.to(device, dtype) for t in each] for each in (self.params, self.statistics))
        return replace(self, params=params, statistics=statistics, x=self.x.to(device, dtype))

    def run(self, implementation: str) -> list[Tensor]:
        told = [self.loss, [0.0, -100.0, 1.0] if self.loss == "cross_entropy" else []]
        main = told if self.main else ["", []]
        penalty = ["l2_squared", [0.0], [0.3]]
        asked = [self.flags(), self.want_x]
        given = [self.x, self.params, self.statistics, self.given, self.eps, self.target, self.links]
        return IMPLEMENTATIONS[implementation](*given, *told, *main, 0.8, *penalty, *asked)

    def expected(self) -> list[Tensor]:
        """The same by autograd through the norms; without what is kept."""
        e = self.to("cpu", torch.float64)
        x, params = e.x.requires_grad_(), [p.requires_grad_() for p in e.params]
        y, rest, words = x, iter(params), iter(e.given.split())
        statistics, eps = iter(e.statistics), iter(e.eps)
        for link in chain.parse(e.links):
            word = next(words) if link.weight is not None else "-"
            if word == "-":
                y = y @ next(rest).t() if link.weight is not None else y
                y = y + next(rest) if link.bias is not None else y
            else:
                own = {letter: next(rest) for letter in word}
                y = F.linear(y, own["W"], own.get("c"))
                mean, var = next(statistics), next(statistics)
                y = F.batch_norm(y, mean, var, own.get("w"), own.get("b"), False, 0.0, next(eps))
            y = FUNCTIONS[link.name](y, *link.constants) if link.name != "linear" else y
        mean_loss = F.cross_entropy(y, e.target) if e.loss == "cross_entropy" else y.sum(1).mean()
        (J,) = torch.autograd.grad(mean_loss * len(x), x, create_graph=True)
        value = J.square().sum(1).mean()
        means = [mean_loss] * e.main
        total = 0.3 * value + 0.8 * sum(means)
        asked = [x] * e.want_x + [p for p, want in zip(params, e.flags(), strict=True) if want]
        bars = torch.autograd.grad(total, asked, allow_unused=True) if asked else []
        bars = [torch.zeros_like(p) if bar is None else bar for p, bar in zip(asked, bars, strict=True)]
        return [t.detach() for t in (total, *means, value, J, *bars)]


def example(name: str, rows: int, **more: Any) -> Example:
    """In float64 on the CPU."""
    links, widths, given = CHAINS[name]
    params: list[Tensor] = []
    statistics: list[Tensor] = []
    words, width, place = iter(given.split()), widths[0], 0

    def vector() -> Tensor:
        return data(width, seed=len(params) + len(statistics) + 5)

    for link in chain.parse(links):
        word = "-"
        if link.weight is not None:
            word, place = next(words), place + 1
            params.append(data(widths[place], width, seed=place) / width**0.5)
            width = widths[place]
        if word != "-":
            params += [vector() for _ in word[1:]]
            statistics += [vector(), vector().square() + 0.1]
        elif link.bias is not None:
            params.append(vector())
    return Example(links, given, params, statistics, data(rows, widths[0], seed=3), **more)


implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def test_is_native() -> None:
    assert_native(NAME, "cpu")


@implementations
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_chains_and_batches(name: str, dtype: torch.dtype, implementation: str, device: str) -> None:
    for rows in (1, 3, 64, 257):
        for loss, main in (("cross_entropy", True), ("cross_entropy", False), ("score", True), ("score", False)):
            e = example(name, rows, loss=loss, main=main).to(device, dtype)
            *found, kept = e.run(implementation)
            agree(found, e.expected(), dtype)
            norms = list(zip(e.statistics[::2], e.statistics[1::2], strict=True))
            rows_kept = kept.split([KEPT * len(mean) for mean, _ in norms])
            for each, (mean, var) in zip(rows_kept, norms, strict=True):
                assert torch.equal(each.view(KEPT, -1)[3:], torch.stack([mean, var]))


@implementations
@pytest.mark.parametrize("loss", ["cross_entropy", "score"])
@pytest.mark.parametrize("name", CHAINS)
def test_only_what_is_asked_for(name: str, loss: str, implementation: str, device: str) -> None:
    e = example(name, 5, loss=loss, main=loss == "cross_entropy").to(device, torch.float64)
    n = len(e.params)
    for flags in [[k == one for k in range(n)] for one in range(n)] + [[False] * n, [k % 2 == 0 for k in range(n)]]:
        for want_x in (False, True):
            some = replace(e, wanted=tuple(flags), want_x=want_x)
            agree(some.run(implementation)[:-1], some.expected(), torch.float64)


WRONG: dict[str, Callable[[Example], Example]] = {
    "must have a word for each linear link": lambda e: replace(e, given="Wwb"),
    "has 5 parameters and 2 statistics, got 4 and 2": lambda e: replace(e, params=e.params[1:]),
    "has 5 parameters and 2 statistics, got 5 and 1": lambda e: replace(e, statistics=e.statistics[1:]),
    "has 5 flags, got 1": lambda e: replace(e, wanted=(True,)),
    "a linear link with a norm must have a bias": lambda e: replace(e, links=e.links.replace("+b", "")),
    "mean must have shape": lambda e: replace(e, statistics=[e.statistics[0][1:], e.statistics[1]]),
    "var must have weight's dtype": lambda e: replace(e, statistics=[e.statistics[0], e.statistics[1].float()]),
}


@implementations
@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_arguments(sentence: str, implementation: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        WRONG[sentence](example("one norm", 4)).run(implementation)
