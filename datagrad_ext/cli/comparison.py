"""One training step on the accelerated and on the unmodified network, side by side: seconds and gradients."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext.cli.gradients import largest_error, parameter_gradients
from datagrad_ext.cli.objective import Objective
from datagrad_ext.cli.training import Step

WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step and its quartiles (lower, upper), over `repeats` alternating steps of each."""

    accelerated: float
    pytorch: float
    accelerated_quartiles: list[float]
    pytorch_quartiles: list[float]
    repeats: int

    @property
    def speedup(self) -> float:
        """How many times faster the accelerated step is."""
        return self.pytorch / self.accelerated


def time_step(
    model: nn.Module, objective: Objective, batch: tuple[Tensor, Tensor], learning_rate: float, repeats: int
) -> Timing:
    """Time the whole step (objective, backward, Adam) on two copies of `model`, alternating, warmed up."""
    steps = [
        Step(datagrad_ext.accelerate(copy.deepcopy(model)), objective, learning_rate),
        Step(copy.deepcopy(model), objective, learning_rate),
    ]
    seconds: list[list[float]] = [[], []]
    for repeat in range(-WARM_UP, repeats):
        for step, taken in zip(steps, seconds, strict=True):
            elapsed = _seconds(step, batch)
            if repeat >= 0:
                taken.append(elapsed)
    accelerated, pytorch = (statistics.quantiles(taken, n=4, method="inclusive") for taken in seconds)
    return Timing(accelerated[1], pytorch[1], accelerated[::2], pytorch[::2], repeats)


def _seconds(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    _synchronize(batch[0].device)
    start = time.perf_counter()
    step(*batch)
    _synchronize(batch[0].device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gradient_difference(
    model: nn.Module, objective: Objective, batch: tuple[Tensor, Tensor], dtype: torch.dtype
) -> float:
    """max over parameters of ‖a − b‖ / ‖b‖: a accelerated, b PyTorch, both in `dtype`, at these weights."""
    images, labels = batch[0].to(dtype), batch[1]
    pytorch = copy.deepcopy(model).to(dtype)
    accelerated = datagrad_ext.accelerate(copy.deepcopy(pytorch))
    for network in (accelerated, pytorch):
        network.zero_grad()
        objective(network, images, labels).backward()
    return largest_error(parameter_gradients(accelerated), parameter_gradients(pytorch))
