"""Kernel families: importing this package declares every op of the namespace `datagrad`."""

from . import activation, chain, convolution, cross_entropy, folding, normalisation, penalty, penalty_step
from ._library import is_native, op_names

__all__ = [
    "activation",
    "chain",
    "convolution",
    "cross_entropy",
    "folding",
    "is_native",
    "normalisation",
    "op_names",
    "penalty",
    "penalty_step",
]
