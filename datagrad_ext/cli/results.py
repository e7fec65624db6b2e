"""What one run of `train` found: the tables it prints and the results.json it writes."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import datagrad_ext
from datagrad_ext._format import format_table
from datagrad_ext.cli.comparison import Timing
from datagrad_ext.cli.data import SPLIT_SEED, Digits
from datagrad_ext.cli.evaluation import Figures
from datagrad_ext.cli.objective import Objective
from datagrad_ext.cli.training import Budget, History


@dataclass(frozen=True)
class Trained:
    """One of the networks of a run: how it was trained, how good it is, what its step costs."""

    objective: Objective
    history: History
    figures: Figures
    timing: Timing
    difference_float64: float
    difference_float32: float

    def as_json(self) -> dict[str, Any]:
        """Every figure of this network."""
        return {
            "name": self.objective.key,
            "label": self.objective.label,
            "penalty_weight": self.objective.weight,
            "training": asdict(self.history),
            **asdict(self.figures),
            "step_seconds": {**asdict(self.timing), "speedup": self.timing.speedup},
            "largest_relative_gradient_difference": {
                "float64": self.difference_float64,
                "float32": self.difference_float32,
            },
        }


@dataclass(frozen=True)
class Run:
    """One run of `train`: its settings and its networks."""

    command: str
    model: str
    title: str
    data: Digits
    device: torch.device
    budget: Budget
    epsilons: tuple[float, ...]
    networks: list[Trained]


def report(run: Run) -> str:
    """The two tables, each under the words that say what its numbers are."""
    data, budget, repeats = run.data, run.budget, run.networks[0].timing.repeats
    return f"""
{run.title}, {data.name}
trained on {len(data.train_labels):,} (epochs: {budget.epochs}, seed: {budget.seed})
reported on {len(data.test_labels):,} {data.test_name} images, attack sizes ε for pixels in [0, 1]

{_quality_table(run)}

one training step of {budget.batch_size} images on {run.device}, {torch.get_num_threads()} CPU threads
seconds: median of {repeats} steps, alternating with PyTorch's
difference: largest ‖a − b‖ / ‖b‖ of a parameter's gradient, b from PyTorch in the same precision

{_step_table(run)}"""


def _quality_table(run: Run) -> str:
    """Error rates and data-gradient norms, a row a network."""
    header = ["network", "clean error", *(f"FGSM {e:g}" for e in run.epsilons), "mean ‖∇ₓL‖₁", "‖∇ₓL‖₂"]
    rows = [
        [
            network.objective.label,
            *(f"{100 * error:.1f} %" for error in (network.figures.clean_error, *network.figures.fgsm_error)),
            f"{network.figures.mean_l1:.2f}",
            f"{network.figures.mean_l2:.3f}",
        ]
        for network in run.networks
    ]
    return format_table(header, rows)


def _step_table(run: Run) -> str:
    """Seconds a training step, accelerated and plain, and the gradient differences, a row a network."""
    header = ["network", "datagrad_ext s/step", "PyTorch s/step", "speed-up", "difference float64", "float32"]
    rows = [
        [
            network.objective.label,
            f"{network.timing.accelerated:.5f}",
            f"{network.timing.pytorch:.5f}",
            f"{network.timing.speedup:.2f} x",
            f"{network.difference_float64:.1e}",
            f"{network.difference_float32:.1e}",
        ]
        for network in run.networks
    ]
    return format_table(header, rows)


def write_json(run: Run, path: Path) -> None:
    """Versions, device, seeds, settings and every figure of every network."""
    content = {
        "command": run.command,
        "versions": versions(),
        "device": describe_device(run.device),
        "seeds": {"training": run.budget.seed, "split": SPLIT_SEED},
        "model": run.model,
        "budget": asdict(run.budget),
        "data": {
            "name": run.data.name,
            "training_images": len(run.data.train_labels),
            "reported_on": run.data.test_name,
            "reported_images": len(run.data.test_labels),
        },
        "epsilons": list(run.epsilons),
        "networks": [network.as_json() for network in run.networks],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Of this package and of what its figures depend on."""
    return {
        "datagrad_ext": datagrad_ext.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """Its name, and the cores and threads of this machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"type": str(device), "name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """The processor's name as Linux gives it, elsewhere as Python does."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()
