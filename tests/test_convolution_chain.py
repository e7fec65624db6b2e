"""Runs of convolutions and rectifiers as one layer, with the host in cuDNN's place: gradients of both orders.

Every pass may have a plan or not, by itself; the layer must be right whichever are fused. What a GPU gives is compared
in `test_ops_fused_convolution.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import test_units
import torch
from cases import CE, OBJECTIVES, Case, Objective, data, ids
from host_plans import HostPlans, install
from oracle import check
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

import datagrad_ext
from datagrad_ext import fusion
from datagrad_ext.layers import fused_passes
from datagrad_ext.layers.fused_passes import Call

# torch itself says this of an even kernel with padding "same"
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

_PHOTO = ((3, 3, 8, 8),)


def critic() -> nn.Module:
    """4×4 of stride 2, slopes, the last convolution bare."""
    return nn.Sequential(
        *[nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 4, 2, 1), nn.LeakyReLU(0.2)],
        *[nn.Conv2d(8, 5, 2), nn.Flatten()],
    )


def vgg() -> nn.Module:
    """3×3 in runs between pooling."""
    return nn.Sequential(
        *[nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 5)],
    )


def mixed() -> nn.Module:
    """Groups, 1×1, dilation, no bias, both rectifiers; a tensor that the network returns is a gate."""
    return nn.Sequential(
        *[nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2)],
        *[nn.LeakyReLU(), nn.Conv2d(8, 8, 3, 2, groups=8, bias=False), nn.ReLU(), nn.Conv2d(8, 5, (3, 2)), nn.ReLU()],
    )


def uneven() -> nn.Module:
    """An even kernel with padding "same" pads its input first: that input is no gate."""
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, 4, padding="same"), nn.LeakyReLU(0.3)],
        *[nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 8), nn.Flatten()],
    )


class Branches(nn.Module):
    """Values that are read twice end a run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.head = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 5, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        z = self.second(h)
        return self.head(torch.relu(self.third(torch.relu(z)) + z.sum(1, keepdim=True))).flatten(1)


NETS = [
    (Case("critic", critic, _PHOTO), ["Conv2d → bias + LeakyReLU(0.2) → Conv2d → bias + LeakyReLU(0.2) → Conv2d"]),
    (Case("vgg", vgg, _PHOTO), ["Conv2d → bias + ReLU → Conv2d → bias + ReLU", "Conv2d → bias + ReLU"]),
    (
        Case("mixed", mixed, ((2, 3, 7, 6),)),
        ["Conv2d → ReLU → Conv2d → bias + LeakyReLU(0.01) → Conv2d → ReLU → Conv2d → bias + ReLU"],
    ),
    (
        Case("uneven", uneven, _PHOTO),
        ["Conv2d → bias + ReLU → Conv2d → bias + LeakyReLU(0.3) → Conv2d → bias + ReLU → Conv2d"],
    ),
    (Case("branches", Branches, _PHOTO), ["Conv2d → bias + ReLU → Conv2d"]),
    (
        Case("unbatched", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 6)), ((3, 8, 8),)),
        ["Conv2d → bias + ReLU → Conv2d"],
    ),
]

PLANS: dict[str, Callable[[Call], bool]] = {
    "all": lambda call: True,
    "none": lambda call: False,
    "forward": lambda call: call.sweep.name == "forward",
    "vjp": lambda call: call.sweep.name == "vjp",
    "jvp": lambda call: call.sweep.name == "jvp",
    "where there is no bias": lambda call: not call.sums,
    "strided": lambda call: call.numbers[0] != (1, 1),
    "narrow": lambda call: call.operands[0].shape[1] % 4 == 0,
}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("plans", PLANS)
@pytest.mark.parametrize(("case", "names"), NETS, ids=ids)
def test_gradients(
    case: Case, names: list[str], plans: str, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = HostPlans(PLANS[plans])
    install(monkeypatch, planner)
    check(case.build(), case.inputs(), objective, datagrad_ext.accelerate)
    sweeps = {call.sweep.name for call in planner.taken}
    assert sweeps <= {"forward", "vjp", "jvp"}
    assert plans != "none" or not sweeps
    assert plans != "all" or case.name == "unbatched" or "forward" in sweeps


@pytest.mark.parametrize(("case", "names"), NETS, ids=ids)
def test_runs(case: Case, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, HostPlans())
    table = datagrad_ext.program(datagrad_ext.accelerate(case.build()), *case.inputs())
    assert [row.layer for row in table.rows if "→" in row.layer and "Conv2d" in row.layer] == names
    monkeypatch.setattr(fusion.convolution_chains, "_has_plans", lambda: False)
    table = datagrad_ext.program(datagrad_ext.accelerate(case.build()), *case.inputs())
    assert not [row.layer for row in table.rows if "→" in row.layer and "Conv2d" in row.layer] or names == []


def test_every_sweep_of_every_link_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three convolutions: two forwards, two tangents, two vjps, which sweeps 2 and 4 share."""
    planner = HostPlans()
    install(monkeypatch, planner)
    case, objective = NETS[0][0], Objective(CE, ((CE, "l2_squared"),))
    check(case.build(), case.inputs(), objective, datagrad_ext.accelerate)
    found = sorted((call.sweep.name, call.sums) for call in planner.taken)
    assert found == [("forward", False)] * 2 + [("jvp", False)] * 2 + [("vjp", True)] * 2


@pytest.fixture
def _choosing_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = fused_passes.choose

    def unseen(*arguments: Any) -> Any:
        with _disable_current_modes():
            return choose(*arguments)

    monkeypatch.setattr(fused_passes, "choose", unseen)


@pytest.mark.usefixtures("_choosing_is_not_counted")
@pytest.mark.parametrize("plans", ["all", "none", "vjp"])
@pytest.mark.parametrize(("total", "activation", "with_input", "expected"), test_units.ROWS)
def test_work(
    total: Callable,
    activation: Callable,
    with_input: bool,
    expected: list[int],
    plans: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products are as many as without."""
    install(monkeypatch, HostPlans(PLANS[plans]))
    test_units.test_units(total, activation, with_input, expected, "conv", test_units.products)


@pytest.mark.usefixtures("_choosing_is_not_counted")
@pytest.mark.parametrize("plans", ["all", "none"])
def test_only_what_is_asked_for_is_computed(plans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, HostPlans(PLANS[plans]))
    test_units.test_only_what_is_asked_for_is_computed("conv", test_units.products)
    test_units.test_frozen_layers_cost_less("conv", test_units.products)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype: torch.dtype, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close to the same layers unfused, in both layouts, which the results keep."""
    case = NETS[0][0]
    model, (x,) = case.build().to(dtype), case.inputs()
    model, x = model.to(memory_format=memory_format), x.to(dtype).contiguous(memory_format=memory_format)
    found = {}
    for plans in ("all", "none"):
        with monkeypatch.context() as patch:
            install(patch, HostPlans(PLANS[plans]))
            ours, leaf = datagrad_ext.accelerate(copy.deepcopy(model)), x.clone().requires_grad_()
            y = ours(leaf)
            (J,) = torch.autograd.grad(y.float().logsumexp(1).sum(), leaf, create_graph=True)
            (y.float().square().mean() + J.float().square().sum()).backward()
            found[plans] = [t.detach() for t in (y, J, *[p.grad for p in ours.parameters()])]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    for a, b in zip(*found.values(), strict=True):
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
        assert float((a.double() - b.double()).norm()) <= tolerance * float(b.double().norm())


def test_a_nan_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the layers one by one: the loss is NaN, and J of other samples is not."""
    install(monkeypatch, HostPlans())
    model, x = datagrad_ext.accelerate(critic().double()), data(3, 3, 8, 8)
    x[1, 0, 0, 0] = torch.nan
    x.requires_grad_()
    y = model(x)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
    (J,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert J[[0, 2]].isfinite().all()


def test_the_value_may_not_be_changed_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is a gate here, as in torch.relu: a change in place raises."""
    install(monkeypatch, HostPlans())
    model = datagrad_ext.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double())
    y = model(data(2, 3, 6, 6).requires_grad_())
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_cudnn_programs_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        install(patch, HostPlans())
        patch.setattr(fusion.convolution_chains, "_has_plans", lambda: False)
        table = datagrad_ext.program(datagrad_ext.accelerate(critic()), torch.ones(*_PHOTO[0]))
    layers = [row.layer for row in table.rows if row.layer.startswith("Conv2d")]
    assert layers == ["Conv2d + bias + LeakyReLU(0.2)"] * 2 + ["Conv2d"]
