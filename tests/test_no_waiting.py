"""No step waits for the host: what reads a value on the CPU can neither run ahead on a GPU nor be in a CUDA graph.

Tensors on the meta device have no values and raise where one is read: no GPU is needed, and full sizes cost nothing.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from cases import CORE, Case, ids
from torch import Tensor, nn

import datagrad_ext
from benchmarks import cases, contestants


def on_meta(case: Case) -> tuple[nn.Module, list[Tensor]]:
    """The model and its inputs, as leaves."""
    inputs = [x.to("meta") for x in case.inputs()]
    return case.build().to("meta"), [x.requires_grad_(x.is_floating_point()) for x in inputs]


def penalty_step(model: nn.Module, inputs: list[Tensor]) -> list[tuple[torch.Size, torch.dtype] | None]:
    """Shapes and dtypes of the parameters' gradients."""
    y = model(*inputs)
    (J,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    (y.sum() + J.square().sum()).backward()
    return [None if p.grad is None else (p.grad.shape, p.grad.dtype) for p in model.parameters()]


@pytest.mark.parametrize("case", [case for case in CORE if case.name != "untraceable"], ids=ids)  # it reads a value
def test_networks(case: Case) -> None:
    model, inputs = on_meta(case)
    expected = penalty_step(copy.deepcopy(model), inputs)
    assert penalty_step(datagrad_ext.accelerate(model), inputs) == expected


STEPS = [
    pytest.param(case, row, id=f"{case.name}-{row.name}")
    for case in cases.CUDA_CASES
    for row in contestants.find(["ours", "objective"])
    if case.precision == "bf16" and row.enters(case)
]


@pytest.mark.parametrize(("case", "contestant"), STEPS)
def test_cases_of_the_benchmark_at_full_size(case: cases.Case, contestant: contestants.Contestant) -> None:
    case = replace(case, device="meta")
    step = contestant.make(case).step
    step()
    shapes = [(p.shape, p.dtype, p.device.type) for p in case.build()[0].parameters()]
    assert [(g.shape, g.dtype, g.device.type) for g in step()] == shapes


def test_reading_a_value_would_be_noticed() -> None:
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        bool(torch.ones(1, device="meta") == 1)
