"""Norms by running statistics folded into the linear layers or convolutions before them: W′ = s W, b′ = s (c − μ) + b.

    s = w r      W̄ = s W̄′      c̄ = s b̄′      w̄ = r s̄      b̄ = b̄′      s̄ = Σ W W̄′ + (c − μ) b̄′

for the layer's own bias c, the sum over all but the output channel. W̄′ and b̄′ are the parameter gradients of the one
layer, from (ζ, x) and from every (δ, t), so that these are exact in both orders. All norms of a run of layers are
folded in one call, and their gradients unfolded in one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._native import direct
from ..ops.chain import parse
from ..ops.folding import rows_of
from .base import Layer, Tensors
from .convolution import Convolution
from .linear import Linear
from .running_statistics import RunningNorm

_fold, _unfold = direct("fold_norms"), direct("unfold_norms")
Value = Callable[[int, Tensors, Tensors], Tensor]  # of a layer, by its number, what it saved, and its inputs; in order
_UNIFORM = ({torch.float32}, {torch.float64})


class Fold:
    """Two layers as one; params are those of the linear one, the first `n_own`, and of the norm, whose the host is."""

    def __init__(self, linear: Linear | Convolution, n_own: int, norm: RunningNorm) -> None:
        self.linear, self.norm, self._n_own = linear, norm, n_own
        with_weight, with_bias = norm.given
        self.given = "W" + "c" * (n_own == 2) + "w" * with_weight + "b" * with_bias

    @property
    def name(self) -> str:
        return f"{self.linear.name} + {self.norm.name}"

    def value(self, inputs: Tensors, params: Tensors, mean: Tensor, var: Tensor) -> Tensor:
        """One layer after the other, as differentiable PyTorch."""
        y = self.linear.reference((), inputs, params[: self._n_own])
        return F.batch_norm(y, mean, var, *self.norm.split(params[self._n_own :]), False, 0.0, self.norm.eps)

    def operands(self, params: Tensors, mean: Tensor, var: Tensor) -> Tensors:
        """What is folded: the parameters, the weight with its outputs in front, and the statistics of this call."""
        first = self.outputs_first(params[0])
        if mean.shape != first.shape[:1]:
            raise RuntimeError(
                f"{self.name}: running_mean should contain {len(first)} elements, one for each output channel of "
                f"the layer before, not {mean.numel()}"
            )
        return (first, *params[1:], mean, var)

    def inside(self, found: Tensor, moved: Tensor, params: Tensors) -> Tensors:
        """W′ and b′ as the linear layer takes them."""
        return self._outputs_back(found, params[0]), _cast(moved, params[0].dtype)

    def outside(self, found: Iterator[Tensor], bars: Tensors, params: Tensors) -> Tensors:
        """The gradients of the parameters, of what the op found and of those of W′ and b′."""
        weight_bar, bias_bar = bars
        if weight_bar is None:
            return (None,) * len(params)
        own = self._outputs_back(next(found), params[0])
        vectors = {"w": next(found), "c": None if bias_bar is None else next(found), "b": bias_bar}
        rest = zip(self.given[1:], params[1:], strict=True)
        return (own, *[_cast(vectors[letter], p.dtype) for letter, p in rest])

    def outputs_first(self, weight: Tensor) -> Tensor:
        """A weight with its outputs in front."""
        groups = self.linear.output_groups
        if groups is None:
            return weight
        inputs, outputs, *kernel = weight.shape
        return weight.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).flatten(0, 1)

    def _outputs_back(self, found: Tensor, weight: Tensor) -> Tensor:
        """The inverse, in the shape and dtype of `weight`."""
        found, groups = _cast(found, weight.dtype), self.linear.output_groups
        if groups is None:
            return found
        return found.unflatten(0, (groups, -1)).transpose(1, 2).reshape(weight.shape)


class Folds:
    """The folds of a run of layers, None for a layer without one; params and host values are theirs, in order.

    Inside, a folded layer has the parameters W′ and b′, and any other its own. `rank`: dimensions of the run's input.
    """

    def __init__(
        self, folds: Sequence[Fold | None], n_params: Sequence[int], n_host: Sequence[int], rank: int
    ) -> None:
        self._rank, self._n_params = rank, n_params
        self.n_inside = [n if fold is None else 2 for fold, n in zip(folds, n_params, strict=True)]
        # Of each layer: its fold or None, where its parameters are inside and outside, and its host values.
        self._parts = list(zip(folds, _slices(self.n_inside), _slices(n_params), _slices(n_host), strict=True))
        self._folds = [(fold, inside, own, host) for fold, inside, own, host in self._parts if fold is not None]
        self._given = " ".join([fold.given for fold, *_ in self._folds])
        self._eps = [fold.norm.eps for fold, *_ in self._folds]

    def folded(self, x: Tensor, params: Tensors, host: tuple) -> tuple[Tensors, Tensors]:
        """The parameters inside; and what the sweeps keep: `kept` of `ops/folding.py`, and the dtypes of statistics in
        another dtype."""
        given = self.operands(x, params, host)
        dtypes = None
        if {t.dtype for t in given} not in _UNIFORM:
            dtypes = tuple([self._statistics(fold, x, host[here])[1].dtype for fold, _, _, here in self._folds])
            given = _widened(given)
        *found, kept = _fold(given, self._given, self._eps)
        inside: list[Tensor] = []
        rest = iter(found)
        for each, _, own, _ in self._parts:
            inside += params[own] if each is None else each.inside(next(rest), next(rest), params[own])
        return tuple(inside), (kept, dtypes)

    def operands(self, x: Tensor, params: Tensors, host: tuple) -> list[Tensor]:
        """What `fold_norms` reads at this call."""
        given: list[Tensor] = []
        for fold, _, own, here in self._folds:
            given += fold.operands(params[own], *self._statistics(fold, x, host[here]))
        return given

    def compiled(self) -> dict[str, Any]:
        """The folds' part of a `Compiled`."""
        given = ["" if fold is None else fold.given for fold, *_ in self._parts]
        return {"eps": self._eps, "parts": list(zip(given, self.n_inside, self._n_params, strict=True))}

    def statistics(self, x: Tensor, host: tuple) -> list[Tensor]:
        """Mean and variance of each norm at this call."""
        return [t for fold, _, _, here in self._folds for t in self._statistics(fold, x, host[here])]

    def told(self, links: str) -> tuple[str, list[float]]:
        """The folds of a chain as `ops/folded_step.py` is told of them."""
        parts = zip(parse(links), self._parts, strict=True)
        words = ["-" if fold is None else fold.given for link, (fold, *_) in parts if link.weight is not None]
        return " ".join(words), self._eps

    def unfolded(self, kept: Tensor, params: Tensors, bars: Tensors) -> Tensors:
        """The gradients of the parameters, from those of the parameters inside (None: zero)."""
        wanted = [bars[inside.start] is not None for _, inside, _, _ in self._folds]
        rest = iter(self._unfolded(kept, params, bars, wanted) if True in wanted else ())
        found: list[Any] = []
        for fold, inside, own, _ in self._parts:
            found += bars[inside] if fold is None else fold.outside(rest, bars[inside], params[own])
        return tuple(found)

    def _unfolded(self, kept: Tensor, params: Tensors, bars: Tensors, wanted: list[bool]) -> list[Tensor]:
        """What the op finds for the layers that are wanted."""
        weights, weight_bars, bias_bars = [], [], []
        for want, (fold, inside, own, _) in zip(wanted, self._folds, strict=True):
            weight_bar, bias_bar = bars[inside]
            weights.append(_cast(fold.outputs_first(params[own.start]), kept.dtype))
            if want:
                weight_bars.append(_cast(fold.outputs_first(weight_bar), kept.dtype))
            if bias_bar is not None:  # where ζ begins inside of the run, the last layers have none
                bias_bars.append(_cast(bias_bar, kept.dtype))
        return _unfold(weight_bars, bias_bars, weights, kept, wanted)

    def wanted_inside(self, wanted: Sequence[bool]) -> tuple[bool, ...]:
        """Flags of the parameters inside; W′ and b′ are wanted if anything is that they were made of."""
        flags: tuple[bool, ...] = ()
        for fold, _, own, _ in self._parts if wanted else ():
            flags += tuple(wanted[own]) if fold is None else (True in wanted[own],) * 2
        return flags

    def alike_inside(self, params: Tensors) -> Tensors:
        """Tensors of the shapes that the parameters inside have."""
        found: list[Tensor] = []
        for fold, _, own, _ in self._parts:
            weight, *rest = params[own] or (None,)
            if fold is not None:
                rest = [weight.new_empty(1).expand(len(fold.outputs_first(weight)))]
            found += [] if weight is None else [weight, *rest]
        return tuple(found)

    def _statistics(self, fold: Fold, x: Tensor, host: tuple) -> tuple[Tensor, Tensor]:
        """Those of this call. Behind a flatten a norm sees a matrix, of which the statistics know the sizes alone."""
        return fold.norm.statistics(x if fold.linear.batch_rank == self._rank else x[..., 0, 0], host)

    def now(self, layers: Sequence[Layer], x: Tensor, params: Tensors, host: tuple) -> Tensor:
        """One layer after the other as differentiable PyTorch, by the statistics of this call."""
        statistics = [self._statistics(fold, x, host[here]) for fold, _, _, here in self._folds]
        return _in_turn(layers, x, self._values(layers, params, host, statistics))

    def then(
        self, layers: Sequence[Layer], x: Tensor, params: Tensors, host: tuple, kept: Tensor, dtypes: Any
    ) -> Tensor:
        """The same by the statistics of the forward that kept them."""
        return _in_turn(layers, x, self.values_then(layers, params, host, kept, dtypes))

    def values_then(
        self, layers: Sequence[Layer], params: Tensors, host: tuple, kept: Tensor, dtypes: Tensors | None
    ) -> Value:
        """The values of the layers by those statistics."""
        outputs = [len(fold.outputs_first(params[own.start])) for fold, _, own, _ in self._folds]
        rows = zip(rows_of(kept, outputs), dtypes or [kept.dtype] * len(outputs), strict=True)
        return self._values(layers, params, host, [each[3:].to(dtype).unbind() for each, dtype in rows])

    def _values(self, layers: Sequence[Layer], params: Tensors, host: tuple, statistics: Sequence[Tensors]) -> Value:
        given = iter(statistics)

        def value(i: int, own: Tensors, operands: Tensors) -> Tensor:
            fold, _, place, here = self._parts[i]
            if fold is None:
                return layers[i].reference(own, operands, params[place], *host[here])
            return fold.value(operands, params[place], *next(given))

        return value


def _in_turn(layers: Sequence[Layer], x: Tensor, value: Value) -> Tensor:
    for i in range(len(layers)):
        x = value(i, (), (x,))
    return x


def _slices(counts: Sequence[int]) -> list[slice]:
    """Where the parts of a sequence are, which have so many elements."""
    return [slice(begin, end) for begin, end in pairwise(accumulate(counts, initial=0))]


def _widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All in one dtype, float32 or wider."""
    dtype = functools.reduce(torch.promote_types, [t.dtype for t in tensors], torch.float32)
    return [t.to(dtype) for t in tensors]


def _cast(t: Any, dtype: torch.dtype) -> Any:
    return t if t is None or t.dtype == dtype else t.to(dtype)
