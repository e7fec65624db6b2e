"""The table of contestants: each makes a step without arguments of a case. A new one is one more row."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import objectives
from .capture import Step, captured
from .cases import Case
from .fixed_convolution import fix_convolutions, input_gradients_only


@dataclass(frozen=True)
class Prepared:
    """A step ready to run, and what a reader should know about it (layers off the fast path and so on)."""

    step: Step
    notes: Callable[[], list[str]] = list


def _plain(case: Case) -> Prepared:
    model, x, t = case.build()
    parameters = list(model.parameters())
    return Prepared(lambda: objectives.plain_step(model, parameters, case.objective, x, t))


def _eager(case: Case) -> Prepared:
    model, x, t = case.build()
    parameters = list(model.parameters())
    return Prepared(lambda: objectives.penalty_step(model, parameters, case.objective, case.weight, x, t))


def _fixed_convolution(case: Case) -> Prepared:
    model, x, t = case.build()
    fix_convolutions(model)
    parameters = list(model.parameters())
    return Prepared(
        lambda: objectives.penalty_step(
            model, parameters, case.objective, case.weight, x, t, input_gradients_only
        )
    )


def _compiled(case: Case) -> Prepared:
    torch._dynamo.reset()
    model, x, t = case.build()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def step(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> dict[str, Tensor]:
        def total(parameters: dict[str, Tensor]) -> Tensor:
            return objectives.penalty_total(model, case.objective, case.weight, parameters, x, t)

        return torch.func.grad(total)(parameters)

    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    return Prepared(lambda: tuple(compiled(parameters, x, t).values()))


def _off_the_native_path(model: nn.Module) -> list[str]:
    from datagrad_ext import program

    return [
        f"layer {row.name} ({row.layer}) is {row.kind}" for row in program(model).rows if row.kind != "native"
    ]


def _ours(case: Case) -> Prepared:
    import datagrad_ext

    model, x, t = case.build()
    model = datagrad_ext.accelerate(model)
    parameters = list(model.parameters())
    return Prepared(
        lambda: objectives.penalty_step(model, parameters, case.objective, case.weight, x, t),
        lambda: _off_the_native_path(model),
    )


def _as_objective(case: Case) -> Any:
    """The case's loss and penalty as one DataGrad objective."""
    from datagrad_ext import DataGrad, Term, penalties
    from datagrad_ext.objective import score

    rows = {
        objectives.CROSS_ENTROPY_L1: lambda weight: DataGrad(F.cross_entropy, Term(weight, penalties.l1)),
        objectives.CROSS_ENTROPY_L2: lambda weight: DataGrad(
            F.cross_entropy, Term(weight, penalties.l2_squared)
        ),
        objectives.R1: lambda weight: DataGrad(None, Term(weight, penalties.l2_squared, score)),
        objectives.EIKONAL: lambda weight: DataGrad(
            lambda y, t: y.abs().mean(), Term(weight, penalties.Centred(1.0), score)
        ),
    }
    return rows[case.objective](case.weight)


def _objective(case: Case) -> Prepared:
    import datagrad_ext

    model, x, t = case.build()
    model, objective = datagrad_ext.accelerate(model), _as_objective(case)
    parameters = list(model.parameters())

    def step() -> objectives.Gradients:
        return objectives.gradients(objective(model, x, t).total, parameters)

    return Prepared(step, lambda: _off_the_native_path(model))


@dataclass(frozen=True)
class Contestant:
    """A row. `role`: "plain" (no penalty), "peer" (what exists), "ours". `graph`: a CUDA graph replay."""

    name: str
    title: str
    role: str
    make: Callable[[Case], Prepared]
    convolutions_only: bool = False
    graph: bool = False
    restricted_to: tuple[objectives.Objective, ...] | None = None
    """The objectives that it has code for, None for all."""

    def enters(self, case: Case) -> bool:
        """Whether this contestant has something of its own to show on `case`."""
        if self.restricted_to is not None and case.objective not in self.restricted_to:
            return False
        possible = case.device == "cuda" or not self.graph
        return possible and (case.has_convolutions or not self.convolutions_only)

    def prepare(self, case: Case) -> Prepared:
        """A step ready to be called on the case's device."""
        prepared = self.make(case)
        return replace(prepared, step=captured(prepared.step)) if self.graph else prepared


_DIRECT = (
    Contestant("plain", "plain step", "plain", _plain),
    Contestant("eager", "eager double backprop", "peer", _eager),
    Contestant("fixed_conv", "eager, fixed convolution", "peer", _fixed_convolution, convolutions_only=True),
    Contestant("compile", "torch.compile(func.grad)", "peer", _compiled),
    Contestant("ours", "datagrad_ext", "ours", _ours),
    Contestant(
        "objective",
        "datagrad_ext objective",
        "ours",
        _objective,
        restricted_to=(
            objectives.CROSS_ENTROPY_L1,
            objectives.CROSS_ENTROPY_L2,
            objectives.R1,
            objectives.EIKONAL,
        ),
    ),
)

CONTESTANTS = _DIRECT + tuple(
    replace(row, name=f"{row.name}_graph", title=f"{row.title}, CUDA graph", graph=True) for row in _DIRECT
)


def find(names: list[str] | None) -> tuple[Contestant, ...]:
    """The rows with these names, all when None; ValueError names an unknown one."""
    rows = {contestant.name: contestant for contestant in CONTESTANTS}
    for name in names or ():
        if name not in rows:
            raise ValueError(f"no contestant {name!r}; the contestants are {', '.join(rows)}")
    return tuple(rows.values()) if names is None else tuple(rows[name] for name in names)


def quietly(prepared: Prepared) -> tuple[tuple[Tensor, ...], list[str]]:
    """Run the step once; its gradients, and as notes its warnings and what it has to say of itself."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradients = prepared.step()
    said = [
        str(warning.message).partition("\n")[0]
        for warning in caught
        if warning.category is not DeprecationWarning
    ]
    return gradients, [*dict.fromkeys(said), *prepared.notes()]
