"""Products of a chain that a GPU's library does together with the rectifier behind them, one by one.

    product_relu     y = relu(a wᵀ + b) and its bits      product_gate    (a w) or (a wᵀ), gated by bits
    product_reverse  (a w), gated, and its sums           product_turned  aᵀ b, from transposed copies of both

The references are the passes that these replace. On CUDA they show what the marks of `ops.chain` run: the first three
in epilogues of cuBLASLt (float16, bfloat16, float32; where bits enter or leave the epilogue, columns a multiple of 128,
so that they lie as it has them), `product_turned` for float32 on tensor cores. An operand that such a call does not
take is an error there. `marks` says which of several ways it is (`layers/product_choices.py`); the references look at
none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import activation
from ._library import op


@op("product_relu(Tensor a, Tensor weight, Tensor bias, str marks) -> (Tensor y, Tensor bits)")
def product_relu(a: Tensor, weight: Tensor, bias: Tensor, marks: str) -> tuple[Tensor, Tensor]:
    """relu(a wᵀ + bias), (rows, columns), and the bits of `relu_forward`."""
    return activation.relu_forward(torch.mm(a, weight.t()), bias, -1, 0.0)


@op("product_gate(Tensor a, Tensor weight, Tensor bits, bool turned) -> Tensor")
def product_gate(a: Tensor, weight: Tensor, bits: Tensor, turned: bool) -> Tensor:
    """a w, or a wᵀ where `turned`, with 0 where a bit is 0."""
    return activation.relu_gate(torch.mm(a, weight.t() if turned else weight), bits, 0.0, False)


@op("product_reverse(Tensor a, Tensor weight, Tensor bits, str marks) -> (Tensor gx, Tensor sums)")
def product_reverse(a: Tensor, weight: Tensor, bits: Tensor, marks: str) -> tuple[Tensor, Tensor]:
    """a w with 0 where a bit is 0, and its sums over rows."""
    return activation.relu_reverse(torch.mm(a, weight), bits, 0.0, False, -1)


@op("product_turned(Tensor a, Tensor b) -> Tensor")
def product_turned(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b."""
    return torch.mm(a.t(), b)
