"""Fusion passes: the fused program leaves behind what the program without the pass does, and is one step shorter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OBJECTIVES, Body, Case, Objective, ids, network, norm_conv_net, random_numbers
from oracle import assert_equal, observe
from torch import nn
from torch.nn import functional as F

import datagrad_ext
from datagrad_ext import fusion
from datagrad_ext.layers.image_chain import ImageChain

_PHOTO = ((3, 3, 8, 8),)


def _norm_net(norm: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: random_numbers(norm_conv_net(norm))


def linear_eval() -> nn.Module:
    return random_numbers(nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Softmax(1), nn.Linear(8, 5)))


def sequence_eval() -> nn.Module:
    """The norm's channels are what the linear layer leaves alone."""
    return random_numbers(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(3), nn.Softmax(2), nn.Linear(8, 5)))


def folded_links(norm: nn.Module) -> nn.Module:
    return random_numbers(nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Softmax(-1)))


def conv_1d() -> nn.Module:
    return random_numbers(
        nn.Sequential(
            *[nn.ConvTranspose1d(2, 4, 2, stride=2), nn.BatchNorm1d(4), nn.LeakyReLU()],
            *[nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6, affine=False), nn.Tanh()],
        )
    )


def conv_2d() -> nn.Module:
    """The generator's layer, in groups."""
    return random_numbers(
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6), nn.Softplus())
    )


def conv_3d() -> nn.Module:
    return random_numbers(
        nn.Sequential(
            nn.Conv3d(2, 4, 2, groups=2), nn.BatchNorm3d(4), nn.Softplus(), nn.Flatten(), nn.Linear(48, 5)
        )
    )


def conv_rectified() -> nn.Module:
    """The last rectifier is not alone with its convolution's value."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.last(F.leaky_relu(m.second(F.relu(m.first(x))), 0.2))
        return y.relu() + y

    first, second, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2, 1, bias=False), nn.Conv2d(5, 2, 2)
    return random_numbers(Body(forward, first=first, second=second, last=last))


def functional_eval() -> nn.Module:
    """The statistics are read between the convolution and the norm."""
    return random_numbers(
        Body(
            lambda m, x: F.batch_norm(m.conv(x), m.mean, m.var, m.w, eps=0.1).relu(),
            conv=nn.Conv2d(3, 4, 3),
            mean=nn.Buffer(torch.zeros(4)),
            var=nn.Buffer(torch.ones(4)),
            w=nn.Parameter(torch.ones(4)),
        )
    )


# network, pass, the steps that the table has because of it
ROWS: list[tuple[Case, Callable, list[str]]] = [
    (
        Case("batch_norm", _norm_net(nn.BatchNorm2d), _PHOTO),
        fusion.take_in_rectifiers,
        ["BatchNorm + ReLU", "BatchNorm + LeakyReLU(0.2)"],
    ),
    (
        Case("group_norm", _norm_net(lambda c: nn.GroupNorm(1, c)), _PHOTO),
        fusion.take_in_rectifiers,
        ["GroupNorm(1) + ReLU", "GroupNorm(1) + LeakyReLU(0.2)"],
    ),
    (
        Case("layer_norm", _norm_net(lambda c: nn.LayerNorm((c, 4, 4))), _PHOTO),
        fusion.take_in_rectifiers,
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
    (Case("linear_eval", linear_eval, train=False), fusion.fold_norms, ["Linear + BatchNorm (running)"]),
    (
        Case("sequence_eval", sequence_eval, ((2, 3, 6),), train=False),
        fusion.fold_norms,
        ["Linear + BatchNorm (running)"],
    ),
    (
        Case("folded_links", lambda: folded_links(nn.BatchNorm1d(8)), train=False),
        fusion.collect_chains,
        ["Linear + BatchNorm (running) → tanh"],
    ),
    (
        Case("folded_links_of_a_sequence", lambda: folded_links(nn.BatchNorm1d(3)), ((2, 3, 6),), train=False),
        fusion.collect_chains,
        ["Linear + BatchNorm (running) → tanh"],
    ),
    (
        Case("conv_1d_eval", conv_1d, ((3, 2, 5),), train=False),
        fusion.fold_norms,
        ["ConvTranspose1d + BatchNorm (running)", "Conv1d + BatchNorm (running)"],
    ),
    (
        Case("conv_2d_eval", conv_2d, ((2, 4, 3, 4),), train=False),
        fusion.fold_norms,
        ["ConvTranspose2d + BatchNorm (running)"],
    ),
    (
        Case("functional_eval", functional_eval, _PHOTO, train=False),
        fusion.fold_norms,
        ["Conv2d + BatchNorm (running)"],
    ),
    (network("mlp_batch_norm"), fusion.take_in_rectifiers, ["BatchNorm + ReLU"]),
    (network("mlp_norm_last"), fusion.take_in_rectifiers, []),
    (
        network("conv_resnet_batch_norm"),
        fusion.take_in_rectifiers,
        ["BatchNorm + ReLU", "Add + ReLU"] * 2,
    ),
    (
        network("dag_rectified_sums"),
        fusion.take_in_rectifiers,
        ["Add + ReLU"] * 2 + ["Add + LeakyReLU(0.3)", "Add + LeakyReLU(0.1)", "Add + ReLU"],
    ),
    (
        Case("conv_rectified", conv_rectified, _PHOTO),
        fusion.rectify_convolutions,
        ["Conv2d + bias + ReLU", "Conv2d + LeakyReLU(0.2)"],
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
    monkeypatch.setattr(ImageChain, "covers", lambda *_: False)
    model, inputs = case.build().to(device), [t.to(device) for t in case.inputs()]
    fused = datagrad_ext.accelerate(copy.deepcopy(model))
    results = observe(fused, inputs, objective)
    layers = [row.layer for row in datagrad_ext.program(fused).rows]
    monkeypatch.setattr(fusion, "PASSES", tuple(p for p in fusion.PASSES if p is not fusion_pass))
    unfused = datagrad_ext.accelerate(copy.deepcopy(model))
    assert_equal(results, observe(unfused, inputs, objective))
    others = [row.layer for row in datagrad_ext.program(unfused).rows]
    assert [name for name in layers if name not in others] == expected
    assert len(others) == len(layers) + len(expected)


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
