"""Where the time of a step goes: python -m benchmarks.kernels --device cuda [--case NAME ...] [--contestant NAME ...]

A table of the kernels (on a CPU: of the operations) of each contestant on each case, by PyTorch's profiler: calls,
time, share. What to look at in ncu is on top of it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from . import cases, contestants, tables

STEPS, WARM_UP_CALLS, SHOWN = 5, 3, 15


@dataclass(frozen=True)
class Kernel:
    """A kernel or operation: calls and microseconds of one step."""

    name: str
    calls: float
    microseconds: float


def kernels(step: Callable[[], object], device: str) -> list[Kernel]:
    """What a step runs, the longest first."""
    for _ in range(WARM_UP_CALLS):
        step()
    on_cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as record:
        for _ in range(STEPS):
            step()
        if on_cuda:
            torch.cuda.synchronize()
    found = []
    for event in record.key_averages():
        spent = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if spent > 0:
            found.append(Kernel(event.key, event.count / STEPS, spent / STEPS))
    return sorted(found, key=lambda kernel: -kernel.microseconds)


def table(found: Sequence[Kernel]) -> str:
    """The longest kernels, and what all of them sum to."""
    total = sum(kernel.microseconds for kernel in found)
    everything = Kernel("all", sum(kernel.calls for kernel in found), total)
    rows = [
        [each.name[:90], f"{each.calls:g}", tables.number(each.microseconds), f"{each.microseconds / total:.0%}"]
        for each in [*found[:SHOWN], everything]
    ]
    return tables.table(["kernel", "calls", "µs", "share"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", nargs="+", metavar="NAME", help="only these cases")
    parser.add_argument("--contestant", nargs="+", metavar="NAME", default=["ours"], help="default: ours")
    arguments = parser.parse_args(argv)
    try:
        chosen = cases.find(arguments.device, arguments.case)
        entrants = contestants.find(arguments.contestant)
    except ValueError as error:
        parser.error(str(error))
    for case in chosen:
        for entrant in entrants:
            if entrant.enters(case):
                with case.settings():
                    print(f"**{case.name}, {entrant.title}**\n")
                    print(table(kernels(entrant.make(case).step, case.device)) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
