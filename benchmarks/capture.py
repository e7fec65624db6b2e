"""A CUDA graph of a whole step: captured once, replayed by each call."""

from collections.abc import Callable

import torch
from torch import Tensor

from .peaks import cuda_peak

Step = Callable[[], tuple[Tensor, ...]]
WARM_UP = 3  # calls before a graph is recorded


def captured(step: Step) -> tuple[Step, int]:
    """`step` as a graph replay, and the bytes that recording it took: a replay allocates nothing.

    The replay reads the tensors that `step` closes over and returns the captured results.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph, gradients = torch.cuda.CUDAGraph(), list[Tensor]()

    def record() -> None:
        with torch.cuda.graph(graph):
            gradients[:] = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return tuple(gradients)

    peak = cuda_peak(record)
    return replay, peak
