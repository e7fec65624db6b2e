"""datagrad_ext: exact and fast double backprop, for training with penalties on a network's gradient by its input."""

from . import amp, attacks, functional, objective, penalties, presets
from ._native import backends
from .accelerate import accelerate
from .graphed import GraphedStep
from .objective import CentralDifference, DataGrad, Exact, FiniteDifference, Term
from .reference import ReferencePathWarning
from .table import program

__version__ = "0.1.0"
__all__ = [
    "CentralDifference",
    "DataGrad",
    "Exact",
    "FiniteDifference",
    "GraphedStep",
    "ReferencePathWarning",
    "Term",
    "accelerate",
    "amp",
    "attacks",
    "backends",
    "functional",
    "objective",
    "penalties",
    "presets",
    "program",
]
