"""Fusion passes: a program in, a program out with fewer and larger steps. Values keep their numbers."""

from __future__ import annotations

from dataclasses import replace

from .layers.chain import Chain
from .layers.linear import Linear
from .program import HostStep, Program, Step


def chains(program: Program) -> Program:
    """Every run of layers that have a `link`, two or more and the first linear, as one Chain.

    A run follows values that one step reads and nothing else does.
    """
    readers: dict[int, list[int]] = {value: [-1] for value in program.outputs}
    for i, step in enumerate(program.steps):
        for value in step.inputs:
            readers.setdefault(value, []).append(i)
    steps: list[Step | HostStep | None] = list(program.steps)
    for i in range(len(steps)):
        run = _run_from(i, steps, readers)
        if len(run) > 1:
            for place in run:
                steps[place] = None
            steps[run[-1]] = _chain([program.steps[place] for place in run])  # type: ignore[misc]
    return replace(program, steps=tuple(step for step in steps if step is not None), rows=[], _plans={})


def _run_from(i: int, steps: list[Step | HostStep | None], readers: dict[int, list[int]]) -> list[int]:
    """Places of the steps of the longest run that begins at step i."""
    run: list[int] = []
    step = steps[i]
    while isinstance(step, Step) and _is_link(step) and (run or isinstance(step.layer, Linear)):
        run.append(i)
        after = readers.get(step.output, [])
        if len(after) != 1 or after[0] < 0:
            break
        i = after[0]
        step = steps[i]
    return run


def _is_link(step: Step) -> bool:
    return len(step.inputs) == 1 and not step.host and step.layer.link(len(step.params)) is not None


def _chain(run: list[Step]) -> Step:
    layer = Chain([step.layer for step in run], [len(step.params) for step in run])
    params = tuple([place for step in run for place in step.params])
    name = f"{run[0].name}…{run[-1].name}"
    return Step(layer, run[0].inputs, run[-1].output, params, name=name)
