"""Which products of a chain a GPU does in another way than one by one: `marks` for the words of `ops/chain.py`.

The ways are rows of `marked.py`. One is chosen once for each row, sizes, dtype, device and activation, on operands made
for it, and taken if it is

* right: as near to the passes one by one as their dtype rounds, NaN and infinity where they have them. A library's relu
  that loses NaN is refused;
* faster than these passes, and than any other way, timed beside it.

`backends()` lists the choices. So a wrong epilogue costs time and never a gradient. Nothing is chosen while a CUDA
graph records the stream, nor where PyTorch is asked for deterministic algorithms: times may choose otherwise in the
next run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..choices import Choice, Choices, seconds
from ..ops import is_native
from ..ops.chain import Link
from .marked import HALF, Case, Wanted

CHOICES = Choices("products of chains", Choice("any other", "one by one", ""))
CHOICES_OF_A_CHAIN = 256  # numbers of rows that a chain remembers
LEAST = 1 << 28  # multiplications: a smaller product has nothing to gain that a choice costs
GAIN = 0.97
NARROW = 256  # chains up to this width have kernels of their own in 16 bits
_PATHS = {"m": "in one, then bits", "mx": "in one, then bits"}  # else "in one"
_ops = torch.ops.datagrad


class Gpu:
    """What choices are measured with."""

    def covers(self, x: Tensor) -> bool:
        """Whether there may be another way for a chain at x."""
        return x.is_cuda and _has_kernels() and not torch.are_deterministic_algorithms_enabled()

    def tf32(self) -> bool:
        """Whether products of float32 may use it: PyTorch's setting of this moment."""
        return torch.backends.cuda.matmul.fp32_precision == "tf32"

    def may_choose(self) -> bool:
        """Whether kernels can be timed now."""
        return not torch.cuda.is_current_stream_capturing()

    seconds = staticmethod(seconds)


gpu = Gpu()


def marks(links: Sequence[Link], weights: Sequence[Tensor], x: Tensor) -> tuple[str, ...] | None:
    """The marks of each link at rows x; None while they cannot be chosen. `weights`: of the linear links, in order."""
    return _Marks(links, weights, x).found() if gpu.may_choose() else None


class _Marks:
    """What to ask about a chain, in the order in which one answer depends on another."""

    def __init__(self, links: Sequence[Link], weights: Sequence[Tensor], x: Tensor) -> None:
        self._links, self._marks, sizes = links, ["" for _ in links], iter(weights)
        self._sides = []  # fan_in and fan_out of each link
        width = x.shape[1]
        for link in links:
            before, width = width, next(sizes).shape[0] if link.name == "linear" else width
            self._sides.append((before, width))
        tf32 = x.dtype == torch.float32 and gpu.tf32()
        self._wanted = partial(Wanted, rows=x.shape[0], dtype=x.dtype, device=x.device, tf32=tf32)
        self._tf32, self._float32 = tf32, x.dtype == torch.float32
        self._wide = x.dtype in HALF and max(max(sides) for sides in self._sides) > NARROW
        self._products = [i for i, link in enumerate(links) if link.name == "linear" and self._is_large(x, i)]

    def found(self) -> tuple[str, ...]:
        for i in self._products:
            self._ask_product(i)
        for i, link in enumerate(self._links):
            if link.name != "linear":
                self._ask_pass(i)
        for i in self._products:
            self._ask_reverse(i)
        return tuple(self._marks)

    def _ask_product(self, i: int) -> None:
        fan_in, fan_out = self._sides[i]
        if self._is_relu(i + 1) and fan_in % 8 == 0 and fan_out % 8 == 0:
            moved = self._links[i].bias is None and self._links[i + 1].bias is not None
            if moved and (self._wide or self._float32):
                self._ask(i, i + 1, "forward")
            if self._wide and fan_out % 128 == 0:
                self._ask(i, i + 1, "jvp")
        if self._wide and self._is_relu(i - 1) and fan_in % 128 == 0 and fan_out % 8 == 0:
            self._ask(i, i - 1, "vjp")
        if self._tf32:
            self._ask(i, i, "weight")

    def _ask_pass(self, i: int) -> None:
        """The gradient of a weight behind a pass of sweep 3, or below one of sweep 4, may read its transposed copy."""
        link, (width, _) = self._links[i], self._sides[i]
        pass_of = dict(kind=link.name, constants=link.constants, bias=link.bias is not None)
        if width % 8 == 0 and i + 1 < len(self._links) and "w" in self._marks[i + 1]:
            self._ask(i, i, "gate", **pass_of)
        if width % 8 == 0 and "w" in self._marks[i - 1]:
            self._ask(i, i, "pass", **pass_of)

    def _ask_reverse(self, i: int) -> None:
        """An epilogue takes the place of the pass below, and of its transposed copy."""
        fan_in, fan_out = self._sides[i]
        covered = self._is_relu(i - 1) and self._links[i - 1].bias is not None and (self._wide or self._float32)
        if covered and fan_in % 128 == 0 and fan_out % 8 == 0:
            before = self._marks[i - 1]
            if self._ask(i, i - 1, "reverse", copied="r" in before):
                self._marks[i - 1] = self._marks[i - 1].replace("r", "")

    def _ask(self, i: int, place: int, row: str, **more: Any) -> bool:
        """Give `place` the marks of what the row takes at the sizes of link i; whether it takes any."""
        fan_in, fan_out = self._sides[i]
        wanted = self._wanted(row=row, fan_in=fan_in, fan_out=fan_out, **more)
        taken = CHOICES.find(wanted, partial(choose, wanted)).value
        self._marks[place] += taken
        return bool(taken)

    def _is_large(self, x: Tensor, i: int) -> bool:
        return x.shape[0] * math.prod(self._sides[i]) >= LEAST

    def _is_relu(self, i: int) -> bool:
        return 0 <= i < len(self._links) and self._links[i].name == "relu" and self._links[i].constants == (0.0,)


@torch.no_grad()
def choose(wanted: Wanted) -> Choice:
    """The fastest way that is right, by its marks."""
    try:
        case = wanted.case()
        times, notes = _measured(wanted, case)
        plain = gpu.seconds(partial(case.one_by_one, *case.operands), wanted.device) if times else 0.0
    except torch.OutOfMemoryError:
        return Choice(str(wanted), "one by one", "", "no memory for a comparison")
    if times:
        notes.append(f"one by one {plain * 1e3:.3f} ms")
    best = min(times, key=times.__getitem__, default="")
    taken = best if times and times[best] < GAIN * plain else ""
    return Choice(str(wanted), _PATHS.get(taken, "in one") if taken else "one by one", taken, ", ".join(notes))


def _measured(wanted: Wanted, case: Case) -> tuple[dict[str, float], list[str]]:
    """Seconds of each way that is right, and what to say of each."""
    times: dict[str, float] = {}
    notes = []
    for found, run in case.ways.items():
        try:
            wrong = refusal(run, case, wanted.tf32)
            if wrong is None:
                times[found] = gpu.seconds(partial(run, *case.operands), wanted.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            wrong = str(error).strip().partition("\n")[0]
        name = _PATHS.get(found, "in one")
        notes.append(f"{name} {times[found] * 1e3:.3f} ms" if wrong is None else f"{name} refused: {wrong}")
    return times, notes


def refusal(run: Callable[..., Any], case: Case, tf32: bool) -> str | None:
    """Why a way's results are wrong, None if they are right: at the operands, and with NaN and infinity in one."""
    unusual = case.operands[0].clone()
    unusual[0, 0], unusual[-1, -1] = math.nan, math.inf
    for a in (case.operands[0], unusual):
        found, expected = (_results(call(a, *case.operands[1:])) for call in (run, case.one_by_one))
        for ours, truth in zip(found, expected, strict=True):
            if truth.dtype == torch.uint8:
                wrong = None if _agree(found[0], ours) else "the bits are not those of its result"
            else:
                wrong = _difference(ours, truth, tf32)
            if wrong is not None:
                return wrong
    return None


@cache
def _has_kernels() -> bool:
    return is_native("product_relu", "cuda")


def _results(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _difference(found: Tensor, expected: Tensor, tf32: bool) -> str | None:
    """By norm and by the largest element, where both are finite."""
    if found.shape != expected.shape:
        return f"it has shape {list(found.shape)} and not {list(expected.shape)}"
    for name, unusual in (("NaN", Tensor.isnan), ("infinity", Tensor.isinf)):
        if not torch.equal(unusual(found), unusual(expected)):
            return f"{name} is not where it belongs"
    if expected.numel() == 0:
        return None
    finite = expected.isfinite()
    truth, gap = expected.where(finite, 0).float(), (found.float() - expected.float()).where(finite, 0)
    # Products of float32 differ by the order of long sums, which tf32 hides.
    rounding = torch.finfo(found.dtype).eps if found.dtype in HALF else 2.0**-10 if tf32 else 2.0**-18
    if not bool(gap.norm() <= 4 * rounding * truth.norm()) or not bool(
        gap.abs().max() <= 16 * rounding * truth.abs().max()
    ):
        return "it differs from the passes one by one"
    return None


def _agree(y: Tensor, bits: Tensor) -> bool:
    """Whether the bits say where y is not 0; NaN is not."""
    return torch.equal(_ops.relu_gate.default(torch.ones_like(y), bits, 0.0, False), (~(y <= 0)).to(y.dtype))
