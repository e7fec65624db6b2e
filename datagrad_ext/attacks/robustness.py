"""Error of a classifier against the size of attacks: figures, a table, a picture, and signs of gradient masking."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._format import format_table
from .gradient import GradientMaskingWarning, fgsm, pgd
from .modes import evaluating

Attack = Callable[[Any, Tensor, Tensor, float], Tensor]
ATTACKS: Mapping[str, Attack] = {"FGSM": fgsm, "PGD": pgd}


@dataclass(frozen=True)
class Robustness:
    """Shares of wrongly classified samples, clean and under each attack at each ε. Prints as a table."""

    samples: int
    clean_error: float
    epsilons: tuple[float, ...]
    errors: Mapping[str, tuple[float, ...]]

    def __str__(self) -> str:
        header = [f"error, n = {self.samples:,}", "clean", *(f"ε = {epsilon:g}" for epsilon in self.epsilons)]
        rows = [
            [name, f"{100 * self.clean_error:.1f} %", *(f"{100 * error:.1f} %" for error in errors)]
            for name, errors in self.errors.items()
        ]
        return format_table(header, rows)

    def plot(self, path: str | Path, title: str = "") -> None:
        """Write a picture of error against ε, a line an attack, with the 95 % interval that n samples leave.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            figure = importlib.import_module("matplotlib.figure").Figure((6.4, 4.2), layout="constrained")
        except ImportError as error:
            raise ImportError('Robustness.plot needs matplotlib: run pip install "datagrad_ext[demo]"') from error
        axes = figure.add_subplot()
        at = [0.0, *self.epsilons]
        for name, errors in self.errors.items():
            shares = [self.clean_error, *errors]
            spread = [1.96 * (p * (1 - p) / self.samples) ** 0.5 for p in shares]
            low, high = ([100 * (p + sign * s) for p, s in zip(shares, spread, strict=True)] for sign in (-1, 1))
            axes.plot(at, [100 * p for p in shares], marker="o", label=name)
            axes.fill_between(at, low, high, alpha=0.15, linewidth=0)
        axes.set(xlabel="attack size ε", ylabel="error", ylim=(0, 102), title=title)
        axes.yaxis.set_major_formatter("{x:.0f} %")
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150)


def evaluate_robustness(
    model: Any,
    loader: Iterable[tuple[Tensor, Tensor]],
    attacks: Mapping[str, Attack] = ATTACKS,
    epsilons: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
) -> Robustness:
    """Error of `model` on the samples of `loader`, clean and under every attack at every ε, in evaluation mode.

    Args:
        model: a classifier, x (N, ...) to scores (N, C).
        loader: batches (x, classes); on the device of the model.
        attacks: name -> attack, called as attack(model, x, classes, ε). functools.partial gives one options.
        epsilons: attack sizes, in the units of x.

    Raises:
        ValueError: a loader without samples.

    Warns:
        GradientMaskingWarning: an error that falls as ε grows, or a one-step attack that beats the iterative one of
            `attacks` ("FGSM" and "PGD") by more than chance.
    """
    wrong = {name: [0] * len(epsilons) for name in attacks}
    samples, clean = 0, 0
    with evaluating(model):
        for x, classes in loader:
            samples += len(x)
            clean += _errors(model, x, classes)
            for name, attack in attacks.items():
                for k, epsilon in enumerate(epsilons):
                    wrong[name][k] += _errors(model, attack(model, x, classes, epsilon), classes)
    if not samples:
        raise ValueError("evaluate_robustness: the loader has no samples")
    errors = {name: tuple(count / samples for count in counts) for name, counts in wrong.items()}
    found = Robustness(samples, clean / samples, tuple(epsilons), errors)
    for sign in masking_signs(found):
        warnings.warn(sign, GradientMaskingWarning, stacklevel=2)
    return found


def masking_signs(found: Robustness) -> list[str]:
    """Sentences about figures that only hidden gradients explain. Differences within two standard errors are chance."""
    chance = 2 * (0.5 / found.samples) ** 0.5
    signs = []
    for name, errors in found.errors.items():
        shares = sorted(zip((0.0, *found.epsilons), (found.clean_error, *errors), strict=True))
        for (small, before), (large, after) in itertools.pairwise(shares):
            if after < before - chance:
                signs.append(
                    f"the error under {name} falls from {before:.1%} at ε = {small:g} to {after:.1%} at {large:g}: the "
                    "attack loses its way, so the model's gradients are masked; try more steps or restarts"
                )
    if "FGSM" in found.errors and "PGD" in found.errors:
        for epsilon, one, many in zip(found.epsilons, found.errors["FGSM"], found.errors["PGD"], strict=True):
            if one > many + chance:
                signs.append(
                    f"at ε = {epsilon:g} one step (FGSM, {one:.1%}) beats many (PGD, {many:.1%}): a sign of masked "
                    "gradients; try more steps or restarts"
                )
    return signs


@torch.no_grad()
def _errors(model: Any, x: Tensor, classes: Tensor) -> int:
    return int((model(x).argmax(1) != classes).sum())
