"""Kernel families: importing this package declares every op of the namespace `datagrad`."""

from . import (
    activation,
    chain,
    convolution,
    cross_entropy,
    folded_step,
    folding,
    fused_convolution,
    image_chain,
    normalisation,
    penalty,
    penalty_step,
    product,
    turned,
)
from ._library import is_native, op_names

__all__ = [
    "activation",
    "chain",
    "convolution",
    "cross_entropy",
    "folded_step",
    "folding",
    "fused_convolution",
    "image_chain",
    "is_native",
    "normalisation",
    "op_names",
    "penalty",
    "penalty_step",
    "product",
    "turned",
]
