"""One training step on the accelerated and on the unmodified network, side by side: seconds and gradients."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
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
    networks = _both(model, datagrad_ext.accelerate)
    steps = [functools.partial(Step(network, objective, learning_rate), *batch) for network in networks]
    seconds = _alternating(steps, batch[0].device, repeats)
    accelerated, pytorch = (statistics.quantiles(taken, n=4, method="inclusive") for taken in seconds)
    return Timing(accelerated[1], pytorch[1], accelerated[::2], pytorch[::2], repeats)


def gain(
    model: nn.Module,
    step: Callable[[nn.Module], object],
    repeats: int,
    accelerate: Callable[[nn.Module], nn.Module] = datagrad_ext.accelerate,
) -> float:
    """How many times as fast `step(network)` is on an accelerated copy of `model` as on a plain one: by medians."""
    networks = _both(model, accelerate)
    device = next(model.parameters()).device
    seconds = _alternating([functools.partial(step, network) for network in networks], device, repeats)
    accelerated, pytorch = map(statistics.median, seconds)
    return pytorch / accelerated


def _both(model: nn.Module, accelerate: Callable[[nn.Module], nn.Module]) -> list[nn.Module]:
    """Copies of the model: accelerated, and as it is."""
    return [accelerate(copy.deepcopy(model)), copy.deepcopy(model)]


def _alternating(steps: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[list[float]]:
    """Seconds of each step, taken in turns after a warm-up."""
    seconds: list[list[float]] = [[] for _ in steps]
    for repeat in range(-WARM_UP, repeats):
        for step, taken in zip(steps, seconds, strict=True):
            elapsed = _seconds(step, device)
            if repeat >= 0:
                taken.append(elapsed)
    return seconds


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
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
