"""Every layer alone and between two smooth layers, against plain autograd at first and second order."""

from __future__ import annotations

import pytest
import torch
from cases import CE, LAYERS, Body2, Case, Objective, data, ids, random_numbers
from oracle import check
from torch import Tensor, nn

import datagrad_ext

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

# First order; loss + penalty; a penalty alone, with x computed from a leaf.
OBJECTIVES = [
    Objective(CE, ()),
    Objective(CE, (("logsumexp", "l2_squared"),)),
    Objective(None, ((CE, "forces"),), "non_leaf"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("case", LAYERS, ids=ids)
def test_alone(case: Case, objective: Objective, device: str) -> None:
    check(case.build(), case.inputs(), objective, datagrad_ext.accelerate, device=device)


@pytest.mark.parametrize("case", LAYERS, ids=ids)
def test_between_smooth_layers(case: Case, device: str) -> None:
    """The tangent that arrives is not the penalty's, nor the cotangent the loss's; both sides are curved."""
    model = nn.Sequential(nn.Tanh(), case.build(), nn.Softplus()).train(case.train)
    objective = Objective(CE, ((CE, "l2_squared"),))
    check(model, case.inputs(), objective, datagrad_ext.accelerate, device=device)


@pytest.mark.parametrize("case", [c for c in LAYERS if c.opaque is False], ids=ids)
def test_has_a_rule(case: Case) -> None:
    table = datagrad_ext.program(datagrad_ext.accelerate(nn.Sequential(case.build())), *case.inputs())
    assert not table.note
    assert [row for row in table.rows if row.kind == "opaque"] == []


@pytest.mark.parametrize("case", [c for c in LAYERS if "norm" in c.name and c.opaque is False], ids=ids)
def test_a_normalisation_by_itself_is_a_network(case: Case) -> None:
    """Some of their forwards do not trace; the module is a layer all the same."""
    table = datagrad_ext.program(datagrad_ext.accelerate(case.build()), *case.inputs())
    assert [row.kind == "opaque" for row in table.rows] == [False]


UNBATCHED = [
    Case("linear", lambda: nn.Linear(6, 5), ((6,),)),
    Case("conv1d", lambda: nn.Conv1d(4, 3, 2), ((4, 7),)),
    Case("conv2d", lambda: nn.Conv2d(4, 3, 2), ((4, 5, 6),)),
    Case("conv3d", lambda: nn.Conv3d(4, 3, 2), ((4, 3, 4, 3),)),
    Case("conv_transpose2d", lambda: nn.ConvTranspose2d(4, 3, 2, stride=2), ((4, 2, 3),)),
    Case("max_pool2d", lambda: nn.MaxPool2d(2), ((4, 5, 6),)),
    Case("avg_pool1d", lambda: nn.AvgPool1d(2), ((4, 6),)),
    Case("adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d(2), ((4, 5, 6),)),
    Case("instance_norm1d", lambda: nn.InstanceNorm1d(4, affine=True), ((4, 7),)),
    Case("instance_norm2d", lambda: nn.InstanceNorm2d(4, track_running_stats=True), ((4, 3, 2),)),
    Case(
        "instance_norm1d_eval",
        lambda: random_numbers(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        ((4, 7),),
        train=False,
    ),
    Case("relu", nn.ReLU, ((6,),)),
    Case("softplus", nn.Softplus, ((6,),)),
    Case("conv2d_relu", lambda: nn.Sequential(nn.Conv2d(4, 3, 2), nn.ReLU()), ((4, 5, 6),)),
    Case(
        "linear_relu", lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU()), ((6,),)
    ),
]


@pytest.mark.parametrize("case", UNBATCHED, ids=ids)
def test_unbatched(case: Case, device: str) -> None:
    check(
        case.build(),
        case.inputs(),
        Objective("mse", (("mse", "forces"),)),
        datagrad_ext.accelerate,
        device=device,
    )


def test_embedding_of_an_input(device: str) -> None:
    """Ids among the inputs: they have no data gradient, and their table has one."""
    ids_, x = torch.tensor([1, 3, 3, 0]), data(4, 6)

    def code(model: nn.Module, ids: Tensor, x: Tensor) -> dict[str, Tensor]:
        y = model(ids, x)
        (J,) = torch.autograd.grad(y.logsumexp(1).sum(), x, create_graph=True)
        (y.square().mean() + J.square().sum()).backward()
        return {"y": y, "J": J}

    for options in ({}, {"padding_idx": 3}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}):
        model = Body2(
            lambda m, ids, x: m.b(m.table(ids) * x.sin()),
            table=nn.Embedding(5, 6, **options),
            b=nn.Linear(6, 5),
        )
        check(model.double(), [ids_, x], code, datagrad_ext.accelerate, device=device)


def test_integer_inputs_alone_are_named() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5)))
    assert "Integer inputs have none" in str(datagrad_ext.program(model, torch.tensor([1, 2])))
