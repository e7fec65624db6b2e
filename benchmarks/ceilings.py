"""What the device can do at best, measured in the run, and the time that a case needs at least.

The limit of a case is the larger of

    products    units x FLOPs of the products of one forward, at the rate of a large matrix product
    memory      bytes that the sweeps move at least, at the rate of a large copy

Both come from the program that datagrad_ext runs. Units (DESIGN.md, section 1): 4 where only a penalty is there and no
layer is curved, else 6, and 5 for the first layer. In bytes, each sweep reads the input and writes the output of
each row of the program once, and what sweep 1 saved is read once more. Rows that a product could absorb
(activations, sums, changes of layout) count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import timing
from .cases import Case, settings_of

if TYPE_CHECKING:
    from datagrad_ext.program import Row

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 2**27, "cuda": 2**31}
REPEATS = 5


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of a matrix product by precision, bytes/s of a copy (read and written bytes together)."""

    products: dict[str, float]
    memory: float


@dataclass(frozen=True)
class Work:
    """What a penalty step must do: FLOPs in products and bytes moved."""

    flops: float
    bytes: float

    def limit(self, precision: str, ceilings: Ceilings) -> tuple[float, str]:
        """Milliseconds at least, and what sets them: "products" or "memory"."""
        times = {
            "products": 1000 * self.flops / ceilings.products[precision],
            "memory": 1000 * self.bytes / ceilings.memory,
        }
        binding = max(times, key=lambda name: times[name])
        return times[binding], binding


def measure(device: str, cases: Iterable[Case]) -> Ceilings:
    """The fastest of a few repeats, for the precisions of the cases."""
    rates = {}
    for precision, dtype in {case.precision: case.dtype for case in cases}.items():
        with settings_of(precision):
            rates[precision] = 2 * GEMM_SIZE[device] ** 3 / _gemm_seconds(device, dtype)
    source = torch.empty(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceilings(rates, 2 * COPY_BYTES[device] / _fastest(lambda: target.copy_(source), device))


def _gemm_seconds(device: str, dtype: torch.dtype) -> float:
    """a bᵀ with both operands K-major, the layout in which TF32 products are fastest."""
    a, b = torch.randn(2, GEMM_SIZE[device], GEMM_SIZE[device], device=device).to(dtype)
    return _fastest(lambda: a @ b.t(), device)


def _fastest(step: Callable[[], object], device: str) -> float:
    return min(timing.alternate({"step": step}, device, REPEATS)["step"].samples_ms) / 1000


def work(case: Case) -> Work | None:
    """Of the case's program; None where datagrad_ext makes no single program of the model."""
    import datagrad_ext
    from datagrad_ext.accelerate import network_of
    from datagrad_ext.trace import Untraceable

    model, x, _ = case.build()
    flops = _product_flops(model, x)
    model = datagrad_ext.accelerate(model)
    model(x.requires_grad_())
    found = network_of(model).latest
    if found is None or isinstance(found, Untraceable):
        return None
    if not found.program.rows:  # the network ran as one step; its layers are the rows
        with torch.no_grad():
            found.program.forward((x,), found.program.thetas(found.parameters(found.slots())))
    rows = found.program.rows
    penalty_alone = case.objective.penalty_only and not any(row.step.layer.curved for row in rows)
    units = [4] * len(flops) if penalty_alone else [5, *[6] * (len(flops) - 1)]
    ends = sum(prod(row.input_shape or ()) + prod(row.output_shape or ()) for row in rows if _moves(row))
    moved = (3 if penalty_alone else 4) * x.element_size() * ends + sum(row.saved_bytes for row in rows)
    return Work(sum(u * f for u, f in zip(units, flops, strict=True)), moved)


def _product_flops(model: nn.Module, x: Tensor) -> list[int]:
    """FLOPs of one forward of each linear layer and convolution, in order of execution."""
    flops: list[int] = []

    def count(module: nn.Module, _: object, y: Tensor) -> None:
        flops.append(2 * y.numel() * module.weight[0].numel())  # type: ignore[index]

    kinds = (nn.Linear, nn.Conv2d)
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return flops


def _moves(row: Row) -> bool:
    """Whether a row of a program must move its values: it changes the shape, or it is a product or a norm."""
    layer = row.step.layer
    return row.input_shape != row.output_shape or (layer.paired and "smooth_forward" not in layer.ops)
