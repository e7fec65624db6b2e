"""Between the sweeps of an objective few kernels run: what touches a tensor as large as J or as the output, counted.

Counted on the meta device, where an op is an op and takes the path of a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import cases, contestants

LOSSES = {"mlp_paper_bf16": "CE + L1", "mlp_narrow_bf16": "CE + L2²"}


class Log(TorchDispatchMode):
    """Names of the ops that run, with the size of the largest tensor each one reads or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if not func.is_view and tensors:
            self.ops.append((func.__name__.partition(".")[0], max(t.numel() for t in tensors)))
        return result

    def between(self, first: str, last: str, size: int) -> list[str]:
        """Ops after `first` and before `last` that touch a tensor of at least this size."""
        names = [name for name, _ in self.ops]
        start, end = names.index(first) + 1, names.index(last)
        return [name for name, touched in self.ops[start:end] if touched >= size]


@pytest.fixture(params=LOSSES)
def log(request: pytest.FixtureRequest) -> Log:
    (case,) = cases.find("cuda", [request.param])
    assert case.objective.formula == LOSSES[request.param]
    step = contestants.find(["objective"])[0].make(replace(case, device="meta")).step
    step()
    with Log() as found:
        step()
    found.rows, found.width = case.subject.input_shape
    return found


def test_from_the_data_gradient_to_its_seed_are_two_kernels(log: Log) -> None:
    """One more has all means and the total. The first cotangent and the dtype of the reported loss do not count."""
    J, others = log.rows * log.width, {"ones_like", "_to_copy"}
    assert log.between("chain_data_vjp", "chain_data_jvp", J) == ["penalty_value", "penalty_handover"]
    found = [name for name in log.between("chain_data_vjp", "chain_data_jvp", 0) if name not in others]
    assert found == ["penalty_value", "penalty_total", "penalty_handover"]


def test_a_loss_is_one_kernel_and_its_hessian_product_one(log: Log) -> None:
    assert log.between("chain_forward", "chain_data_vjp", 0) == ["cross_entropy_head"]
    assert log.between("chain_data_jvp", "chain_reverse", 0) == ["cross_entropy_hvp", "addcmul"]
