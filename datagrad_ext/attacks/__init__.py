"""Adversarial examples from the data gradient, and how a model stands up to them.

An attack is a function (model, x, target, epsilon) -> x' with ‖x' − x‖ ≤ epsilon for every sample, in the range `clip`
of the data; units are those of x. Attacks need no second order and no accelerated model.
"""

from .gradient import GradientMaskingWarning, data_gradient, fgm, fgsm, pgd
from .robustness import Robustness, evaluate_robustness

__all__ = [
    "GradientMaskingWarning",
    "Robustness",
    "data_gradient",
    "evaluate_robustness",
    "fgm",
    "fgsm",
    "pgd",
]
