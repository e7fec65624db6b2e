"""The folding ops, native and reference, against autograd through the norm in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from kernels import assert_native, directly, same_layout
from oracle import difference
from torch import Tensor

from datagrad_ext.ops import folding

NAMES = ("fold_norm", "unfold_norm")
IMPLEMENTATIONS = {
    "op": tuple(getattr(torch.ops.datagrad, name).default for name in NAMES),
    "direct": tuple(directly(name) for name in NAMES),
    "reference": tuple(getattr(folding, name) for name in NAMES),
}
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6}
WEIGHTS = {
    "linear": (5, 7),
    "long rows": (33, 70),
    "many": (130, 600),
    "convolution": (6, 4, 3, 2),
    "no input": (3, 0),
}

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_is_native(name: str) -> None:
    assert_native(name, "cpu")


@pytest.mark.parametrize("weight", WEIGHTS)
@implementations
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("given", ["all", "no vector"])
def test_maps(weight: str, implementation: str, dtype: torch.dtype, given: str) -> None:
    fold, unfold = IMPLEMENTATIONS[implementation]
    shape = WEIGHTS[weight]
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    W, W_bar = (data(*shape, seed=seed).to(dtype).contiguous(memory_format=layout) for seed in (1, 2))
    mean, var, b_bar, *rest = (data(shape[0], seed=seed).to(dtype) for seed in range(3, 9))
    var = var.square() + 0.1
    c, w, b = rest if given == "all" else (None, None, None)

    leaves: list[Any] = [None if t is None else t.double().clone().requires_grad_() for t in (W, w, c, b)]
    W_, b_ = _folded(*leaves, mean.double(), var.double())
    folded, moved, kept = fold(W, c, mean, var, w, b, 0.01)
    same_layout(folded, W)
    assert _error(folded, W_) < TOLERANCES[dtype]
    assert _error(moved, b_) < TOLERANCES[dtype]
    assert torch.equal(kept[3:], torch.stack([mean, var]))
    for with_bias in (True, False):
        value = (W_ * W_bar.double()).sum() + with_bias * (b_ * b_bar.double()).sum()
        own, *vectors = unfold(W_bar, b_bar if with_bias else None, W, kept)
        assert len(vectors) == 1 + with_bias
        same_layout(own, W)
        wanted = [leaf for leaf in leaves[:3] if leaf is not None][: 2 + with_bias]
        found = [own, *vectors][: len(wanted)]
        for actual, expected in zip(found, torch.autograd.grad(value, wanted, retain_graph=True), strict=True):
            assert _error(actual, expected) < TOLERANCES[dtype]


def _folded(W: Tensor, w: Any, c: Any, b: Any, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """What the norm does to a unit of each input, and to none."""
    zero = W.new_zeros(1, len(W)) if c is None else c[None]
    units = W.flatten(1).t() + zero
    values = F.batch_norm(torch.cat([zero, units]), mean, var, w, b, False, 0.0, 0.01)
    return (values[1:] - values[:1]).t().reshape(W.shape), values[0]


def _error(actual: Tensor, expected: Tensor) -> float:
    return difference(actual, expected).norm


WRONG = {
    "fold_norm: weight must be float32 or float64, got int64": lambda W, v: (W.long(), None, v, v, None, None, 0.1),
    "fold_norm: weight must have outputs and inputs": lambda W, v: (v, None, v, v, None, None, 0.1),
    "fold_norm: mean must have shape": lambda W, v: (W, None, v[:2], v, None, None, 0.1),
    "fold_norm: norm_bias must have weight's dtype": lambda W, v: (W, None, v, v, None, v.float(), 0.1),
    "unfold_norm: weight_bar must have shape": lambda W, v: (W[:2], None, W, v.expand(5, -1)),
    "unfold_norm: bias_bar must have shape": lambda W, v: (W, v[:1], W, v.expand(5, -1)),
    "unfold_norm: kept must have shape": lambda W, v: (W, v, W, v.expand(4, -1)),
}


@pytest.mark.parametrize("sentence", WRONG)
@implementations
def test_wrong_arguments(sentence: str, implementation: str) -> None:
    op = dict(zip(NAMES, IMPLEMENTATIONS[implementation], strict=True))[sentence.partition(":")[0]]
    with pytest.raises(RuntimeError, match=sentence):
        op(*WRONG[sentence](data(3, 4), data(3)))
