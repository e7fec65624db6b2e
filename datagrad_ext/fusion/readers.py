"""Who reads a value of a program."""

from __future__ import annotations

from ..program import Program

OUTSIDE = -1


def readers_of(program: Program) -> dict[int, list[int]]:
    """For each value, the places of the steps that read it, and OUTSIDE if the program returns it."""
    readers: dict[int, list[int]] = {value: [OUTSIDE] for value in program.outputs}
    for i, step in enumerate(program.steps):
        for value in step.reads:
            readers.setdefault(value, []).append(i)
    return readers


def only_reader(readers: dict[int, list[int]], value: int) -> int | None:
    """The place of the one step that reads the value; None if there are more, or none, or the program returns it."""
    after = readers.get(value, [])
    return after[0] if len(after) == 1 and after[0] != OUTSIDE else None
