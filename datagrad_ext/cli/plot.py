"""The picture of one run of `train`: test error against the size of the attack, a line a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datagrad_ext.cli.errors import require_extra
from datagrad_ext.cli.results import Run, Trained

# Okabe and Ito's colours, distinct for colour-blind readers, and a marker each.
STYLES = {"plain": ("#555555", "o"), "l1": ("#0072B2", "s"), "l2_squared": ("#D55E00", "^")}


def write_png(run: Run, path: Path) -> None:
    """Error in percent at ε = 0 (clean) and at every attacked ε."""
    figure = require_extra("matplotlib.figure", "writing the picture of --out").Figure(
        (7.2, 4.6), layout="constrained"
    )
    axes = figure.add_subplot()
    for network in run.networks:
        _draw(axes, run, network)
    axes.set(xlabel="FGSM attack size ε  (pixels in [0, 1])", xlim=(-0.005, None), ylim=(0, 102))
    axes.set_ylabel(f"{run.data.test_name} error")
    axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(f"{run.title}: error under attack", loc="left", pad=36, fontsize=13, fontweight="bold")
    axes.text(0, 1.025, _subtitle(run), transform=axes.transAxes, fontsize=9, color="#555555")
    figure.savefig(path, dpi=150)


def _draw(axes: Any, run: Run, network: Trained) -> None:
    """One line, and the 95 % interval that n reported images leave (normal approximation)."""
    colour, marker = STYLES[network.objective.key]
    epsilons = np.array([0.0, *run.epsilons])
    errors = 100 * np.array([network.figures.clean_error, *network.figures.fgsm_error])
    spread = 1.96 * np.sqrt(errors * (100 - errors) / len(run.data.test_labels))
    axes.fill_between(epsilons, errors - spread, errors + spread, color=colour, alpha=0.15, linewidth=0)
    axes.plot(epsilons, errors, color=colour, marker=marker, linewidth=2, label=_label(network))


def _label(network: Trained) -> str:
    clean = f"clean error {100 * network.figures.clean_error:.1f} %"
    weight = f", λ = {network.objective.weight:g}" if network.objective.penalty else ""
    return f"{network.objective.label}{weight}  ({clean})"


def _subtitle(run: Run) -> str:
    trained, reported = len(run.data.train_labels), len(run.data.test_labels)
    return (
        f"{run.data.name}: trained on {trained:,} (epochs: {run.budget.epochs}, seed: {run.budget.seed}),\n"
        f"n = {reported:,} {run.data.test_name} images; shaded: 95 % interval"
    )
