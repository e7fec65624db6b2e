"""Forward passes of one model at one batch that start from the same state and leave it as one pass would.

A second pass must see what the first saw: the same dropout mask, and buffers (running statistics, the vectors of a
spectral norm) as they were before it. And it must leave nothing behind: running statistics are updated once, and the
random generators stand where one pass leaves them.

Batch statistics of a normalisation in training mode are those of the pass itself: they are functions of the input that
the exact data gradient differentiates, too. Held at the first pass's values they would put an error of order 1/φ into
a difference quotient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..accelerate import is_accelerated
from ..reference import warn_once

Key = int | str
"""An input: its index among the model's, or the name of the submodule whose output it is."""

_warned: set[str] = set()


@dataclass(frozen=True)
class Pass:
    """What one forward pass left: the model's output, and the tensors that data gradients refer to."""

    output: Any
    at: Mapping[Key, Tensor] = field(default_factory=dict)

    def value(self, name: str | None) -> Any:
        """The output of the model, or of the submodule of that name."""
        return self.output if name is None else self.at[name]


class Passes:
    """All passes of one step. `x` is a tensor, or several for model(*x); `names` are submodules to be watched."""

    def __init__(
        self, model: Callable[..., Any], x: Tensor | Sequence[Tensor], indices: Sequence[int], names: Sequence[str]
    ) -> None:
        self.model = model
        self._given = _tensors(x)
        self.x = list(self._given)
        for i in indices:
            self.x[i] = _differentiable(self.x, i)
        self.indices, self.names = indices, names
        if names and not isinstance(model, nn.Module):
            raise TypeError(f"a model with named submodules must be a torch.nn.Module, got {type(model).__name__}")
        self._start: State | None = None
        self._reentrant = False  # such checkpoints give no gradient at all unless an input requires one

    @property
    def samples(self) -> int:
        """N."""
        return len(self.x[0])

    @property
    def repeatable(self) -> bool:
        """Whether the state before the first pass was kept."""
        return self._start is not None

    def first(self, repeatable: bool) -> Pass:
        """The pass at x; `repeatable` keeps the state before it for `again`."""
        if repeatable:
            self._start = State.of(self.model, self.x[0].device)
        return self._run(self.x, {})

    def again(self, key: Key, shift: Tensor, differentiable: bool = False) -> Pass:
        """The pass with `shift` added to one input or activation; `differentiable`: a data gradient is taken at it."""
        assert self._start is not None
        x = list(self._given)
        if isinstance(key, int):
            x[key] = x[key] + shift
            if (differentiable or self._reentrant) and not x[key].requires_grad:
                x[key].requires_grad_()
        with self._start.back():
            return self._run(x, {key: shift} if isinstance(key, str) else {})

    @contextmanager
    def aside(self, index: int) -> Iterator[Pass]:
        """The first pass once more, at a leaf in place of input `index`. Inside, no parameter requires a gradient.

        For models with reentrant checkpoints, as `again` knows from then on.
        """
        assert self._start is not None
        self._reentrant = True
        x = [t.detach() for t in self._given]
        x[index].requires_grad_()
        with self._start.back(), _frozen(self.model):  # type: ignore[arg-type]
            yield self._run(x, {})

    def _run(self, x: list[Tensor], shifts: Mapping[str, Tensor]) -> Pass:
        seen: dict[Key, Tensor] = {i: x[i] for i in self.indices}
        with ExitStack() as hooks:
            for name in self.names:
                hooks.enter_context(_watch(self.model, name, seen, shifts.get(name)))
            output = _call(self.model, x, bool(self.names))
        for name in self.names:
            if name not in seen:
                raise ValueError(f"the submodule '{name}' did not run in the forward pass of {_kind(self.model)}")
        return Pass(output, seen)


@dataclass(frozen=True)
class State:
    """Random generators and buffers at one moment."""

    device: torch.device
    random: tuple[Tensor, ...]
    buffers: list[tuple[nn.Module, str, Tensor]]

    @classmethod
    def of(cls, model: Any, device: torch.device) -> State:
        """Of the generators of the CPU and the device, and of the model if it is a module."""
        random = [torch.get_rng_state()]
        if device.type == "cuda":
            random.append(torch.cuda.get_rng_state(device))
        modules = model.modules() if isinstance(model, nn.Module) else ()
        buffers = [
            (module, name, buffer.clone()) for module in modules for name, buffer in module.named_buffers(recurse=False)
        ]
        return cls(device, tuple(random), buffers)

    @contextmanager
    def back(self) -> Iterator[None]:
        """Inside, everything is as it was; after, as it is now. The pass inside changes copies of the buffers."""
        now = [getattr(module, name) for module, name, _ in self.buffers]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self.random[0])
            if devices:
                torch.cuda.set_rng_state(self.random[1], self.device)
            try:
                for module, name, buffer in self.buffers:
                    setattr(module, name, buffer.clone())
                yield
            finally:
                for (module, name, _), buffer in zip(self.buffers, now, strict=True):
                    setattr(module, name, buffer)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, parameters of the model require no gradient."""
    found = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in found:
            p.requires_grad_(False)
        yield
    finally:
        for p in found:
            p.requires_grad_(True)


def _tensors(x: Any) -> list[Tensor]:
    """The inputs in a list; a TypeError for what is none."""
    found = [x] if isinstance(x, Tensor) else list(x) if isinstance(x, (list, tuple)) else []
    if not found or not all(isinstance(t, Tensor) for t in found):
        got = f"a {type(x).__name__} of {type(found[0]).__name__}" if found else type(x).__name__
        raise TypeError(f"x must be a tensor, or a sequence of tensors for model(*x), got {got}")
    return found


def _differentiable(x: Sequence[Tensor], i: int) -> Tensor:
    """Input i as one that a gradient can be taken of: itself, or a new leaf."""
    if not 0 <= i < len(x):
        raise ValueError(f"Term: inputs={i}, but the model got {len(x)} input(s), numbered from 0")
    if not x[i].is_floating_point():
        raise TypeError(
            f"the data gradient needs a floating-point input, got {x[i].dtype}. For token indices take it at "
            "the embedding: Term(..., inputs='name of the embedding module')"
        )
    return x[i] if x[i].requires_grad else x[i].detach().requires_grad_()


@contextmanager
def _watch(model: Any, name: str, seen: dict[Key, Tensor], shift: Tensor | None) -> Iterator[None]:
    """Note the output of a submodule, and move it by `shift`."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{_kind(model)} has no submodule '{name}': {error}") from None

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise TypeError(f"the submodule '{name}' returns {type(output).__name__}, a data gradient needs a tensor")
        if name in seen:
            raise ValueError(f"the submodule '{name}' ran twice in one forward pass: which of its outputs is meant?")
        seen[name] = output if shift is None else output + shift
        return seen[name]

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _call(model: Any, x: Sequence[Tensor], watched: bool) -> Any:
    """model(*x). An accelerated network runs as one node without activations in it: watched, its own forward runs."""
    if watched and is_accelerated(model):
        warn_once(_warned, f"{_kind(model)}: a term names a submodule, whose output must be in autograd's graph")
        return type(model)._datagrad_forward(model, *x)
    return model(*x)


def _kind(model: Any) -> str:
    return type(model).__name__
