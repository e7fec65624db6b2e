"""Training loop of the demonstration: Adam, its learning rate falling to zero along a cosine.

The batches depend on the seed alone, so every objective sees the same ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from datagrad_ext.cli.data import Digits
from datagrad_ext.cli.errors import UserError
from datagrad_ext.cli.objective import Objective


@dataclass(frozen=True)
class Budget:
    """What all trainings of one run share."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class History:
    """Mean objective of each epoch and the seconds the whole training took."""

    objective: list[float]
    seconds: float


class Step:
    """One training step: objective, backward, Adam. Called with a batch, returns the objective, detached."""

    def __init__(self, model: nn.Module, objective: Objective, learning_rate: float):
        self.model = model
        self.objective = objective
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        value = self.objective(self.model, images, labels)
        value.backward()
        self.optimizer.step()
        return value.detach()


def train(model: nn.Module, objective: Objective, data: Digits, budget: Budget, tqdm: ModuleType) -> History:
    """Train `model` in place, a bar on standard error; UserError if the objective stops being finite."""
    step = Step(model.train(), objective, budget.learning_rate)
    order = torch.Generator().manual_seed(budget.seed)
    batches_per_epoch = -(-len(data.train_labels) // budget.batch_size)
    steps = budget.epochs * batches_per_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(step.optimizer, steps)
    curve: list[float] = []
    start = time.perf_counter()
    with tqdm.tqdm(total=steps, desc=objective.label, unit="step", mininterval=0.5) as bar:
        for _ in range(budget.epochs):
            total = torch.zeros((), device=data.train_labels.device)
            permutation = torch.randperm(len(data.train_labels), generator=order).to(total.device)
            for batch in permutation.split(budget.batch_size):
                total += len(batch) * step(data.train_images[batch], data.train_labels[batch])
                schedule.step()
                bar.update()
            curve.append(total.item() / len(data.train_labels))
            bar.set_postfix(objective=f"{curve[-1]:.4f}")
            _check_finite(curve, objective, budget)
    return History(curve, time.perf_counter() - start)


def _check_finite(curve: list[float], objective: Objective, budget: Budget) -> None:
    if not torch.tensor(curve[-1]).isfinite():
        raise UserError(
            f"training {objective.label!r} stopped: its objective became {curve[-1]} in epoch {len(curve)}; "
            f"lower --lr (now {budget.learning_rate:g})"
            + (f" or its penalty weight (now {objective.weight:g})" if objective.penalty else "")
        )
