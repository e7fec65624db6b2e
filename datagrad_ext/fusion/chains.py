"""Runs of layers without branches become one step each."""

from __future__ import annotations

from ..layers.chain import Chain
from ..layers.folded import FoldedChain, FoldedNorm
from ..program import Program, Step
from .joining import join_runs


def collect_chains(program: Program) -> Program:
    """Every run of layers that have a `link`, two or more and the first linear, as one Chain.

    A run follows values that one step reads and nothing else does.
    """
    return join_runs(program, _fits, _chain)


def _fits(n: int, step: Step) -> bool:
    link = _link(step)
    return link is not None and (n > 0 or link.startswith("linear"))


def _link(step: Step) -> str | None:
    """How a chain spells the step, None if it can be no link of one."""
    takes_host = not step.host or isinstance(step.layer, FoldedNorm)
    return step.layer.link(len(step.params)) if takes_host and len(step.inputs) == 1 else None


def _chain(run: list[Step]) -> Step:
    layers, n_params = [step.layer for step in run], [len(step.params) for step in run]
    params = tuple([place for step in run for place in step.params])
    host = tuple([argument for step in run for argument in step.host])
    chain = FoldedChain(layers, n_params, [len(step.host) for step in run]) if host else Chain(layers, n_params)
    return Step(chain, run[0].inputs, run[-1].output, params, host, name=f"{run[0].name}…{run[-1].name}")
