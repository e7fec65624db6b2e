"""Data gradients of models with reentrant checkpoints (torch.utils.checkpoint, use_reentrant=True).

Such a checkpoint runs a backward of its own inside of autograd's, to all parameters, so it refuses torch.autograd.grad,
which names what it wants. Here the gradient comes from a backward in full, after one more pass in which no parameter
requires a gradient: the input alone receives one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .passes import Passes


def gradient_in_full(passes: Passes, index: int, name: str | None, mean_of: Callable[[Any], Tensor]) -> Tensor | None:
    """J (N, ...) with respect to input `index`: row n is the gradient of sample n's own loss. None if x is not in it.

    `mean_of` is the mean of a loss as a function of what it reads: the output of the model, or of the submodule `name`.
    The loss is differentiated by itself, from its inputs on, because it may have parameters, too.
    """
    with passes.aside(index) as visited:
        values, spec = pytree.tree_flatten(visited.value(name))
        outputs = [t for t in values if isinstance(t, Tensor) and t.requires_grad]
        leaves = [t.detach().requires_grad_() for t in outputs]
        of = dict(zip(map(id, outputs), leaves, strict=True))
        mean = mean_of(pytree.tree_unflatten([of.get(id(t), t) for t in values], spec))
        samples = torch.full_like(mean, passes.samples, requires_grad=False)
        cotangents = torch.autograd.grad(mean, leaves, samples, allow_unused=True)
        reached = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None]
        torch.autograd.backward([y for y, _ in reached], [g for _, g in reached])
        return visited.at[index].grad
