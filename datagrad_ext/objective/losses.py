"""Losses as users write them, and their data gradients.

A loss is any callable (output, target) -> tensor. Accepted results, for N samples:

    (N, ...)   losses of the samples (reduction 'none'); what is behind N is averaged
    ()         the mean over the samples (reduction 'mean')
    a tuple    several losses, each as above: the penalty is applied to the data gradient of each, and summed
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import losses

Loss = Callable[[Any, Any], Any]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each sample; target are class indices (N,) or probabilities (N, C)."""
    return losses.cross_entropy(output, target, reduction="none")


def score(output: Tensor, target: Any = None) -> Tensor:
    """The sum of each sample's outputs, (N, ...) to (N,): a critic's score, a field's value, an energy."""
    return output if output.dim() == 1 else output.flatten(1).sum(1)


def components(output: Tensor, target: Any = None) -> tuple[Tensor, ...]:
    """Every component of the output (N, ...) as a loss of its own: the rows of the Jacobian ∂output/∂x."""
    return output.flatten(1).unbind(1)


def check_loss(loss: Any, name: str) -> None:
    """Refuse what cannot be a loss: a TypeError if it is not callable, a ValueError for a sum over the batch."""
    if not callable(loss):
        raise TypeError(f"{name} must be a callable (output, target) -> tensor, got {type(loss).__name__}")
    if isinstance(loss, type):
        raise TypeError(f"{name} is the class {loss.__name__}; give an object of it, {loss.__name__}()")
    options = loss.keywords if isinstance(loss, partial) else {}
    if "sum" in (getattr(loss, "reduction", None), options.get("reduction")):
        raise ValueError(f"{name} has reduction='sum'; give it reduction='none' or 'mean'")


def means(loss: Loss, output: Any, target: Any, samples: int) -> tuple[Tensor, ...]:
    """The mean over samples of each loss that `loss` returns; N times its gradient has the samples' own as rows."""
    value = loss(output, target)
    return tuple([_mean(part, samples) for part in (value if isinstance(value, (tuple, list)) else (value,))])


def one_mean(loss: Loss, output: Any, target: Any, samples: int) -> Tensor:
    """The mean of the objective's own loss; a ValueError for a tuple of losses."""
    return only(means(loss, output, target, samples))


def only(found: tuple[Tensor, ...]) -> Tensor:
    """The one mean that the objective's own loss has."""
    if len(found) > 1:
        raise ValueError("the objective's own loss must be a tensor; a tuple of losses is for terms")
    return found[0]


def each(loss: Loss, output: Any, target: Any, samples: int) -> Tensor:
    """The loss of each sample (N,); a ValueError for a loss that returns only their mean."""
    value = loss(output, target)
    if isinstance(value, Tensor) and value.dim() == 0:
        raise ValueError("this objective needs the loss of each sample: give a loss with reduction='none'")
    _check_value(value, samples)
    return value if value.dim() == 1 else value.flatten(1).mean(1)


def own_gradients(mean: Tensor, x: Tensor, samples: int, create_graph: bool = False) -> Tensor | None:
    """J (N, ...) of a mean over N samples: row n is the gradient of sample n's own loss. None if x is not in it."""
    if not (mean.requires_grad and x.requires_grad):
        return None
    cotangent = torch.full_like(mean, samples, requires_grad=False)
    return torch.autograd.grad(mean, x, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True)[0]


def _mean(value: Any, samples: int) -> Tensor:
    if isinstance(value, Tensor) and value.dim() == 0:
        return value
    _check_value(value, samples)
    return value.mean()


def _check_value(value: Any, samples: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"a loss must return a tensor (or a tuple of tensors), got {type(value).__name__}")
    if value.dim() == 0 or value.shape[0] != samples:
        raise ValueError(
            f"a loss of {samples} samples must return shape [{samples}, ...] or a scalar mean, got {list(value.shape)}"
        )
