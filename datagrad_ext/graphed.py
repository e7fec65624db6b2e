"""GraphedStep: a whole training step as one CUDA graph.

A penalty step of a small network is hundreds of launches around little work. A graph launches them at once: forward,
data gradient, penalty, backward and optimiser are recorded the first time and replayed on new inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Key = tuple[Any, ...]


class GraphedStep:
    """`step(*tensors)` with the same numbers, replayed from a CUDA graph; on other devices it runs as it is.

        step = GraphedStep(train_step)      # def train_step(x, t): ...; optimizer.step(); return loss.detach()
        for x, t in loader:
            loss = step(x, t)

    The first `warmup` calls with inputs of one kind (shapes, strides, dtypes, device) run as they are: they are steps
    like all others. The next is recorded, and from then on calls of this kind copy their inputs into the graph's and
    replay it. A new kind has a graph of its own. What is returned is a copy and stays valid.

    What Python decides is recorded once: numbers (a learning rate: make it a tensor), flags (`train()`), branches.
    The step must not read a value on the CPU (`.item()`, printing, GradScaler.step), and sets gradients to None itself
    (`optimizer.zero_grad()`); Adam and its relatives need `capturable=True`.

    Args:
        step: takes tensors and returns a tensor, a container of tensors, or None.
        warmup: at least 1.

    Raises:
        ValueError: warmup is less than 1, or the inputs are on several devices.
        TypeError: an input is not a tensor, or the step returns something that a graph cannot renew.
        RuntimeError: the step cannot be recorded; the cause is what PyTorch said.
    """

    def __init__(self, step: Callable[..., Any], warmup: int = 3) -> None:
        if warmup < 1:
            raise ValueError(f"GraphedStep: warmup must be at least 1, got {warmup}; these calls make lazy state")
        self._step, self._warmup = step, warmup
        self._calls: dict[Key, int] = {}
        self._recorded: dict[Key, _Recorded] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        if _device(inputs).type != "cuda":
            return self._step(*inputs)
        key = tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in inputs)
        recorded = self._recorded.get(key)
        if recorded is None:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= self._warmup:
                return _beside(self._step, inputs)
            recorded = self._recorded[key] = _Recorded(self._step, inputs)
        return recorded.replay(inputs)


class _Recorded:
    """A graph, the tensors it reads and those it writes."""

    def __init__(self, step: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self._inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                result = step(*self._inputs)
        except RuntimeError as error:
            raise RuntimeError(
                f"GraphedStep cannot record this step: {str(error).strip().splitlines()[0]} A step must not read "
                "values on the CPU (.item(), print, GradScaler.step) or make tensors from data on the CPU; Adam needs "
                "capturable=True. Take that out of the step, or call the step without GraphedStep."
            ) from error
        self._outputs, self._structure = pytree.tree_flatten(result)
        wrong = [type(part).__name__ for part in self._outputs if not isinstance(part, Tensor) and part is not None]
        if wrong:
            raise TypeError(f"GraphedStep: the step returned a {wrong[0]}, which stays as recorded. Return tensors.")

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """The step on other values."""
        with torch.no_grad():
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
        self._graph.replay()
        return pytree.tree_unflatten(_copies(self._outputs), self._structure)


def _beside(step: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """The step on a stream of its own, as calls before a recording must be."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        result = step(*inputs)
    current.wait_stream(side)
    leaves, structure = pytree.tree_flatten(result)
    return pytree.tree_unflatten(_copies(leaves), structure)


def _copies(values: Sequence[Any]) -> list[Any]:
    return [value.detach().clone() if isinstance(value, Tensor) else value for value in values]


def _device(inputs: Sequence[Any]) -> torch.device:
    """The device of all inputs; a step without inputs runs as it is."""
    for place, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"GraphedStep takes tensors, got {type(value).__name__} as input {place}. A graph keeps other values "
                "as recorded: bind them to the step (functools.partial)."
            )
    devices = {t.device for t in inputs}
    if len(devices) > 1:
        raise ValueError(f"GraphedStep: inputs are on {sorted(map(str, devices))}. Move them to one device.")
    return devices.pop() if devices else torch.device("cpu")
