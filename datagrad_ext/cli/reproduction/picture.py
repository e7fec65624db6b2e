"""The picture of a comparison: error against the size of FGSM and of PGD, a line a method, intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datagrad_ext.cli.errors import require_extra
from datagrad_ext.cli.reproduction.findings import Finding

# Okabe and Ito's colours: one a family, dashes and markers within it.
STYLES = {
    "none": dict(color="#000000", marker="o"),
    "weight_l1": dict(color="#999999", marker="v", linestyle="--"),
    "weight_l2": dict(color="#999999", marker="^"),
    "multi_task": dict(color="#CC79A7", marker="s"),
    "datagrad_l1": dict(color="#0072B2", marker="s"),
    "datagrad_l2": dict(color="#56B4E9", marker="D"),
    "multi_task_datagrad": dict(color="#0072B2", marker="*", linestyle="--"),
    "goodfellow": dict(color="#D55E00", marker="o"),
    "nokland": dict(color="#E69F00", marker="P"),
    "virtual_adversarial": dict(color="#009E73", marker="X"),
}


def write_png(found: Sequence[Finding], epsilons: Sequence[float], title: str, path: Path) -> None:
    """Two panels, FGSM and PGD; the errors at ε = 0 are those on clean images."""
    figure = require_extra("matplotlib.figure", "the picture of --report").Figure((10.5, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, attack in zip(panels, ("FGSM", "PGD"), strict=True):
        _draw(axes, found, [0.0, *epsilons], attack)
    panels[0].set_ylabel("test error")
    panels[0].yaxis.set_major_formatter("{x:.0f} %")
    figure.suptitle(title, fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, found: Sequence[Finding], at: Sequence[float], attack: str) -> None:
    for finding in found:
        curve, style = finding.curve(attack), STYLES[finding.key]
        axes.plot(at, [100 * point.mean for point in curve], label=finding.method.label, markersize=5, **style)
        low, high = ([100 * (p.mean + sign * p.half) for p in curve] for sign in (-1, 1))
        axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{attack}: ε (L∞, pixels in [0, 1])", ylim=(0, 102))
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
