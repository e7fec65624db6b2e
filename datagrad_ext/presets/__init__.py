"""Published objectives with a data gradient in them, each a function that returns an objective.

    objective = presets.wgan_gp(weight=10.0)
    objective(critic, real, fake).total.backward()

An objective is called as (model, x, target), a GAN's as (critic, real) or (critic, real, fake), and returns a
`datagrad_ext.objective.Result`. All penalties are the mean over samples of R of each sample's own data gradient; where
a published weight means something else, the docstring has the conversion. "Exact" means that the gradient is that of
the formula to rounding; "first order" that it is a difference quotient's.
"""

from .adversarial import adversarial_mix, goodfellow, gradient_family, nokland, strong_adversary, virtual_adversarial
from .classical import (
    contractive,
    deep_contractive,
    double_backprop,
    multi_task,
    tangent_prop,
    weight_l1,
    weight_l2,
)
from .fields import eikonal, forces, sobolev
from .gan import dragan, lazy, path_length, r1, r2, wgan_gp
from .robust import grad_align, llr, trades
from .smooth import cure, input_gradient, jacobian, tulip
from .two_point import TwoPoint

__all__ = [
    "TwoPoint",
    "adversarial_mix",
    "contractive",
    "cure",
    "deep_contractive",
    "double_backprop",
    "dragan",
    "eikonal",
    "forces",
    "goodfellow",
    "grad_align",
    "gradient_family",
    "input_gradient",
    "jacobian",
    "lazy",
    "llr",
    "multi_task",
    "nokland",
    "path_length",
    "r1",
    "r2",
    "sobolev",
    "strong_adversary",
    "tangent_prop",
    "trades",
    "tulip",
    "virtual_adversarial",
    "weight_l1",
    "weight_l2",
    "wgan_gp",
]
