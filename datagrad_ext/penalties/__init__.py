"""Penalties R(J) on a data gradient J (N, ...): one value a sample, differentiable to every order."""

from .norms import l1, l2, l2_squared, linf

__all__ = ["l1", "l2", "l2_squared", "linf"]
