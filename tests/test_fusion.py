"""Fusion passes: the fused program leaves behind what the program without the pass does, and is one step shorter."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import OBJECTIVES, Case, Objective, ids, network, norm_conv_net, random_numbers
from oracle import assert_equal, observe
from torch import nn

import datagrad_ext
from datagrad_ext import fusion

_PHOTO = ((3, 3, 8, 8),)


def _norm_net(norm: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: random_numbers(norm_conv_net(norm))


def conv_3d() -> nn.Module:
    return random_numbers(
        nn.Sequential(
            nn.Conv3d(2, 4, 2, groups=2), nn.BatchNorm3d(4), nn.Softplus(), nn.Flatten(), nn.Linear(48, 5)
        )
    )


# network, pass, what the table says of fused steps
ROWS: list[tuple[Case, Callable, list[str]]] = [
    (
        Case("batch_norm", _norm_net(nn.BatchNorm2d), _PHOTO),
        fusion.rectify_norms,
        ["BatchNorm + ReLU", "BatchNorm + LeakyReLU(0.2)"],
    ),
    (
        Case("group_norm", _norm_net(lambda c: nn.GroupNorm(1, c)), _PHOTO),
        fusion.rectify_norms,
        ["GroupNorm(1) + ReLU", "GroupNorm(1) + LeakyReLU(0.2)"],
    ),
    (
        Case("layer_norm", _norm_net(lambda c: nn.LayerNorm((c, 4, 4))), _PHOTO),
        fusion.rectify_norms,
        ["LayerNorm + ReLU", "LayerNorm + LeakyReLU(0.2)"],
    ),
    (
        Case("batch_norm_eval", _norm_net(nn.BatchNorm2d), _PHOTO, train=False),
        fusion.fold_norms,
        ["Conv2d + BatchNorm (running)"] * 2,
    ),
    (
        Case(
            "batch_norm_eval_no_affine",
            _norm_net(lambda c: nn.BatchNorm2d(c, affine=False)),
            _PHOTO,
            train=False,
        ),
        fusion.fold_norms,
        ["Conv2d + BatchNorm (running)"] * 2,
    ),
    (network("conv_resnet_batch_norm_eval"), fusion.fold_norms, ["Conv2d + BatchNorm (running)"] * 6),
    (
        Case("conv_3d_eval", conv_3d, ((2, 2, 3, 4, 3),), train=False),
        fusion.fold_norms,
        ["Conv3d + BatchNorm (running)"],
    ),
    (network("mlp_batch_norm"), fusion.rectify_norms, ["BatchNorm + ReLU"]),
    (network("mlp_norm_last"), fusion.rectify_norms, []),
    (
        network("conv_resnet_batch_norm"),
        fusion.rectify_norms,
        ["BatchNorm + ReLU", "BatchNorm + ReLU"],
    ),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize(("case", "fusion_pass", "expected"), ROWS, ids=ids)
def test_fused_and_not(
    case: Case,
    fusion_pass: Callable,
    expected: list[str],
    objective: Objective,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs = case.build().to(device), [t.to(device) for t in case.inputs()]
    fused = datagrad_ext.accelerate(copy.deepcopy(model))
    results = observe(fused, inputs, objective)
    layers = [row.layer for row in datagrad_ext.program(fused).rows]
    assert [name for name in layers if " + " in name and "bias" not in name] == expected
    monkeypatch.setattr(fusion, "PASSES", tuple(p for p in fusion.PASSES if p is not fusion_pass))
    unfused = datagrad_ext.accelerate(copy.deepcopy(model))
    assert_equal(results, observe(unfused, inputs, objective))
    assert len(datagrad_ext.program(unfused).rows) == len(layers) + len(expected)


def test_a_value_that_others_read_is_not_fused() -> None:
    """The norm's own value is needed: the rectifier stays a step."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return torch.relu(y) + y

    table = datagrad_ext.program(datagrad_ext.accelerate(Both()), torch.ones(2, 6))
    assert [row.layer for row in table.rows] == ["LayerNorm", "ReLU", "Add"]
