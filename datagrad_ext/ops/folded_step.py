"""A whole penalty step of a chain that norms by running statistics are folded into, in one call.

It is `penalty_step` at W′ and b′ (`folding`), and the way back to the gradients of what they were made of: one call,
for Python would notice every tensor between the three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from ._library import op, require
from .chain import parse

_ops = torch.ops.datagrad
_NAME = "folded_penalty_step"


@op(
    f"{_NAME}(Tensor x, Tensor[] params, Tensor[] statistics, str given, float[] eps, Tensor? target, str links,"
    " str loss, float[] loss_constants, str main, float[] main_constants, float main_weight, str penalties,"
    " float[] constants, float[] weights, bool[] wanted, bool want_x) -> Tensor[]"
)
def folded_penalty_step(
    x: Tensor,
    params: Sequence[Tensor],
    statistics: Sequence[Tensor],
    given: str,
    eps: Sequence[float],
    target: Tensor | None,
    links: str,
    loss: str,
    loss_constants: Sequence[float],
    main: str,
    main_constants: Sequence[float],
    main_weight: float,
    penalties: str,
    constants: Sequence[float],
    weights: Sequence[float],
    wanted: Sequence[bool],
    want_x: bool,
) -> list[Tensor]:
    """[*what `chain_penalty_step` returns, kept].

    `links` is the chain of W′ and b′. `given` has a word for each of its linear links, "-" for one without a norm, and
    `params` are those that the words name, in order; `statistics` are μ and var of each norm, `eps` its ε.
    """
    parts = list(_parts(links, given))
    n_params, layers = sum(part.count for part in parts), [part for part in parts if part.folded]
    require(
        n_params == len(params) and 2 * len(layers) == len(statistics),
        f"{_NAME}: the chain has {n_params} parameters and {2 * len(layers)} statistics, got {len(params)} and "
        f"{len(statistics)}",
    )
    require(len(wanted) == n_params, f"{_NAME}: the chain has {n_params} flags, got {len(wanted)}")
    *folded, kept = _fold(layers, params, statistics, eps)
    rest = iter(folded)
    inside = [p for part in parts for p in ((next(rest), next(rest)) if part.folded else params[part.own])]
    flags = [flag for part in parts for flag in part.flags(wanted)]
    told = (links, loss, loss_constants, main, main_constants, main_weight, penalties, constants, weights)
    step = _ops.chain_penalty_step.default(x, inside, target, *told, flags, want_x)
    figures = len(step) - sum(flags)
    return [*step[:figures], *_unfold(parts, params, wanted, step[figures:], kept), kept]


def _fold(
    layers: Sequence[_Part], params: Sequence[Tensor], statistics: Sequence[Tensor], eps: Sequence[float]
) -> list[Tensor]:
    """W′ and b′ of each layer with a norm, and what is kept."""
    tensors: list[Tensor] = []
    for k, part in enumerate(layers):
        tensors += [*params[part.own], *statistics[2 * k : 2 * k + 2]]
    return _ops.fold_norms.default(tensors, " ".join([part.word for part in layers]), eps)


def _unfold(
    parts: Sequence[_Part], params: Sequence[Tensor], wanted: Sequence[bool], bars: Sequence[Tensor], kept: Tensor
) -> list[Tensor]:
    """The gradients of the wanted parameters, from those of what they became."""
    rest = iter(bars)
    found = [[next(rest) for flag in part.flags(wanted) if flag] for part in parts]
    asked = [each for part, each in zip(parts, found, strict=True) if part.folded and each]
    layers = [part for part in parts if part.folded]
    own = iter(
        _ops.unfold_norms.default(
            [weight_bar for weight_bar, _ in asked],
            [bias_bar for _, bias_bar in asked],
            [params[part.first] for part in layers],
            kept,
            [True in wanted[part.own] for part in layers],
        )
    )
    results: list[Tensor] = []
    for part, each in zip(parts, found, strict=True):
        if part.folded and each:
            bar = {"W": next(own), "w": next(own), "c": next(own), "b": each[1]}
            results += compress([bar[letter] for letter in part.word], wanted[part.own])
        else:
            results += each
    return results


@dataclass(frozen=True)
class _Part:
    """Parameters of the op, from `first` on, that become W′ and b′, or stay as they are (word "-")."""

    word: str
    first: int
    count: int

    @property
    def folded(self) -> bool:
        return self.word != "-"

    @property
    def own(self) -> slice:
        return slice(self.first, self.first + self.count)

    def flags(self, wanted: Sequence[bool]) -> Sequence[bool]:
        """Of what the parameters become."""
        return [True in wanted[self.own]] * 2 if self.folded else wanted[self.own]


def _parts(links: str, given: str) -> Iterator[_Part]:
    words, place = iter(given.split()), 0
    for link in parse(links):
        if link.weight is not None:
            word = next(words, "")
            require(word != "", f"{_NAME}: '{given}' must have a word for each linear link of '{links}'")
            require(word == "-" or link.bias is not None, f"{_NAME}: a linear link with a norm must have a bias, b′")
            count = 1 + (link.bias is not None) if word == "-" else len(word)
        else:
            word, count = "-", int(link.bias is not None)
        yield _Part(word, place, count)
        place += count
