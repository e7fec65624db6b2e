"""A network of convolutions, activations, poolings and linear layers without branches as one step."""

from __future__ import annotations

from ..layers.image_chain import ImageChain
from ..program import Program, Step
from ..single import Single
from .biases import move_biases
from .joining import join_runs


def as_image_chain(program: Program) -> tuple[ImageChain, Program] | None:
    """The whole program as one ImageChain, if it is a run of layers with an `image_link`, the first a convolution.

    It does not take the place of the program that `fuse` makes: which of the two runs depends on the input's shape.
    """
    chain = Single.of(join_runs(move_biases(program), _fits, _chain))
    layer = chain.steps[0].layer if isinstance(chain, Single) else None
    return (layer, chain) if isinstance(layer, ImageChain) else None


def _fits(n: int, step: Step) -> bool:
    link = None if len(step.inputs) != 1 else step.layer.image_link(len(step.params), step.host)
    return link is not None and (n > 0 or link.startswith("convolution"))


def _chain(run: list[Step]) -> Step:
    layer = ImageChain([step.layer for step in run], [len(step.params) for step in run], [step.host for step in run])
    params = tuple([place for step in run for place in step.params])
    return Step(layer, run[0].inputs, run[-1].output, params, name=f"{run[0].name}…{run[-1].name}")
