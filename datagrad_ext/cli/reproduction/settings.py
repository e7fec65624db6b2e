"""Settings of a comparison by name: network, loss, budget, attack sizes; and published figures to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from datagrad_ext.cli.data import CLASSES, SIDE
from datagrad_ext.cli.reproduction.methods import METHODS, Loss
from datagrad_ext.objective.losses import cross_entropy

PIXELS = SIDE * SIDE


class Maxout(nn.Module):
    """(N, i) to (N, units): the largest of `pieces` linear maps for each unit (Goodfellow et al., arXiv 1302.4389)."""

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.units, self.pieces = units, pieces
        self.linear = nn.Linear(inputs, units * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """The maximum over pieces."""
        return self.linear(x).unflatten(1, (self.units, self.pieces)).amax(2)


def _relu(*widths: int) -> Callable[[int], nn.Module]:
    def build(outputs: int) -> nn.Module:
        sizes = (PIXELS, *widths)
        hidden = [m for i, o in zip(sizes, widths, strict=False) for m in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], outputs))

    return build


def _maxout(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Maxout(PIXELS, 240, 5), Maxout(240, 240, 5), nn.Linear(240, outputs))


def _sigmoid_bce(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each of the ten sigmoid outputs, (N, 10)."""
    wanted = F.one_hot(target, CLASSES).to(output.dtype)
    return F.binary_cross_entropy_with_logits(output, wanted, reduction="none")


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "784-256-256-10 ReLU network": _relu(256, 256),
    "784-400-400-10 ReLU network": _relu(400, 400),
    "maxout network, two layers of 240 units with 5 pieces": _maxout,
}
LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "binary cross-entropy of sigmoid outputs": _sigmoid_bce}


@dataclass(frozen=True)
class Published:
    """A figure on the full MNIST from elsewhere. `epsilon` is that of FGSM; None: clean images."""

    method: str
    epsilon: float | None
    error: float
    source: str


@dataclass(frozen=True)
class Settings:
    """What every run of one comparison shares; with `fixed` values, a method's hyper-parameters are not searched."""

    name: str
    epochs: int
    batch_size: int
    epsilons: tuple[float, ...]
    methods: tuple[str, ...]
    network: str = "784-256-256-10 ReLU network"
    loss: str = "cross-entropy"
    cosine: bool = True
    fixed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    note: str = ""

    def as_json(self) -> dict[str, object]:
        """What a run depends on, to tell one comparison from another. Which methods run is not part of it."""
        return {
            "name": self.name,
            "network": self.network,
            "loss": self.loss,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "cosine": self.cosine,
            "epsilons": list(self.epsilons),
        }


_REPRODUCTION = "a reproduction of arXiv 1510.04189 in public code"
_GOODFELLOW = "arXiv 1412.6572, a maxout network"

SETTINGS: Mapping[str, Settings] = {
    "small": Settings(
        "small", epochs=12, batch_size=100, epsilons=(0.025, 0.05, 0.075, 0.1, 0.15, 0.2), methods=tuple(METHODS)
    ),
    "nokland": Settings(
        "nokland",
        epochs=150,
        batch_size=32,
        epsilons=(0.04, 0.08, 0.15, 0.25),
        methods=("none", "nokland"),
        network="784-400-400-10 ReLU network",
        loss="binary cross-entropy of sigmoid outputs",
        cosine=False,
        fixed={"none": {"learning_rate": 1e-4}, "nokland": {"learning_rate": 1e-4, "epsilon": 0.08}},
        published=(Published("none", None, 0.0140, _REPRODUCTION), Published("nokland", None, 0.0093, _REPRODUCTION)),
    ),
    "goodfellow": Settings(
        "goodfellow",
        epochs=100,
        batch_size=100,
        epsilons=(0.05, 0.1, 0.15, 0.25),
        methods=("none", "goodfellow"),
        network="maxout network, two layers of 240 units with 5 pieces",
        fixed={
            "none": {"learning_rate": 1e-3},
            "goodfellow": {"learning_rate": 1e-3, "epsilon": 0.25, "alpha": 0.5},
        },
        published=(Published("none", 0.25, 0.89, _GOODFELLOW), Published("goodfellow", 0.25, 0.18, _GOODFELLOW)),
        note="Adam, no dropout and the widths of the network are choices of this package.",
    ),
}
