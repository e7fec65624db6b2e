"""Times of contestants that alternate in one run.

Each repeat times one block of calls of every contestant, in a fresh random order, so that the machine's drift meets all
alike. A call that nobody times comes before each block: in training a step follows one of its own kind, which has
filled the caches, and not another contestant's. A block is as many calls as fill BLOCK_SECONDS.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy
import torch

BLOCK_SECONDS = 5e-3
WARM_UP_CALLS = 3
WARM_UP_SECONDS = 0.05

Block = Callable[[int], float]


@dataclass(frozen=True)
class Times:
    """Milliseconds a call: percentiles over the repeats, and the repeats themselves."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    calls_per_repeat: int
    samples_ms: list[float]


def summary(samples_ms: list[float], calls: int) -> Times:
    """Median, 20th and 80th percentile (linear interpolation) of the samples."""
    p20, median, p80 = numpy.percentile(samples_ms, [20, 50, 80]).tolist()
    return Times(median, p20, p80, calls, [round(sample, 6) for sample in samples_ms])


def cpu_block(step: Callable[[], object]) -> Block:
    """Seconds of `calls` calls by the wall clock."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            step()
        return time.perf_counter() - start

    return seconds


def cuda_block(step: Callable[[], object]) -> Block:
    """Seconds of `calls` calls between two CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(calls: int) -> float:
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return seconds


def _warm_up(block: Block) -> int:
    """Run the block warm; the number of calls that fills BLOCK_SECONDS."""
    spent = block(WARM_UP_CALLS)
    while spent < WARM_UP_SECONDS:
        spent += block(WARM_UP_CALLS)
    return max(1, ceil(BLOCK_SECONDS / (block(WARM_UP_CALLS) / WARM_UP_CALLS)))


def alternate(steps: Mapping[str, Callable[[], object]], device: str, repeats: int) -> dict[str, Times]:
    """Times of every step, measured in turns."""
    return in_turns({name: block_of(step, device) for name, step in steps.items()}, repeats)


def block_of(step: Callable[[], object], device: str) -> Block:
    """How calls of a step are timed on a device."""
    return cuda_block(step) if device == "cuda" else cpu_block(step)


def in_turns(blocks: Mapping[str, Block], repeats: int) -> dict[str, Times]:
    """Times of every block, measured in turns."""
    calls = {name: _warm_up(block) for name, block in blocks.items()}
    samples: dict[str, list[float]] = {name: [] for name in blocks}
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name in order.sample(list(blocks), len(blocks)):
                blocks[name](1)
                samples[name].append(1000 * blocks[name](calls[name]) / calls[name])
    finally:
        if collecting:
            gc.enable()
    return {name: summary(values, calls[name]) for name, values in samples.items()}
