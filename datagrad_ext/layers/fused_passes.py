"""Which plan of cuDNN runs a convolution together with its rectifier or gate, if any does.

`forward`, `vjp` and `jvp` are the ops of `ops/fused_convolution.py` with a plan, or None: then ATen's passes run. The
plan is chosen once for each key (sweep, device, dtype, sizes, layout, geometry, slope, PyTorch's flags), from the first
of cuDNN's heuristics, on operands made for it:

* it must be faster than ATen's passes, timed beside it;
* it must be right (`plan_check.py`): no further from float64 than ATen's own result allows, NaN and infinity where they
  belong. What is not is refused for good, and `backends()` names it. So a wrong plan costs time and never a gradient.

Nothing is chosen while a CUDA graph records the stream: a key that is new there takes ATen's passes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..choices import Choice, Choices, seconds
from ..ops import fused_convolution as ops
from ..ops import is_native
from .plan_check import Expected

PLANS = 3  # how many plans of each form are tried: each is compiled, and the heuristics put the best first
GAIN = 0.97  # a plan that takes more of ATen's time is not worth a choice
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

CHOICES = Choices("convolution with rectifier", Choice("any other", "ATen"))

_aten = torch.ops.aten
_datagrad = torch.ops.datagrad


@dataclass(frozen=True)
class Sweep:
    """One of the three: its op, its reference, and a function (operands, numbers, slope, sums) -> ATen's passes."""

    name: str
    op: Any
    reference: Callable[..., Tensor]
    passes: Callable[..., Callable[[], Any]]


@dataclass(frozen=True)
class Call:
    """A sweep at operands (a, weight, other); `numbers` are those that aten::convolution takes.

    `sums`: the gate's rectifier has a bias, whose gradient in sweep 4 is a sum over the result: that sum is timed, too.
    """

    sweep: Sweep
    operands: tuple[Tensor, Tensor, Tensor | None]
    numbers: tuple
    slope: float
    sums: bool = False

    @property
    def key(self) -> tuple:
        a, weight, other = self.operands
        shapes = tuple(a.shape), tuple(weight.shape), None if other is None else tuple(other.shape)
        layouts = _is_last(a), _is_last(weight), other is not None and _is_last(other)
        return self.sweep.name, a.device, a.dtype, shapes, layouts, self.numbers, self.slope, self.sums

    def __str__(self) -> str:
        a, weight, _ = self.operands
        sizes, kernel = ("×".join(map(str, t.shape)) for t in (a, weight))
        stride, padding, dilation, *_ = self.numbers
        numbers = f"stride {stride}, padding {padding}, dilation {dilation}, slope {self.slope:g}"
        layout = "channels_last" if _is_last(a) else "contiguous"
        flags = ", with a bias" if self.sums else ""
        dtype = str(a.dtype).removeprefix("torch.")
        return f"{self.sweep.name} {sizes} by {kernel}, {numbers}, {dtype} {layout}{flags} on {a.device}"

    def at(self, operands: Sequence[Any], plan: int) -> Tensor:
        """The op's result."""
        return self.sweep.op(*operands, *self.numbers[:3], self.slope, plan)

    def right(self, operands: Sequence[Any]) -> Tensor:
        """The reference's result, by ATen in the dtype of the operands."""
        return self.sweep.reference(*operands, *self.numbers[:3], self.slope, 0)


class Cudnn:
    """Where plans come from, and what they are measured with."""

    def covers(self, a: Tensor) -> bool:
        """Whether there may be plans for an operand: a plain tensor on a GPU."""
        if type(a) is not Tensor and type(a) is not Parameter:
            return False
        return a.is_cuda and a.dtype in DTYPES and a.numel() > 0 and _has_kernels() and torch.backends.cudnn.enabled

    def flags(self, dtype: torch.dtype) -> tuple[bool, bool]:
        """Whether TF32 may be used, and whether results must be reproducible: PyTorch's settings of this moment."""
        tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        return tf32, torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic

    def may_choose(self) -> bool:
        """Whether kernels can be timed now."""
        return not torch.cuda.is_current_stream_capturing()

    def open(self, call: Call, flags: tuple[bool, bool], select: bool) -> list[int]:
        """Numbers of plans; a RuntimeError where there is none."""
        numbers = call.numbers[:3]
        return list(
            _datagrad.fused_convolution_plans.default(
                call.sweep.name, *call.operands, *numbers, call.slope, *flags, select, PLANS
            )
        )

    def close(self, call: Call, plan: int) -> None:
        """Free a plan."""
        _datagrad.fused_convolution_close.default(call.operands[0], plan)

    seconds = staticmethod(seconds)


planner = Cudnn()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, numbers: tuple, slope: float) -> Tensor | None:
    """rectified(w * x + b)."""
    return _run(Call(FORWARD, (x, weight, bias), numbers, slope))


def vjp(g: Tensor, weight: Tensor, h: Tensor, numbers: tuple, slope: float, sums: bool = False) -> Tensor | None:
    """gated(wᵀ g, h); `sums`: the rectifier that made h has a bias."""
    return _run(Call(VJP, (g, weight, h), numbers, slope, sums))


def jvp(t: Tensor, weight: Tensor, y: Tensor, numbers: tuple, slope: float) -> Tensor | None:
    """gated(w * t, y)."""
    return _run(Call(JVP, (t, weight, y), numbers, slope))


def _run(call: Call) -> Tensor | None:
    a = call.operands[0]
    if not planner.covers(a):
        return None
    flags = planner.flags(a.dtype)
    plan = CHOICES.find((call.key, flags), lambda: choose(call, flags)).value
    return None if plan is None else call.at(call.operands, plan)


@functools.cache
def _has_kernels() -> bool:
    return is_native("fused_convolution_forward", "cuda")


@torch.no_grad()
def choose(call: Call, flags: tuple[bool, bool]) -> Choice | None:
    """The fastest right plan if it is faster than ATen's passes; None where none can be chosen now."""
    if not planner.may_choose():
        return None
    try:
        return _Search(call, flags).choice()
    except torch.OutOfMemoryError:
        return Choice(str(call), "ATen", note="no memory for a comparison")
    except Refused:
        return None


class Refused(Exception):
    """ATen does not take operands like these: its own passes are to say so."""


class _Search:
    """The search for the plan of one call; what it says about plans that are not taken goes into the choice's note."""

    def __init__(self, call: Call, flags: tuple[bool, bool]) -> None:
        self._call, self._flags = call, flags
        self._examples = examples(call)
        gate = None if call.sweep is FORWARD else 2
        try:
            self._expected = Expected.of(call.right, self._examples, gate)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Refused from error
        self._said: list[str] = []
        self._refused = False

    def choice(self) -> Choice:
        """Of plans by cuDNN's own modes; if one of them is refused and none taken, of those by selection."""
        call = self._call
        aten = self._seconds(call.sweep.passes(self._examples, call.numbers, call.slope, call.sums))
        for form in ("relu", "select"):
            found = self._fastest(form, aten) if form == "relu" or self._refused else None
            if found is not None:
                plan, seconds = found
                note = "; ".join([f"{seconds * 1e3:.3f} ms, ATen {aten * 1e3:.3f} ms", *self._said])
                return Choice(str(call), f"cuDNN ({form})", plan, note)
        return Choice(str(call), "ATen", note="; ".join([f"{aten * 1e3:.3f} ms", *self._said]))

    def _fastest(self, form: str, aten: float) -> tuple[int, float] | None:
        """The fastest plan that is right and faster than ATen, and its seconds; the others are closed."""
        try:
            plans = planner.open(self._call, self._flags, form == "select")
        except RuntimeError as error:
            self._said.append(f"{form}: {_first_line(error)}")
            return None
        timed = sorted((self._timed(plan, form), plan) for plan in plans)
        fast = [(plan, seconds) for seconds, plan in timed if seconds < GAIN * aten]
        kept = next((each for each in fast if self._is_right(each[0], form)), None)
        if kept is None:
            self._said.append(f"{form}: {timed[0][0] * 1e3:.3f} ms")
        for plan in plans:
            if kept is None or plan != kept[0]:
                planner.close(self._call, plan)
        return kept

    def _timed(self, plan: int, form: str) -> float:
        call = self._call

        def run() -> Any:
            found = call.at(self._examples, plan)
            return (found, found.sum((0, 2, 3))) if call.sums else found

        try:
            return self._seconds(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._said.append(f"{form}: {_first_line(error)}")
            return math.inf

    def _is_right(self, plan: int, form: str) -> bool:
        wrong = self._expected.refusal(lambda operands: self._call.at(operands, plan))
        if wrong is not None:
            self._refused = True
            self._said.append(f"{form}: a plan is refused, {wrong}")
        return wrong is None

    def _seconds(self, run: Callable[[], Any]) -> float:
        return planner.seconds(run, self._examples[0].device)


def examples(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Operands like the call's: normal numbers, of the weight so that results are near 1, and a rectifier's outputs."""
    a, weight, other = call.operands
    generator = torch.Generator(a.device).manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=generator)

    kernel = normal(weight).mul_(math.sqrt(1 / max(1, weight[0].numel())))
    if other is not None:
        other = normal(other)
        if call.sweep is not FORWARD:
            other = _datagrad.relu_forward.default(other, None, 1, call.slope)[0]
    return normal(a), kernel, other


def _is_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _convolved(operands: Sequence[Any], numbers: tuple) -> Tensor:
    return _aten.convolution.default(operands[0], operands[1], None, *numbers)


def _forward_passes(operands: Sequence[Any], numbers: tuple, slope: float, sums: bool) -> Callable[[], Any]:
    return lambda: _datagrad.relu_forward.default(_convolved(operands, numbers), operands[2], 1, slope)


def _vjp_passes(operands: Sequence[Any], numbers: tuple, slope: float, sums: bool) -> Callable[[], Any]:
    g, weight, h = operands
    bits, last = _datagrad.relu_forward.default(h, None, 1, slope)[1], not h.is_contiguous()

    def run() -> Any:
        bar = _aten.convolution_backward.default(g, h, weight, None, *numbers, [True, False, False])[0]
        if sums:
            return _datagrad.relu_reverse.default(bar, bits, slope, last, 1)
        return _datagrad.relu_gate.default(bar, bits, slope, last)

    return run


def _jvp_passes(operands: Sequence[Any], numbers: tuple, slope: float, sums: bool) -> Callable[[], Any]:
    y = operands[2]
    bits, last = _datagrad.relu_forward.default(y, None, 1, slope)[1], not y.is_contiguous()
    return lambda: _datagrad.relu_gate.default(_convolved(operands, numbers), bits, slope, last)


FORWARD = Sweep(
    "forward", _datagrad.fused_convolution_forward.default, ops.fused_convolution_forward, _forward_passes
)
VJP = Sweep("vjp", _datagrad.fused_convolution_vjp.default, ops.fused_convolution_vjp, _vjp_passes)
JVP = Sweep("jvp", _datagrad.fused_convolution_jvp.default, ops.fused_convolution_jvp, _jvp_passes)
