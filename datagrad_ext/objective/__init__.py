"""The DataGrad objective: a loss, and penalties on data gradients, behind one call.

    L = λ0 mean_n L0_n + Σ_i λi mean_n Ri(J_in),      J_in = ∂ Li_n / ∂ x_n

(Ororbia, Kifer, Giles, arXiv 1601.07213.) `DataGrad` puts it together from `Term`s; an estimator says how ∂R/∂w is
computed: `Exact` (double backprop), `FiniteDifference` (the paper's algorithm) or `CentralDifference`.
"""

from .datagrad import DataGrad
from .estimators import AscentWarning, CentralDifference, Exact, FiniteDifference
from .losses import components, score
from .result import Result, TermResult
from .schedules import Ramp, lazy_adam
from .term import Term

__all__ = [
    "AscentWarning",
    "CentralDifference",
    "DataGrad",
    "Exact",
    "FiniteDifference",
    "Ramp",
    "Result",
    "Term",
    "TermResult",
    "components",
    "lazy_adam",
    "score",
]
