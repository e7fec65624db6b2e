"""GLU: y = a σ(b) for the halves a, b of x along one dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .registry import Expansion, expansion, module_rule


@expansion(F.glu)
def _glu(input: Any, dim: int = -1) -> Any:
    halves = input.unflatten(dim, (2, -1)).unbind(dim - 1 if dim < 0 else dim)
    return halves[0] * torch.sigmoid(halves[1])


@module_rule(nn.GLU, config=("dim",))
def _module(module: nn.GLU) -> Expansion:
    dim = module.dim
    return Expansion(lambda input: _glu(input, dim))
