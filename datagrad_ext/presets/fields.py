"""Networks whose gradient by their coordinates is a physical or geometric quantity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..objective import DataGrad, Term
from ..objective.losses import Loss, score
from ..objective.schedules import Weight
from ..penalties import Centred, Match


def eikonal(weight: Weight = 1.0, loss: Loss | None = None) -> DataGrad:
    """L + λ mean(‖∇f‖ − 1)²: called as (network, points), points (N, 3). Exact.

    `loss` is the data term at the same points, or None for the penalty alone. For signed distance functions; source:
    Gropp et al., arXiv 2002.10099.
    """
    return DataGrad(loss, Term(weight, Centred(1.0), score))


def forces(energy_weight: float = 1.0, force_weight: Weight = 1.0) -> DataGrad:
    """w_E MSE(E) + w_F MSE(−∇E, F): called as (model, coordinates, (energies, forces)). Exact.

    For interatomic potentials. The model returns energies (N,) or (N, 1) of N structures at coordinates (N, ...);
    forces have the shape of the coordinates. MSE(F) is the mean over all components of all samples. For structures of
    different sizes in one batch, give each its own row with padding, or use `DataGrad` with your own penalty.
    """

    def energies(output: Tensor, target: Any) -> Tensor:
        E = score(output)
        return (E - target[0].view_as(E)).square()

    def mean_square(J: Tensor, target: Any) -> Tensor:
        return Match(-target[1])(J) / J[0].numel()

    term = Term(force_weight, mean_square, score, with_target=True)
    return DataGrad(energies, term, loss_weight=energy_weight)


def sobolev(weight: Weight = 1.0) -> DataGrad:
    """mean (f − f*)² + λ mean ‖∇f − ∇f*‖²: called as (model, x, (values, gradients)). Exact.

    The model returns one value a sample, (N,) or (N, 1); gradients have the shape of x. No factor ½, and a sum over the
    components of the gradient. Source: Czarnecki et al., arXiv 1706.04859.
    """

    def values(output: Tensor, target: Any) -> Tensor:
        f = score(output)
        return (f - target[0].view_as(f)).square()

    def distance(J: Tensor, target: Any) -> Tensor:
        return Match(target[1])(J)

    return DataGrad(values, Term(weight, distance, score, with_target=True))
