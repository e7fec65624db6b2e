"""FGSM, its L2 form, and projected gradient ascent. Letters: x (N, ...) data, J = ∂loss_n/∂x_n, ε radius."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..objective.losses import Loss, cross_entropy, each, means, own_gradients
from .ball import Range, clipped, projected, random, steepest
from .modes import evaluating


class GradientMaskingWarning(UserWarning):
    """What an attack found speaks of hidden gradients, not of robustness."""


def data_gradient(
    model: Callable[..., Any], x: Tensor, target: Any, loss: Loss = cross_entropy, eval_mode: bool = True
) -> Tensor:
    """J (N, ...): row n is the gradient of sample n's own loss, without a graph.

    Args:
        eval_mode: run the model in evaluation mode and give back the modes it had; False: in the modes it has.
    """
    x, target = _ordinary(x), _ordinary(target)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model) if eval_mode else nullcontext():
        x = x.detach().requires_grad_()
        (mean,) = means(loss, model(x), target, len(x))
        J = own_gradients(mean, x, len(x))
    if J is None:
        raise ValueError("the loss does not depend on x in autograd's graph; is it detached in the model?")
    return J


def _ordinary(value: Any) -> Any:
    """The value; a copy that autograd may save if it is a tensor of inference mode."""
    if not (isinstance(value, Tensor) and value.is_inference()):
        return value
    with torch.inference_mode(False):
        return value.clone()


def fgsm(
    model: Callable[..., Any],
    x: Tensor,
    target: Any,
    epsilon: float,
    *,
    clip: Range | None = (0.0, 1.0),
    loss: Loss = cross_entropy,
    eval_mode: bool = True,
) -> Tensor:
    """x + ε sign J, clipped: the fast gradient sign method.

    Source: Goodfellow, Shlens, Szegedy, arXiv 1412.6572.

    Args:
        epsilon: L∞ radius, in the units of x.
        clip: (lowest, highest) value of the data, numbers or tensors that broadcast to x (normalised channels); None
            leaves the result as it is.
        loss: what is ascended, a callable (output, target) with reduction 'none' or 'mean'.
        eval_mode: attack the model in evaluation mode and give back the modes it had; False: in the modes it has.

    Raises:
        ValueError: a negative ε, or x outside of `clip`.

    Warns:
        GradientMaskingWarning: J is exactly 0 or not finite at some samples.
    """
    return _single(model, x, target, epsilon, "linf", clip, loss, eval_mode)


def fgm(
    model: Callable[..., Any],
    x: Tensor,
    target: Any,
    epsilon: float,
    *,
    clip: Range | None = (0.0, 1.0),
    loss: Loss = cross_entropy,
    eval_mode: bool = True,
) -> Tensor:
    """x + ε J/‖J‖₂, clipped: the fast gradient method with an L2 radius. Arguments and errors as for `fgsm`."""
    return _single(model, x, target, epsilon, "l2", clip, loss, eval_mode)


def pgd(
    model: Callable[..., Any],
    x: Tensor,
    target: Any,
    epsilon: float,
    *,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    clip: Range | None = (0.0, 1.0),
    loss: Loss = cross_entropy,
    eval_mode: bool = True,
) -> Tensor:
    """Projected gradient ascent: steps along sign J (L∞) or J/‖J‖₂ (L2), projected onto the ball and the range.

    Source: Madry et al., arXiv 1706.06083. Arguments, errors and warnings as for `fgsm`, and:

    Args:
        norm: "linf" or "l2", that of the ball and of the steps.
        steps: number of steps.
        step_size: length of a step; None: 2.5 ε / steps.
        random_start: start at a point drawn uniformly from the ball, by torch's global generator; else at x.
        restarts: how often to start; of each sample the point with the highest loss is kept, which needs a loss with
            reduction 'none'. More than one start needs random_start.

    Raises:
        ValueError: another norm, or numbers below 1.
    """
    _check(x, epsilon, norm, clip)
    if steps < 1 or restarts < 1:
        raise ValueError(f"pgd: steps and restarts must be at least 1, got {steps} and {restarts}")
    if restarts > 1 and not random_start:
        raise ValueError(f"pgd: {restarts} restarts from the same point would all be the same; give random_start=True")
    length = 2.5 * epsilon / steps if step_size is None else step_size
    x = x.detach()

    def climb() -> Tensor:
        moved = clipped(x + random(x, epsilon, norm), clip) if random_start else x
        for _ in range(steps):
            J = data_gradient(model, moved, target, loss, eval_mode)
            _warn_of_masking(J)
            moved = clipped(x + projected(moved + length * steepest(J, norm) - x, epsilon, norm), clip)
        return moved

    best = climb()
    for _ in range(restarts - 1):
        other = climb()
        better = _losses(model, other, target, loss, eval_mode) > _losses(model, best, target, loss, eval_mode)
        best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), other, best)
    return best


def _single(
    model: Any, x: Tensor, target: Any, epsilon: float, norm: str, clip: Range | None, loss: Loss, eval_mode: bool
) -> Tensor:
    _check(x, epsilon, norm, clip)
    J = data_gradient(model, x, target, loss, eval_mode)
    _warn_of_masking(J)
    return clipped(x.detach() + epsilon * steepest(J, norm), clip)


@torch.no_grad()
def _losses(model: Any, x: Tensor, target: Any, loss: Loss, eval_mode: bool) -> Tensor:
    with evaluating(model) if eval_mode else nullcontext():
        return each(loss, model(x), target, len(x))


def _check(x: Tensor, epsilon: float, norm: str, clip: Range | None) -> None:
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got '{norm}'")
    if not x.is_floating_point():
        raise TypeError(f"an attack moves floating-point data, got {x.dtype}; scale integers to [0, 1] first")
    if clip is not None and not torch.equal(clipped(x, clip), x.detach()):
        raise ValueError(
            f"x has values from {x.min().item():g} to {x.max().item():g}, outside of clip={clip}: "
            "give the range of your data, or clip=None"
        )


def _warn_of_masking(J: Tensor) -> None:
    rows = J.flatten(1)
    still, broken = ~rows.any(1), ~rows.isfinite().all(1)
    for found, what in ((still, "exactly 0"), (broken, "not finite")):
        if found.any():
            warnings.warn(
                f"the data gradient is {what} at some samples, which a gradient attack cannot move: saturated outputs, "
                "or an operation without a gradient. That is not robustness",
                GradientMaskingWarning,
                stacklevel=4,
            )
