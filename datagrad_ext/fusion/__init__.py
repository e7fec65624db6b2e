"""Fusion passes: a program in, a faster program out (fewer steps, a better layout). Values keep their numbers."""

from __future__ import annotations

from ..program import Program
from ..single import Single
from .biases import move_biases
from .chains import collect_chains
from .convolution_chains import collect_convolutions
from .folding import fold_norms
from .image_chains import as_image_chain
from .layout import run_in_channels_last
from .rectified_convolutions import rectify_convolutions
from .rectifiers import take_in_rectifiers
from .wide_chains import widen_chains

PASSES = (
    move_biases,
    fold_norms,
    take_in_rectifiers,
    run_in_channels_last,
    collect_convolutions,
    rectify_convolutions,
    collect_chains,
)


def fuse(program: Program) -> Program:
    """The program after every pass."""
    for fusion in PASSES:
        program = fusion(program)
    return Single.of(program)


__all__ = [
    "PASSES",
    "as_image_chain",
    "collect_chains",
    "collect_convolutions",
    "fold_norms",
    "fuse",
    "move_biases",
    "rectify_convolutions",
    "run_in_channels_last",
    "take_in_rectifiers",
    "widen_chains",
]
