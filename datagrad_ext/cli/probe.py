"""The gradients that `check` compares: of fixed scalars of a model's outputs and data gradients.

With outputs y, fixed random c of their shapes, and data gradients J = ∂s/∂x of the floating-point inputs x:

    s = Σ c (y + y²/2)          the loss: its Hessian is not zero, so that all four sweeps run
    value = s,  s + mean_n Σ|J_n|,  s + mean_n ΣJ_n²                          one backward each
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datagrad_ext.cli.gradients import parameter_gradients
from datagrad_ext.cli.objective import Penalty, l1, l2_squared

PROBES: dict[str, Penalty | None] = {"loss": None, "loss + L1": l1, "loss + squared L2": l2_squared}


@dataclass(frozen=True)
class Answer:
    """What one backward pass left: gradients of parameters and inputs, and buffers."""

    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


def answer(model: nn.Module, inputs: Sequence[Tensor], penalty: Penalty | None, seed: int) -> Answer:
    """Run one probe on `model`; every random number (c, dropout) comes from `seed`."""
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    floating = [x for x in inputs if x.requires_grad]
    model.zero_grad()
    torch.manual_seed(seed)
    value = _projection(model(*inputs), seed)
    if penalty is not None:
        found = torch.autograd.grad(value, floating, create_graph=True, allow_unused=True)
        value = value + sum(penalty(_rows(gradient)).mean() for gradient in found if gradient is not None)
    value.backward()
    gradients = {f"input {i}": x.grad for i, x in enumerate(inputs) if x.requires_grad}
    return Answer({**gradients, **parameter_gradients(model)}, dict(model.named_buffers()))


def _projection(output: object, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for y in _floating_tensors(output):
        c = torch.randn(y.shape, generator=generator).to(y)
        total = (c * (y + y.square() / 2)).sum() + total.to(y)
    if not total.requires_grad:
        raise TypeError("no output is a floating-point tensor that depends on the model")
    return total


def _floating_tensors(value: object) -> Iterator[Tensor]:
    """The floating-point tensors in a tensor, list, tuple or dict of outputs, nested or not."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floating_tensors(item)
    elif isinstance(value, dict):
        yield from _floating_tensors(list(value.values()))


def _rows(gradient: Tensor) -> Tensor:
    return gradient.reshape(len(gradient), -1)
