"""A network of convolutions, norms, activations, poolings, linear layers and sums as one step."""

from __future__ import annotations

from ..layers.folded import FoldedNorm
from ..layers.folded_image_chain import FoldedImageChain
from ..layers.image_chain import ImageChain
from ..program import Program, Ref, Step
from ..single import Single
from .biases import move_biases
from .folding import fold_norms


def as_image_chain(program: Program) -> tuple[ImageChain, Program] | None:
    """The whole program as one ImageChain, if all layers have an `image_link`, the first a convolution, and the last
    makes the only output.

    It does not take the place of the program that `fuse` makes: which of the two runs depends on the input's shape.
    """
    program = fold_norms(move_biases(program))
    steps = [step for step in program.steps if isinstance(step, Step) and _fits(step)]
    if len(steps) < max(2, len(program.steps)) or program.outputs != (steps[-1].output,):
        return None
    if not str(steps[0].layer.image_link(len(steps[0].params), steps[0].host)).startswith("convolution"):
        return None
    chain = Single.of(program.with_steps([_chain(steps)]))
    return (chain.steps[0].layer, chain) if isinstance(chain, Single) else None  # type: ignore[return-value]


def _fits(step: Step) -> bool:
    is_plain = not any(isinstance(argument, Ref) for argument in step.host)
    return is_plain and step.layer.image_link(len(step.params), step.host) is not None


def _chain(steps: list[Step]) -> Step:
    places = {0: 0} | {step.output: i for i, step in enumerate(steps, start=1)}
    kind = FoldedImageChain if any(isinstance(step.layer, FoldedNorm) for step in steps) else ImageChain
    layer = kind(
        [step.layer for step in steps],
        [len(step.params) for step in steps],
        [step.host for step in steps],
        [tuple([places[value] for value in step.inputs]) for step in steps],
    )
    params = tuple([place for step in steps for place in step.params])
    host = tuple([argument for step in steps for argument in step.host])
    return Step(layer, (0,), steps[-1].output, params, host, name=f"{steps[0].name}…{steps[-1].name}")
