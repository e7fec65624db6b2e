"""Peak memory of one call: bytes that PyTorch's allocator holds beyond what was there before.

CUDA: torch.cuda.max_memory_allocated. CPU: the running maximum over the profiler's allocation events, which
is the same quantity. The step's own gradients count; buffers inside vendor libraries do not.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile


def cpu_peak(step: Callable[[], object]) -> int:
    """Peak bytes allocated on the CPU during one call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = step()
    del result
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def cuda_peak(step: Callable[[], object]) -> int:
    """Peak bytes allocated on the GPU during one call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
