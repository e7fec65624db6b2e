"""The two networks of the demonstration: images (n, 1, 28, 28) to logits (n, 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Network:
    """The words of a title, how to build the network from the current random state, and how to train it.

    The penalty weights were chosen on validation images alone (`train --validate`, seeds 0 and 1):
    the lowest FGSM error, averaged over all ε, among those whose clean error is
    within half a point of the lowest.
    Tried: L1 0.03, 0.06, 0.1, 0.15, 0.2 (mlp) and 0.02, 0.05, 0.1, 0.15 (conv); squared L2 0.5, 1, 2, 4 and,
    for mlp, 8.
    """

    title: str
    build: Callable[[], nn.Module]
    learning_rate: float
    lambda_l1: float
    lambda_l2: float


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 784), nn.ReLU(),
        nn.Linear(784, 784), nn.ReLU(),
        nn.Linear(784, 10),
    )  # fmt: skip


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


NETWORKS = {
    "mlp": Network("784-784-784-10 ReLU network", _mlp, learning_rate=1e-3, lambda_l1=0.15, lambda_l2=4.0),
    "conv": Network("1-16-32 convolutional network", _conv, learning_rate=5e-3, lambda_l1=0.1, lambda_l2=2.0),
}
