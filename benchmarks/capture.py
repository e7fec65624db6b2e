"""A CUDA graph of a whole step: captured once, replayed by each call."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]


def captured(step: Step) -> Step:
    """`step` as a graph replay: reads the tensors that `step` closes over, returns the captured results."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return gradients

    return replay
