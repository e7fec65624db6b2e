"""Steps that follow one another become one: pairs, and runs of any length.

A step follows another if it alone reads its value, and nothing else does. The one step stands where the last of them
stood: what that reads is there by then.
"""

from __future__ import annotations

from collections.abc import Callable

from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def join_pairs(program: Program, join: Callable[[Step, Step], Step | None]) -> Program:
    """The program with join(step, its follower) in the place of the two wherever it is not None."""
    readers = readers_of(program)
    steps: list[Step | HostStep | None] = list(program.steps)
    for i, step in enumerate(program.steps):
        after = only_reader(readers, step.output)
        following = None if after is None else steps[after]
        if after is None or not isinstance(step, Step) or not isinstance(following, Step):
            continue
        joined = join(step, following)
        if joined is not None:
            steps[i], steps[after] = None, joined
    return program.with_steps([step for step in steps if step is not None])


def join_runs(program: Program, fits: Callable[[int, Step], bool], join: Callable[[list[Step]], Step]) -> Program:
    """The program with join(run) in the place of every longest run of two or more; `fits`: may a step be its n-th."""
    readers = readers_of(program)
    steps: list[Step | HostStep | None] = list(program.steps)
    for i in range(len(steps)):
        run: list[Step] = []
        places: list[int] = []
        place: int | None = i
        while place is not None:
            step = steps[place]
            if not isinstance(step, Step) or not fits(len(run), step):
                break
            run.append(step)
            places.append(place)
            place = only_reader(readers, step.output)
        if len(run) > 1:
            for place in places:
                steps[place] = None
            steps[places[-1]] = join(run)
    return program.with_steps([step for step in steps if step is not None])
