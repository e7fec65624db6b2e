"""Gradients by name, and how far two sets of them are apart.

Errors are by norm, ‖a − b‖ / max(‖b‖, floor), with b the reference. `floor` keeps a gradient that is zero in
exact arithmetic (the bias of a convolution before BatchNorm) from being judged by its rounding noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Gradients = Mapping[str, Tensor | None]


def parameter_gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """The gradients that a backward pass left on the parameters; None where it left none."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_error(value: Tensor | None, reference: Tensor | None, floor: float = 0.0) -> float:
    """‖value − reference‖ / max(‖reference‖, floor) in float64; infinite if only one of the two is there."""
    if value is None or reference is None:
        return 0.0 if value is reference else math.inf
    reference = reference.double()
    difference = torch.linalg.vector_norm(value.double() - reference).item()
    scale = max(torch.linalg.vector_norm(reference).item(), floor)
    return 0.0 if difference == 0 else difference / scale if scale > 0 else math.inf


def total_norm(gradients: Gradients) -> float:
    """The norm of all gradients taken as one vector."""
    return math.hypot(
        *(torch.linalg.vector_norm(g.double()).item() for g in gradients.values() if g is not None)
    )


def largest_error(values: Gradients, references: Gradients) -> float:
    """The largest relative error over all names."""
    return max(relative_error(values.get(name), reference) for name, reference in references.items())
