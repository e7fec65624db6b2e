"""Mixed precision with a GradScaler and a penalty.

The gradients of a float16 network underflow unless the loss is scaled up by S; a penalty is of the true ones:

    J = (1/S) ∂(S L)/∂x        total = L + λ R(J)        scaler.scale(total).backward()

The recipe is that of torch's AMP examples ("Gradient penalty"), without their wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp import GradScaler


def data_gradient(
    loss: Tensor, inputs: Tensor | Sequence[Tensor], scaler: GradScaler | None = None
) -> Tensor | tuple[Tensor, ...]:
    """∂loss/∂inputs in true units, differentiable, computed from the scaled loss. Shapes: as the inputs.

    Where the scaled gradient overflows, J is not finite, hence the total and its gradients are not, and the scaler
    skips that step and lowers S, as in training without a penalty.

    Args:
        loss: a scalar; for row n to be sample n's own gradient, the sum over samples.
        inputs: one tensor or several that require a gradient.
        scaler: a GradScaler; None, or one that is not enabled: S = 1.

    Raises:
        RuntimeError: loss is not a scalar or does not depend on the inputs (torch.autograd.grad's own).
    """
    one = torch.ones((), device=loss.device)
    scale = one if scaler is None else scaler.scale(one)
    several = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    scaled = torch.autograd.grad(loss * scale, several, create_graph=True)
    true = tuple(J / scale for J in scaled)
    return true[0] if isinstance(inputs, Tensor) else true
