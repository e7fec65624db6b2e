"""The folding ops, native and reference, against autograd through the norm in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import data
from kernels import assert_native, directly, same_layout
from oracle import difference
from torch import Tensor

from datagrad_ext.ops import folding

NAMES = ("fold_norms", "unfold_norms")
IMPLEMENTATIONS = {
    "op": tuple(getattr(torch.ops.datagrad, name).default for name in NAMES),
    "direct": tuple(directly(name) for name in NAMES),
    "reference": tuple(getattr(folding, name) for name in NAMES),
}
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6}
WEIGHTS = {
    "linear": [(5, 7)],
    "long rows": [(33, 70)],
    "many": [(130, 600)],
    "convolution": [(6, 4, 3, 2)],
    "no input": [(3, 0)],
    "several": [(5, 7), (6, 5), (4, 4, 3, 2), (1, 1)],
}
GIVEN = {"all": ["Wcwb"], "no vector": ["W"], "different": ["Wwb", "Wc", "W", "Wcw", "Wb"]}
EPS = (0.01, 0.2)

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_is_native(name: str) -> None:
    assert_native(name, "cpu")


class Layer:
    """Operands of a layer, and the same as leaves in float64; a word names its vectors."""

    def __init__(self, shape: tuple[int, ...], word: str, eps: float, seed: int, dtype: torch.dtype) -> None:
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        self.W, self.W_bar = (data(*shape, seed=seed + k).to(dtype).contiguous(memory_format=layout) for k in range(2))
        self.mean, self.var, self.b_bar, *rest = (data(shape[0], seed=seed + k).to(dtype) for k in range(2, 8))
        self.var = self.var.square() + 0.1
        self.vectors = {letter: t for letter, t in zip("cwb", rest, strict=True) if letter in word}
        self.leaves = {"W": self.W, **self.vectors}
        self.leaves = {name: t.double().clone().requires_grad_() for name, t in self.leaves.items()}
        self.eps = eps

    @property
    def tensors(self) -> list[Tensor]:
        return [self.W, *self.vectors.values(), self.mean, self.var]

    def folded(self) -> tuple[Tensor, Tensor]:
        """What the norm does to a unit of each input, and to none."""
        W, c, w, b = (self.leaves.get(name) for name in "Wcwb")
        assert W is not None
        zero = W.new_zeros(1, len(W)) if c is None else c[None]
        values = torch.cat([zero, W.flatten(1).t() + zero])
        values = F.batch_norm(values, self.mean.double(), self.var.double(), w, b, False, 0.0, self.eps)
        return (values[1:] - values[:1]).t().reshape(W.shape), values[0]

    def check(self, found: list[Tensor], b_bar: Tensor | None, tolerance: float) -> None:
        """What unfolding found, W̄, w̄ and c̄, against autograd."""
        W_, b_ = self.folded()
        value = (W_ * self.W_bar.double()).sum() + (0 if b_bar is None else (b_ * b_bar.double()).sum())
        names = [name for name in ("W", "w", "c") if name in self.leaves and (b_bar is not None or name != "c")]
        bars = dict(zip(("W", "w", "c"), found, strict=False))
        assert len(found) == 2 + (b_bar is not None)
        same_layout(bars["W"], self.W)
        for name, expected in zip(names, torch.autograd.grad(value, [self.leaves[n] for n in names]), strict=True):
            assert _error(bars[name], expected) < tolerance


@pytest.mark.parametrize("weights", WEIGHTS)
@implementations
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("given", GIVEN)
def test_maps(weights: str, implementation: str, dtype: torch.dtype, given: str) -> None:
    fold, unfold = IMPLEMENTATIONS[implementation]
    shapes = WEIGHTS[weights]
    words = [word for word, _ in zip(itertools.cycle(GIVEN[given]), shapes, strict=False)]
    layers = [
        Layer(shape, word, EPS[i % 2], 10 * i, dtype) for i, (shape, word) in enumerate(zip(shapes, words, strict=True))
    ]
    *found, kept = fold([t for each in layers for t in each.tensors], " ".join(words), [each.eps for each in layers])
    for layer, folded, moved, rows in zip(
        layers, found[::2], found[1::2], folding.rows_of(kept, [len(each.W) for each in layers]), strict=True
    ):
        W_, b_ = layer.folded()
        same_layout(folded, layer.W)
        assert _error(folded, W_) < TOLERANCES[dtype]
        assert _error(moved, b_) < TOLERANCES[dtype]
        assert torch.equal(rows[3:], torch.stack([layer.mean, layer.var]))
    for wanted in {(True,) * len(layers), tuple(i % 2 == 1 for i in range(len(layers)))}:
        asked = list(itertools.compress(layers, wanted))
        for n_biases in {0, len(asked) // 2, len(asked)}:
            biases = [each.b_bar for each in asked[:n_biases]]
            bars = iter(unfold([each.W_bar for each in asked], biases, [each.W for each in layers], kept, wanted))
            for i, layer in enumerate(asked):
                b_bar = layer.b_bar if i < n_biases else None
                layer.check(list(itertools.islice(bars, 2 + (b_bar is not None))), b_bar, TOLERANCES[dtype])
            assert not list(bars)


def _error(actual: Tensor, expected: Tensor) -> float:
    return difference(actual, expected).norm


WRONG = {
    "fold_norms: weight must be float32 or float64, got int64": lambda W, v: ([W.long(), v, v], "W", [0.1]),
    "fold_norms: weight must have outputs and inputs": lambda W, v: ([v, v, v], "W", [0.1]),
    "fold_norms: mean must have shape": lambda W, v: ([W, v[:2], v], "W", [0.1]),
    "fold_norms: norm_bias must have weight's dtype": lambda W, v: ([W, v.float(), v, v], "Wb", [0.1]),
    "fold_norms: weight must have the first weight's dtype": lambda W, v: (
        *([W, v, v, W.float(), v, v], "W W", [0.1, 0.1]),
    ),
    "fold_norms: 'Wcw' has 5 tensors and 1 eps, got 3 and 1": lambda W, v: ([W, v, v], "Wcw", [0.1]),
    "fold_norms: 'W' has 3 tensors and 1 eps, got 3 and 2": lambda W, v: ([W, v, v], "W", [0.1, 0.1]),
    "fold_norms: '' has 0 tensors": lambda W, v: ([], "", []),
    "unfold_norms: weight_bar must have shape": lambda W, v: ([W[:2]], [v], [W], v.repeat(5), [True]),
    "unfold_norms: bias_bar must have shape": lambda W, v: ([W], [v[:1]], [W], v.repeat(5), [True]),
    "unfold_norms: kept must have shape": lambda W, v: ([W], [v], [W], v.repeat(4), [True]),
    "unfold_norms: needs a weight and a flag for each": lambda W, v: ([W], [v], [W], v.repeat(5), [False]),
}


@pytest.mark.parametrize("sentence", WRONG)
@implementations
def test_wrong_arguments(sentence: str, implementation: str) -> None:
    op = dict(zip(NAMES, IMPLEMENTATIONS[implementation], strict=True))[sentence.partition(":")[0]]
    with pytest.raises(RuntimeError, match=sentence):
        op(*WRONG[sentence](data(3, 4), data(3)))
