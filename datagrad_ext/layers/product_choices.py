"""Which products of a chain a GPU does in another way than one by one: `marks` for the words of `ops/chain.py`.

    f  relu     forward: product, bias, relu and bits in one
    b  relu     data gradient: product and gate in one
    t  relu     tangent: product and gate in one
    w  linear   gradient of the weight from transposed copies

A mark is chosen once for each product (kind, sizes, dtype, device), on operands made for it, and kept if it is

* right: as near to the passes one by one as their dtype rounds, NaN and infinity where they have them. A library's relu
  that loses NaN is refused;
* faster than these passes, timed beside it.

`backends()` lists the choices. So a wrong epilogue costs time and never a gradient. Nothing is chosen while a CUDA
graph records the stream, nor where PyTorch is asked for deterministic algorithms: times may choose otherwise in the
next run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..choices import Choice, Choices, seconds
from ..ops import is_native, product
from ..ops.chain import Link

CHOICES = Choices("products of chains", Choice("any other", "one by one"))
CHOICES_OF_A_CHAIN = 256  # numbers of rows that a chain remembers
LEAST = 1 << 28  # multiplications: a smaller product has nothing to gain that a choice costs
GAIN = 0.97
NARROW = 256  # chains up to this width have kernels of their own in 16 bits
_HALF = (torch.float16, torch.bfloat16)
_ops = torch.ops.datagrad


@dataclass(frozen=True)
class Product:
    """A product that may be marked: on the two sides of its weight flow (rows, fan_in) and (rows, fan_out)."""

    mark: str
    rows: int
    fan_in: int
    fan_out: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        name = {"f": "forward with relu", "b": "vjp with gate", "t": "jvp with gate", "w": "weight gradient"}[self.mark]
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{name}, {self.rows} rows, {self.fan_in} to {self.fan_out}, {dtype} on {self.device}"

    def examples(self) -> tuple[Any, ...]:
        """Operands: normal numbers, of the weight so that results are near 1."""
        generator = torch.Generator(self.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(generator=generator)

        x, weight = normal(self.rows, self.fan_in), normal(self.fan_out, self.fan_in).mul_(1 / math.sqrt(self.fan_in))
        if self.mark == "f":
            return x, weight, normal(self.fan_out)
        if self.mark == "t":
            return x, weight, _bits(normal(self.rows, self.fan_out)), True
        g = normal(self.rows, self.fan_out)
        return (g, weight, _bits(x), False) if self.mark == "b" else (g, x)

    @property
    def calls(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """In one, and one by one."""
        name = {"f": "product_relu", "w": "product_turned"}.get(self.mark, "product_gate")
        return getattr(_ops, name).default, getattr(product, name)


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
    found, sizes = ["" for _ in links], iter(weights)
    shapes = [tuple(next(sizes).shape) if link.name == "linear" else (0, 0) for link in links]
    wide = x.dtype in _HALF and max(map(max, shapes)) > NARROW
    for i, (fan_out, fan_in) in enumerate(shapes):
        asked = []
        if links[i].name != "linear" or x.shape[0] * fan_out * fan_in < LEAST:
            continue
        if wide and _is_relu(links, i + 1) and fan_out % 128 == 0 and fan_in % 8 == 0:
            asked += [(i + 1, "t")]
            if links[i].bias is None and links[i + 1].bias is not None:
                asked += [(i + 1, "f")]
        if wide and _is_relu(links, i - 1) and fan_in % 128 == 0 and fan_out % 8 == 0:
            asked += [(i - 1, "b")]
        if x.dtype == torch.float32 and gpu.tf32():
            asked += [(i, "w")]
        for place, mark in asked:
            if not gpu.may_choose():
                return None
            wanted = Product(mark, x.shape[0], fan_in, fan_out, x.dtype, x.device)
            if CHOICES.find(wanted, partial(choose, wanted)).value:
                found[place] += mark
    return tuple(found)


@torch.no_grad()
def choose(wanted: Product) -> Choice:
    """Whether the mark is right and faster."""
    in_one, one_by_one = wanted.calls
    try:
        operands = wanted.examples()
        wrong = refusal(in_one, one_by_one, operands)
        if wrong is not None:
            return Choice(str(wanted), "one by one", note=wrong)
        fused, plain = (gpu.seconds(partial(run, *operands), wanted.device) for run in (in_one, one_by_one))
    except torch.OutOfMemoryError:
        return Choice(str(wanted), "one by one", note="no memory for a comparison")
    except RuntimeError as error:
        return Choice(str(wanted), "one by one", note=str(error).strip().partition("\n")[0])
    note = f"{fused * 1e3:.3f} ms, one by one {plain * 1e3:.3f} ms"
    faster = fused < GAIN * plain
    return Choice(str(wanted), "in one" if faster else "one by one", faster, note)


def refusal(in_one: Callable[..., Any], one_by_one: Callable[..., Any], operands: Sequence[Any]) -> str | None:
    """Why a result is wrong, None if it is right: at the operands, and with NaN and infinity in the first of them."""
    unusual = operands[0].clone()
    unusual[0, 0], unusual[-1, -1] = math.nan, math.inf
    for a in (operands[0], unusual):
        found, expected = (_pair(run(a, *operands[1:])) for run in (in_one, one_by_one))
        wrong = _difference(found[0], expected[0])
        if wrong is None and found[1] is not None and not _agree(found[0], found[1]):
            wrong = "the bits are not those of its result"
        if wrong is not None:
            return f"refused, {wrong}"
    return None


@cache
def _has_kernels() -> bool:
    return is_native("product_relu", "cuda")


def _pair(result: Any) -> tuple[Tensor, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _difference(found: Tensor, expected: Tensor) -> str | None:
    """By norm and by the largest element, where both are finite."""
    for name, unusual in (("NaN", Tensor.isnan), ("infinity", Tensor.isinf)):
        if not torch.equal(unusual(found), unusual(expected)):
            return f"{name} is not where it belongs"
    finite = expected.isfinite()
    truth, gap = expected.where(finite, 0).float(), (found.float() - expected.float()).where(finite, 0)
    allowed = 4 * (torch.finfo(found.dtype).eps if found.dtype in _HALF else 2.0**-10)
    if not bool(gap.norm() <= allowed * truth.norm()) or not bool(gap.abs().max() <= 4 * allowed * truth.abs().max()):
        return "it differs from the passes one by one"
    return None


def _agree(y: Tensor, bits: Tensor) -> bool:
    """Whether the bits say where y is not 0; NaN is not."""
    return torch.equal(_ops.relu_gate.default(torch.ones_like(y), bits, 0.0, False), (~(y <= 0)).to(y.dtype))


def _bits(z: Tensor) -> Tensor:
    return _ops.relu_forward.default(z, None, -1, 0.0)[1]


def _is_relu(links: Sequence[Link], i: int) -> bool:
    return 0 <= i < len(links) and links[i].name == "relu" and links[i].constants == (0.0,)
