"""Runs of layers without branches become one step each."""

from __future__ import annotations

from ..layers.chain import Chain
from ..layers.folded import FoldedNorm
from ..layers.folded_chain import FoldedChain
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def collect_chains(program: Program) -> Program:
    """Every run of layers that have a `link`, two or more and the first linear, as one Chain.

    A run follows values that one step reads and nothing else does.
    """
    readers = readers_of(program)
    steps: list[Step | HostStep | None] = list(program.steps)
    for i in range(len(steps)):
        run = _run_from(i, steps, readers)
        if len(run) > 1:
            for place in run:
                steps[place] = None
            steps[run[-1]] = _chain([program.steps[place] for place in run])  # type: ignore[misc]
    return program.with_steps([step for step in steps if step is not None])


def _run_from(i: int | None, steps: list[Step | HostStep | None], readers: dict[int, list[int]]) -> list[int]:
    """Places of the steps of the longest run that begins at step i."""
    run: list[int] = []
    while i is not None:
        step = steps[i]
        link = _link(step)
        if not isinstance(step, Step) or link is None or not (run or link.startswith("linear")):
            break
        run.append(i)
        i = only_reader(readers, step.output)
    return run


def _link(step: Step | HostStep | None) -> str | None:
    """How a chain spells the step, None if it can be no link of one."""
    if not isinstance(step, Step):
        return None
    takes_host = not step.host or isinstance(step.layer, FoldedNorm)
    return step.layer.link(len(step.params)) if takes_host and len(step.inputs) == 1 else None


def _chain(run: list[Step]) -> Step:
    layers, n_params = [step.layer for step in run], [len(step.params) for step in run]
    params = tuple([place for step in run for place in step.params])
    host = tuple([argument for step in run for argument in step.host])
    chain = FoldedChain(layers, n_params, [len(step.host) for step in run]) if host else Chain(layers, n_params)
    return Step(chain, run[0].inputs, run[-1].output, params, host, name=f"{run[0].name}…{run[-1].name}")
