"""The table of contestants: each makes a step without arguments of a case. A new one is one more row."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import jax_peer, objectives
from .capture import WARM_UP, Step, captured
from .cases import Case
from .fixed_convolution import fix_convolutions, input_gradients_only
from .peaks import cuda_peak
from .timing import Block


@dataclass(frozen=True)
class Prepared:
    """A step ready to run, and what a reader should know about it (layers off the fast path and so on).

    `peak_bytes` is known where the step tells it: a graph at its recording. A step that runs in another process
    brings its own `block`, which times it there.
    """

    step: Step
    notes: Callable[[], list[str]] = list
    peak_bytes: int | None = None
    block: Block | None = None


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
    # torch.func refuses to update running statistics; without them the step costs a little less.
    if model.training:
        torch.func.replace_all_batch_norm_modules_(model)
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


def _jax(case: Case) -> Prepared:
    worker = jax_peer.running(case.device)
    jax_peer.load(worker, case)
    return Prepared(
        lambda: jax_peer.gradients(worker, case.device),
        lambda: [worker.title],
        jax_peer.peak_bytes(worker),
        lambda calls: jax_peer.seconds(worker, calls),
    )


def _ours(case: Case) -> Prepared:
    import datagrad_ext

    model, x, t = case.build()
    model = datagrad_ext.accelerate(model)
    parameters = list(model.parameters())
    return Prepared(
        lambda: objectives.penalty_step(model, parameters, case.objective, case.weight, x, t),
        lambda: _off_the_native_path(model),
    )


def _ours_graphed(case: Case) -> Prepared:
    """The step in a GraphedStep. It returns nothing, for what a recorded step returns is copied at each call."""
    from datagrad_ext import GraphedStep

    prepared, found = _ours(case), list[Tensor]()

    def step(_: Tensor) -> None:
        found[:] = prepared.step()

    graphed, tick = GraphedStep(step, warmup=WARM_UP), torch.zeros(1, device=case.device)
    for _ in range(WARM_UP):
        graphed(tick)
    peak = cuda_peak(lambda: graphed(tick))

    def replay() -> objectives.Gradients:
        graphed(tick)
        return tuple(found)

    return replace(prepared, step=replay, peak_bytes=peak)


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


def _graph_of(make: Callable[[Case], Prepared]) -> Callable[[Case], Prepared]:
    """The same step as a graph replay."""

    def prepare(case: Case) -> Prepared:
        prepared = make(case)
        step, peak = captured(prepared.step)
        return replace(prepared, step=step, peak_bytes=peak)

    return prepare


@dataclass(frozen=True)
class Contestant:
    """A row. `role`: "plain" (no penalty), "peer" (what exists), "ours". `make` gives a step that is ready to be
    called on the case's device. `graph`: a CUDA graph replay.
    """

    name: str
    title: str
    role: str
    make: Callable[[Case], Prepared]
    convolutions_only: bool = False
    graph: bool = False
    cpu_only: bool = False
    restricted_to: tuple[objectives.Objective, ...] | None = None
    """The objectives that it has code for, None for all."""

    def enters(self, case: Case) -> bool:
        """Whether this contestant has something of its own to show on `case`."""
        if self.restricted_to is not None and case.objective not in self.restricted_to:
            return False
        barred = self.cpu_only if case.device == "cuda" else self.graph
        return not barred and (case.has_convolutions or not self.convolutions_only)


_DIRECT = (
    Contestant("plain", "plain step", "plain", _plain),
    Contestant("eager", "eager double backprop", "peer", _eager),
    Contestant("fixed_conv", "eager, fixed convolution", "peer", _fixed_convolution, convolutions_only=True),
    Contestant("compile", "torch.compile(func.grad)", "peer", _compiled, cpu_only=True),
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


def _graphs() -> Iterator[Contestant]:
    """Each as a CUDA graph. Compiling takes so long that on a GPU only this form of compiled code enters."""
    special = {"ours": (_ours_graphed, "GraphedStep")}
    for row in _DIRECT:
        make, form = special.get(row.name, (_graph_of(row.make), "CUDA graph"))
        title = f"{row.title}, {form}"
        yield replace(row, name=f"{row.name}_graph", title=title, make=make, graph=True, cpu_only=False)


CONTESTANTS = (*_DIRECT, *_graphs(), Contestant("jax", "JAX jit", "peer", _jax))
SLOW_STARTERS = ("compile", "compile_graph", "jax")  # compilers: their results may be cached by a run before


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
