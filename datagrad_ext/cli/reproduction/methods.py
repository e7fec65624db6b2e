"""What is compared: objectives on images x (N, 1, 28, 28) and digits t (N,), with the ranges of what is searched.

Two methods have cues, further tasks on the same trunk: is the digit odd, is it at least 5. The paper's own cues could
not be read; these are a choice of this package. Their logits are outputs 10 and 11 of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datagrad_ext import penalties, presets
from datagrad_ext.cli.data import CLASSES
from datagrad_ext.objective import DataGrad, Term

Loss = Callable[[Any, Any], Any]
Values = Mapping[str, float]
Objective = Callable[..., Any]
CUES = 2
SYMBOLS = {"learning_rate": "rate", "weight": "λ", "cue": "μ", "epsilon": "ε", "alpha": "α"}
LEARNING_RATE = (5e-4, 2e-2)
_CUE = (0.01, 3.0)
_DATAGRAD_L1 = (5e-3, 0.3)


@dataclass(frozen=True)
class Method:
    """One objective: its name, its formula (L the loss, J its data gradient), and how to make it from values."""

    label: str
    formula: str
    make: Callable[[Values, Loss], Objective]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cues: bool = False

    @property
    def searched(self) -> dict[str, tuple[float, float]]:
        """Everything that is drawn, log-uniformly: the learning rate of every method, and its own strengths."""
        return {"learning_rate": LEARNING_RATE, **self.ranges}


def cue_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of the two cues, (N,)."""
    cues = torch.stack([target % 2, target >= 5], 1).to(output.dtype)
    return F.binary_cross_entropy_with_logits(output[:, CLASSES:], cues, reduction="none").mean(1)


def _digit(loss: Loss) -> Loss:
    return lambda output, target: loss(output[:, :CLASSES], target)


def _multi_task(values: Values, loss: Loss) -> DataGrad:
    return presets.multi_task([_digit(loss), cue_loss], [1.0, values["cue"]])


def _multi_task_datagrad(values: Values, loss: Loss) -> DataGrad:
    strength, cue = values["weight"], values["cue"]
    terms = [Term(strength, loss=_digit(loss)), Term(strength * cue, loss=cue_loss)]
    return presets.multi_task([_digit(loss), cue_loss], [1.0, cue], terms)


METHODS: Mapping[str, Method] = {
    "none": Method("no penalty", "L", lambda v, loss: DataGrad(loss)),
    "weight_l1": Method(
        "weight L1", "L + λ Σ|w|", lambda v, loss: presets.weight_l1(v["weight"], loss), {"weight": (1e-6, 3e-4)}
    ),
    "weight_l2": Method(
        "weight L2", "L + λ Σw²", lambda v, loss: presets.weight_l2(v["weight"], loss), {"weight": (1e-5, 3e-3)}
    ),
    "multi_task": Method("multi-task", "L + μ L_cues", _multi_task, {"cue": _CUE}, cues=True),
    "datagrad_l1": Method(
        "DataGrad L1",
        "L + λ mean Σ|J|",
        lambda v, loss: DataGrad(loss, Term(v["weight"], penalties.l1)),
        {"weight": _DATAGRAD_L1},
    ),
    "datagrad_l2": Method(
        "DataGrad L2",
        "L + λ mean ΣJ²",
        lambda v, loss: DataGrad(loss, Term(v["weight"], penalties.l2_squared)),
        {"weight": (0.1, 10.0)},
    ),
    "multi_task_datagrad": Method(
        "multi-task + DataGrad",
        "L + λ mean Σ|J| + μ (L_cues + λ mean Σ|J_cues|)",
        _multi_task_datagrad,
        {"weight": _DATAGRAD_L1, "cue": _CUE},
        cues=True,
    ),
    "goodfellow": Method(
        "Goodfellow",
        "α L(x) + (1 − α) L(x + ε sign J), α = ½",
        lambda v, loss: presets.goodfellow(v["epsilon"], v.get("alpha", 0.5), loss),
        {"epsilon": (0.02, 0.3)},
    ),
    "nokland": Method(
        "Nøkland", "L(x + ε sign J)", lambda v, loss: presets.nokland(v["epsilon"], loss), {"epsilon": (0.01, 0.3)}
    ),
    "virtual_adversarial": Method(
        "VAT",
        "L + mean KL(p(x) ‖ p(x + r)), ‖r‖₂ = ε",
        lambda v, loss: presets.virtual_adversarial(v["epsilon"], xi=1e-3, loss=loss),
        {"epsilon": (0.3, 4.0)},
    ),
}
