"""Networks x losses x penalties: the accelerated model leaves behind what plain autograd does."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import ALL_OBJECTIVES, CE, CORE, NETWORKS, OBJECTIVES, Case, Objective, ids, network
from oracle import Results, assert_similar, check, observe

import datagrad_ext

# torch itself says this of an even kernel with padding "same"
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_every_network(case: Case, objective: Objective, device: str) -> None:
    check(case.build(), case.inputs(), objective, datagrad_ext.accelerate, device=device)


@pytest.mark.parametrize("objective", ALL_OBJECTIVES, ids=ids)
@pytest.mark.parametrize("case", CORE, ids=ids)
def test_every_objective(case: Case, objective: Objective, device: str) -> None:
    if objective.loss is None and case.name == "mlp_linear" and objective.terms[0][0] == "sum":
        objective = Objective(
            "sum", objective.terms
        )  # J does not depend on x: there is something to differentiate
    check(case.build(), case.inputs(), objective, datagrad_ext.accelerate, device=device)


@pytest.mark.parametrize("case", [c for c in NETWORKS if c not in CORE][::5], ids=ids)
@pytest.mark.parametrize("x", ["leaf", "non_leaf", "upstream"])
def test_every_kind_of_input(case: Case, x: str, device: str) -> None:
    check(
        case.build(),
        case.inputs(),
        Objective(CE, ((CE, "l2_squared"),), x),
        datagrad_ext.accelerate,
        device=device,
    )


@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_program_names_what_has_no_rule(case: Case) -> None:
    table = datagrad_ext.program(datagrad_ext.accelerate(case.build()), *case.inputs())
    kinds = {row.kind for row in table.rows}
    assert kinds <= {"native", "reference", "opaque"}
    assert case.opaque is None or ("opaque" in kinds) == case.opaque, str(table)
    assert case.opaque is not False or not table.note, table.note


def _low_precision(case: Case, dtype: torch.dtype, device: str) -> tuple[Results, Results, Results]:
    """Gradients of CE + 0.3 ‖J‖² of ours and of plain autograd in `dtype`, and of autograd in float64."""
    objective = Objective(CE, ((CE, "l2_squared"),))

    def gradients(model: torch.nn.Module, to: torch.dtype) -> Results:
        found = observe(model.to(device, to), [t.to(device, to) for t in case.inputs()], objective)
        return {k: v for k, v in found.items() if k.startswith("grad ")}

    ours = gradients(datagrad_ext.accelerate(case.build()), dtype)
    return ours, gradients(case.build(), dtype), gradients(case.build(), torch.float64)


LOW_PRECISION = [
    network(name)
    for name in (
        "mlp_relu",
        "mlp_softplus",
        "mlp_gelu",
        "mlp_leaky_relu",
        "conv_critic",
        "conv_fully_convolutional",
        "dag_dense",
        "conv_resnet_group_norm",
        "dag_squeeze_excite",
        "dag_skip_of_other_size",
        "dag_functions",
    )
]


@pytest.mark.parametrize("case", LOW_PRECISION, ids=ids)
def test_float32(case: Case, device: str) -> None:
    ours, _, exact = _low_precision(case, torch.float32, device)
    assert_similar(
        {k: v.double() for k, v in ours.items() if v is not None}, exact, norm=1e-5, cosine=1e-9, bias=1e-5
    )
    assert all(v is None or v.dtype == torch.float32 for v in ours.values())


@pytest.mark.parametrize("case", LOW_PRECISION, ids=ids)
def test_bfloat16_is_no_worse_than_autograd(case: Case, device: str) -> None:
    ours, plain, exact = _low_precision(case, torch.bfloat16, device)
    for name, b in exact.items():
        a, usual_gradient = ours[name], plain[name]
        if b is None or a is None or usual_gradient is None:
            assert a is b is usual_gradient is None
            continue
        assert a.dtype == torch.bfloat16
        error, usual = ((t.double() - b).norm() / b.norm() for t in (a, usual_gradient))
        assert error <= 2 * usual + 0.02, f"{name}: relative error {error:.3f}, autograd's own {usual:.3f}"


def test_the_unmodified_copy_is_left_alone() -> None:
    """check() compares two models: accelerating one must not reach into the other."""
    model = network("mlp_relu").build()
    twin = copy.deepcopy(model)
    datagrad_ext.accelerate(model)
    assert type(twin) is torch.nn.Sequential
    assert all(
        p is not q and torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
