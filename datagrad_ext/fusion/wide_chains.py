"""Chains that autocast has made low, on the CPU, compute in float32 where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..layers.cast import Cast
from ..layers.chain import Chain
from ..layers.wide_chain import WideChain
from ..ops.chain import NARROW
from ..precision import Entry, Precision
from ..program import HostStep, Program, Step
from ..single import Single
from .readers import only_reader, readers_of


def widen_chains(
    program: Program, entries: Sequence[Entry], shapes: Sequence[Sequence[int] | None], precision: Precision
) -> tuple[Program, list[Entry]]:
    """The program with such chains, and what its parameters are now; `shapes` are those of the slots, where known.

    A cast in front of a chain that alone reads it is left out: the chain takes what was to be cast.
    """
    if precision.device != "cpu":
        return program, list(entries)
    casts = {s.output: i for i, s in enumerate(program.steps) if isinstance(s, Step) and isinstance(s.layer, Cast)}
    readers = readers_of(program)
    steps: list[Step | HostStep | None] = list(program.steps)
    taken: dict[int, list[Entry]] = {}
    for i, step in enumerate(program.steps):
        if not isinstance(step, Step):
            continue
        taken[i] = [entries[place] for place in step.params]
        if isinstance(step.layer, Chain) and _is_faster(taken[i], shapes, precision.dtype):
            (x,) = step.inputs
            if x in casts and only_reader(readers, x) == i:
                steps[casts[x]], x = None, program.steps[casts[x]].inputs[0]
            layer = WideChain(step.layer.layers, step.layer.n_params, precision.dtype)
            steps[i] = replace(step, layer=layer, inputs=(x,))
            taken[i] = [(slot, torch.float32) for slot, _ in taken[i]]
    used = list(dict.fromkeys(entry for found in taken.values() for entry in found))
    for i, found in taken.items():
        now = steps[i]
        if isinstance(now, Step):
            steps[i] = replace(now, params=tuple(used.index(entry) for entry in found))
    widened = program.with_steps([step for step in steps if step is not None])
    return Single.of(replace(widened, n_params=len(used))), used


def _is_faster(entries: list[Entry], shapes: Sequence[Sequence[int] | None], low: torch.dtype) -> bool:
    """Whether a chain of these parameters is: if it is narrow, or float16, which processors emulate."""
    if any(dtype != low for _, dtype in entries):
        return False
    sizes = [shapes[slot] for slot, _ in entries]
    return low == torch.float16 or all(size is not None and max(size, default=1) <= NARROW for size in sizes)
