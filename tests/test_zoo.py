"""Whole networks: loss and penalty gradients of the accelerated model are autograd's, in train and eval mode."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.functional as F
from cases import CE, Case, Objective, ids
from oracle import assert_equal, difference, observe, scale_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import OWN, TORCHVISION, needs_torchvision

import datagrad_ext

NETWORKS = [*OWN, *[pytest.param(case, marks=needs_torchvision) for case in TORCHVISION]]
LOSS_AND_PENALTY = Objective(CE, ((CE, "l2_squared"),))
# Rounding of up to 120 layers, and PyTorch's constant of Hardsigmoid, which is 1/6 in float32 only.
RTOL = 1e-7


class Hardsigmoid(nn.Module):
    """By its formula: PyTorch has no second derivative of nn.Hardsigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def differentiable(model: nn.Module) -> nn.Module:
    """The model with modules that autograd can differentiate twice."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, Hardsigmoid())
    return model


@pytest.mark.parametrize("case", OWN, ids=ids)
def test_float32(case: Case, device: str) -> None:
    """In the layout that float32 images run in."""
    model, inputs = case.build().to(device), [x.to(device) for x in case.inputs()]
    with sdpa_kernel(SDPBackend.MATH):
        exact = observe(copy.deepcopy(model), inputs, LOSS_AND_PENALTY)
    model = datagrad_ext.accelerate(model.float())
    found = observe(model, [x.float() for x in inputs], LOSS_AND_PENALTY)
    scale = scale_of(exact)
    for name in (name for name, t in exact.items() if t is not None and name.startswith("grad ")):
        assert difference(found[name], exact[name], floor=0.1 * scale).elementwise < 1e-4, name


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_gradients_of_loss_and_penalty(case: Case, mode: str, device: str) -> None:
    case = replace(case, train=mode == "train")
    model, inputs = case.build().to(device), [x.to(device) for x in case.inputs()]
    with sdpa_kernel(SDPBackend.MATH):
        expected = observe(differentiable(copy.deepcopy(model)), inputs, LOSS_AND_PENALTY)
    model = datagrad_ext.accelerate(model)
    assert_equal(observe(model, inputs, LOSS_AND_PENALTY), expected, RTOL)
    table = datagrad_ext.program(model)
    assert not table.note, table.note  # it is one program
    assert case.opaque is None or any(row.kind == "opaque" for row in table.rows) == case.opaque, str(table)


def test_the_documentation_has_every_network() -> None:
    lines = (Path(__file__).parent.parent / "docs" / "networks.md").read_text().splitlines()
    rows = [line.split(" | ")[0].lstrip("| ") for line in lines if line.startswith("| ")]
    assert rows[2:] == [case.name for case in [*OWN, *TORCHVISION]], "run docs/write_networks.py"
