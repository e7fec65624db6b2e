"""What the fast path does not cover, by ordinary autograd: gradients of parameter gradients, third order, batches of
cotangents.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .layers import Tensors, add_each, gradients
from .program import Flags, Program

_is_batched = torch._C._functorch.is_legacy_batchedtensor  # whether autograd.grad(is_grads_batched=True) made it
_transforms_active = torch._C._are_functorch_transforms_active
_any_autocast = torch._C._is_any_autocast_enabled
_AUTOCAST_DEVICES = ("cpu", "cuda")


class ReferencePathWarning(UserWarning):
    """The result is right but slow: ordinary autograd computed it. The message names the reason."""


def warn_once(warned: set[str], reason: str) -> None:
    """One `ReferencePathWarning` a network and reason."""
    if reason not in warned:
        warned.add(reason)
        warnings.warn(f"datagrad_ext: reference path (right, but slow): {reason}", ReferencePathWarning, stacklevel=3)


@contextmanager
def _autocast_off() -> Iterator[None]:
    """Sweeps run in the dtypes that a program's own casts give; casts that autocast cached here would have no graph."""
    devices = [device for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in devices:
            torch.set_autocast_enabled(device, True)


def keep_out_of_compiled_code(function: Callable[..., Any]) -> None:
    """Let torch.compile neither trace the function nor what it calls: a compiled step may run a backward."""
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
    frames.set_code_exec_strategy(function.__code__, skip)


def own_dtypes(sweeps: Callable[..., Any]) -> Callable[..., Any]:
    """The function with autocast off."""

    @functools.wraps(sweeps)
    def run(ctx: Any, *arguments: Any) -> Any:
        if not _any_autocast():
            return sweeps(ctx, *arguments)
        with _autocast_off():
            return sweeps(ctx, *arguments)

    return run


def needs_reference(warned: set[str], cotangents: Sequence[Any], differentiable: bool) -> bool:
    """Whether a backward is beyond the fast path; warns once. `differentiable`: its result must have a graph."""
    if differentiable:
        reason = (
            "create_graph=True in a backward that reaches parameters or a data gradient "
            "(gradients of parameter gradients, third order)"
        )
    elif _transforms_active() or True in [g is not None and _is_batched(g) for g in cotangents]:
        reason = "batched cotangents (is_grads_batched, or a torch.func transform over the backward)"
    else:
        return False
    warn_once(warned, reason)
    return True


class Reference:
    """What is beyond the fast path, computed by ordinary autograd, and the reasons already warned about."""

    __slots__ = ("program", "warned")

    def __init__(self, program: Program, warned: set[str]) -> None:
        self.program, self.warned = program, warned

    def needed(self, cotangents: Sequence[Any], differentiable: bool) -> bool:
        """`needs_reference` of this network."""
        return needs_reference(self.warned, cotangents, differentiable)

    @own_dtypes
    def reverse(
        self,
        inputs: Sequence[Any],
        params: Sequence[Any],
        saved: list[Any],
        parts: Sequence[Tensors],
        wanted: Flags,
        gs: Sequence[Any],
    ) -> list[Any]:
        """Sweep 4: differentiable gradients of inputs and parameters, plus the `parts` that sweep 3 left."""
        with torch.enable_grad():
            x, theta = aliases(inputs), aliases(params)
            outputs = self.program.reference(saved, x, theta)
            found = gradients(zip(outputs, gs, strict=True), [*x, *theta], create_graph=True)
        for bars in parts:
            found = add_each(found, bars)
        return [bar if want else None for bar, want in zip(found, wanted, strict=True)]

    @own_dtypes
    def tangent(
        self,
        inputs: Sequence[Any],
        params: Sequence[Any],
        saved: list[Any],
        wanted: Flags,
        gs: Sequence[Any],
        seeds: Sequence[Any],
    ) -> tuple[Tensors, Tensors]:
        """∂⟨v, J⟩ with respect to (inputs and parameters), and with respect to g, differentiable."""
        with torch.enable_grad():
            x, theta, g = aliases(inputs), aliases(params), aliases(gs)
            outputs = self.program.reference(saved, x, theta)
            asked = [t if want else None for t, want in zip(x, wanted, strict=True)]
            J = gradients(zip(outputs, g, strict=True), asked, create_graph=True)
            found = gradients(zip(J, seeds, strict=True), [*x, *theta, *g], create_graph=True)
        split = len(x) + len(theta)
        return found[:split], found[split:]


def aliases(values: Sequence[Any]) -> list[Any]:
    """New names for the same tensors, so that a gradient stops here and not at what they were computed from."""
    return [v.view_as(v) if isinstance(v, Tensor) else v for v in values]
