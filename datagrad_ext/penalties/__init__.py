"""Penalties R(J) on a data gradient J (N, ...): one value a sample, first derivatives finite also at J = 0.

The norms without parameters are functions (`l1`, `l2`, `l2_squared`, `linf`), those with parameters are objects with
the same call: `Lp(3)(J)`. A penalty is any callable J (N, ...) -> (N,), so a function of your own will do.
"""

from .distances import Centred, Match, OneSided
from .groups import Group
from .lp import Lp
from .norms import l1, l2, l2_squared, linf
from .projections import Along, Directional

__all__ = [
    "Along",
    "Centred",
    "Directional",
    "Group",
    "Lp",
    "Match",
    "OneSided",
    "l1",
    "l2",
    "l2_squared",
    "linf",
]
