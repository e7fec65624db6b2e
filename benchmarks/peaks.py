"""Peak memory of one call: bytes that PyTorch's allocator holds beyond what was there before.

CUDA: torch.cuda.max_memory_allocated. CPU: the running maximum over the profiler's allocation events, which
is the same quantity. The step's own gradients count; buffers inside vendor libraries do not. `traced_peak` needs no
device: it follows the storages of what operations return, which leaves out what a kernel allocates for itself.
"""

import gc
import weakref
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


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


def traced_peak(step: Callable[[], object]) -> int:
    """Peak bytes of the storages that one call makes, on any device, the meta device among them."""
    gc.collect()
    with _Storages() as storages:
        step()
    return storages.most


class _Storages(TorchDispatchMode):
    """Adds up the storages that operations return, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._alive:
                self._alive.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._end, key, size)
        return result

    def _end(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
