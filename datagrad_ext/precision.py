"""Autocast on the fast path: what torch.autocast would cast, a program casts in steps of its own.

A trace is made for one `Precision`, the autocast state of the call. Every layer says what autocast does to it
(`Layer.autocast_on`): "low" inputs and parameters to the low dtype, "float32" to float32, "widest" inputs to the widest
among them, "same" and "own" nothing. A layer that says nothing becomes opaque there, and its code runs under autocast.
A value that is changed in place keeps its dtype.

Parameters are cast before `Forward`, under ordinary autograd, so that their gradients have their own dtype.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .layers import Layer
from .layers.cast import Cast, cast
from .program import HostStep, Program, Ref, Step

Entry = tuple[int, torch.dtype | None]  # a parameter of the program: number of the slot, dtype to cast it to


@dataclass(frozen=True)
class Precision:
    """Autocast is on for a device, with a low dtype."""

    device: str
    dtype: torch.dtype

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> Precision | None:
        """The state for the device of the first tensor that requires a gradient."""
        device = next((t.device.type for t in tensors if t.requires_grad), None)
        if device is None or not torch.is_autocast_enabled(device):
            return None
        return Precision(device, torch.get_autocast_dtype(device))

    def context(self) -> AbstractContextManager[Any]:
        """Autocast itself, without its cache: a cast cached inside of `Forward` would have no graph."""
        return torch.autocast(self.device, self.dtype, cache_enabled=False)

    def target(self, layer: Layer) -> torch.dtype | None:
        """The dtype that inputs and parameters of the layer are cast to, whatever theirs is; None: they are not."""
        return {"low": self.dtype, "float32": torch.float32}.get(layer.autocast_on(self.device) or "")


def entering(entries: Sequence[Entry], slots: Sequence[Tensor]) -> list[Tensor]:
    """The parameters of the program, cast under ordinary autograd."""
    return [slots[i] if dtype is None else cast(slots[i], dtype) for i, dtype in entries]


def insert_casts(program: Program, precision: Precision, changes: dict[int, int]) -> tuple[Program, list[Entry]]:
    """The program with the casts of autocast as steps, and what its parameters are now.

    `changes`: results that the network's code wrote in place of another value -> that value.
    """
    casting = _Casting(program, precision, changes)
    for step in program.steps:
        casting.add(step)
    return casting.finish()


class _Casting:
    """The steps so far. `_known`: value -> its dtype, where the steps alone say so."""

    def __init__(self, program: Program, precision: Precision, changes: dict[int, int]) -> None:
        self._program, self._precision, self._changes = program, precision, changes
        self._steps: list[Step | HostStep] = []
        self._entries: list[Entry] = []
        self._numbers = itertools.count(max([program.n_inputs, *[step.output + 1 for step in program.steps]]))
        self._known: dict[int, torch.dtype] = {}
        self._casts: dict[tuple[int, torch.dtype], int] = {}
        self._host = {step.output for step in program.steps if isinstance(step, HostStep)}

    def add(self, step: Step | HostStep) -> None:
        if isinstance(step, Step):
            policy, dtype = step.layer.autocast_on(self._precision.device), self._precision.target(step.layer)
            step = replace(step, params=tuple(self._entry(i, dtype) for i in step.params))
            if dtype is not None:
                step = replace(step, inputs=tuple(self._cast(i, dtype) for i in step.inputs))
                self._known[step.output] = dtype
            elif not step.layer.opaque and policy != "own":
                step = self._follow(step)
            if step.output in self._changes and policy not in ("same", None):
                self._write_back(step, self._changes[step.output])
                return
        self._steps.append(step)

    def finish(self) -> tuple[Program, list[Entry]]:
        return replace(self._program.with_steps(self._steps), n_params=len(self._entries)), self._entries

    def _follow(self, step: Step) -> Step:
        """A step whose result has the dtype of its inputs; where they may differ, the widest."""
        values = [i for i in step.inputs if i not in self._host]
        dtypes = {self._known.get(i) for i in step.inputs}
        known = dtypes.pop() if len(dtypes) == 1 else None
        if known is not None:
            self._known[step.output] = known
        elif step.layer.autocast_on(self._precision.device) == "widest" and values:
            widest = next(self._numbers)
            self._steps.append(HostStep(functools.partial(_widest, step.inputs), step.inputs, widest, "widest dtype"))
            casts = {i: self._step(i, Ref(widest)) for i in values}
            step = replace(step, inputs=tuple(casts.get(i, i) for i in step.inputs))
        return step

    def _write_back(self, step: Step, target: int) -> None:
        """The step, and its result in the dtype of the value in whose place it is."""
        result = next(self._numbers)
        self._steps.append(replace(step, output=result))
        dtype = next(self._numbers)
        self._steps.append(HostStep(lambda values: values[target].dtype, (target,), dtype, "dtype"))
        self._steps.append(Step(Cast(), (result,), step.output, host=(Ref(dtype),), name="in place"))
        self._known.pop(step.output, None)
        if target in self._known:
            self._known[step.output] = self._known[target]

    def _entry(self, slot: int, dtype: torch.dtype | None) -> int:
        """The parameter's number in the new program."""
        if (slot, dtype) not in self._entries:
            self._entries.append((slot, dtype))
        return self._entries.index((slot, dtype))

    def _cast(self, value: int, dtype: torch.dtype) -> int:
        """The value's number in `dtype`."""
        if self._known.get(value) == dtype:
            return value
        if (value, dtype) not in self._casts:
            self._casts[value, dtype] = self._step(value, dtype)
        return self._casts[value, dtype]

    def _step(self, value: int, dtype: Any) -> int:
        output = next(self._numbers)
        self._steps.append(Step(Cast(), (value,), output, host=(dtype,), name="autocast"))
        return output


def _widest(places: Sequence[int], values: list[Any]) -> torch.dtype:
    """The dtype that torch promotes the values to; scalars count only among themselves."""
    tensors = [values[i] for i in places if isinstance(values[i], Tensor)]
    return functools.reduce(torch.promote_types, [t.dtype for t in tensors if t.dim()] or [t.dtype for t in tensors])
