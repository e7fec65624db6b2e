"""Bad input, row by row: the exception type of PyTorch, and a sentence that says what came and what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import data
from oracle import assert_equal
from torch import Tensor, nn
from training_code import data_gradient, loss_of

import datagrad_ext

pytestmark = pytest.mark.filterwarnings("ignore:.*[Ss]parse CSR", "ignore:.*quantiz")


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (_mlp, data(4, 6).float()),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 3)), data(4, 6).float()),
    "conv": (_conv, data(2, 3, 8, 8).float()),
}


@dataclass(frozen=True)
class Row:
    """`code(model, x)` goes wrong; `says` is in our error, on every network or on those named."""

    name: str
    code: Callable[[nn.Module, Tensor], object]
    says: str
    networks: tuple[str, ...] = tuple(NETWORKS)
    warns: str = ""


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _parameter_changed(model: nn.Module, x: Tensor) -> None:
    loss = loss_of(model(x.requires_grad_()))
    with torch.no_grad():
        model[-1].weight.mul_(2)
    data_gradient(loss, x)


def _parameter_changed_before_backward(model: nn.Module, x: Tensor) -> None:
    loss = loss_of(model(x.requires_grad_()))
    J = data_gradient(loss, x)
    with torch.no_grad():
        model[-1].weight.mul_(2)
    (loss + J.square().sum()).backward()


def _second_backward(model: nn.Module, x: Tensor) -> None:
    total = loss_of(model(x.requires_grad_()))
    total = total + data_gradient(total, x).square().sum()
    total.backward()
    total.backward()


def _layer_in_float64(model: nn.Module, x: Tensor) -> None:
    model[-1].double()
    model(_leaf(x))


DTYPES = r"Convert one, x\.to\(dtype\) or model\.to\(dtype\)"
TABLE = [
    Row("float64", lambda m, x: m(_leaf(x.double())), rf"input is torch.float64, a parameter torch.float32. {DTYPES}"),
    Row("float16", lambda m, x: m(_leaf(x.half())), rf"input is torch.float16, a parameter torch.float32. {DTYPES}"),
    Row("bfloat16", lambda m, x: m(_leaf(x.bfloat16())), DTYPES),
    Row("one_layer_in_float64", _layer_in_float64, rf"a parameter torch.float64. {DTYPES}"),
    Row("device", lambda m, x: m(_leaf(x.to("meta"))), "on meta, a parameter on cpu. Move one", ("mlp", "conv")),
    Row("width", lambda m, x: m(_leaf(x[:, :2])), "multiplied|to have 3 channels"),
    Row("too_few_dimensions", lambda m, x: m(_leaf(x.flatten()[:2])), r"multiplied|\(N, C, …\) or .* got shape \(2,\)"),
    Row("too_many_dimensions", lambda m, x: m(_leaf(x[None])), r"expected a 4-dimensional input", ("conv",)),
    Row("no_dimension", lambda m, x: m(_leaf(x.sum())), r"Give it the batch dimension", ("mlp", "linear")),
    Row("complex", lambda m, x: m(_leaf(x.to(torch.complex64))), "(?i)complex", warns="view_as_real"),
    Row("sparse", lambda m, x: m(_leaf(x.to_sparse())), "[Ss]parse", ("conv",), warns="to_dense"),
    Row("quantised", lambda m, x: m(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)), "(?i)qint8"),
    Row("integer", lambda m, x: m(x.long()), "(?i)long"),
    Row("integer_with_gradient", lambda m, x: m(x.long().requires_grad_()), "only Tensors of floating point"),
    Row("gradient_not_required", lambda m, x: data_gradient(loss_of(m(x)), x), "not require grad|not have been used"),
    Row("nothing", lambda m, x: m(None), "NoneType"),
    Row("list", lambda m, x: m(x.tolist()), "list"),
    Row("parameter_changed_before_data_gradient", _parameter_changed, "modified by an inplace operation"),
    Row("parameter_changed_before_backward", _parameter_changed_before_backward, "modified by an inplace operation"),
    Row("second_backward", _second_backward, "retain_graph=True"),
]


@pytest.mark.parametrize(("row", "network"), [
    pytest.param(row, network, id=f"{row.name}-{network}") for row in TABLE for network in row.networks
])  # fmt: skip
def test_raises_what_pytorch_raises_and_says_what_to_do(
    row: Row, network: str, recwarn: pytest.WarningsRecorder
) -> None:
    make, x = NETWORKS[network]
    with pytest.raises(Exception) as usual:
        row.code(make(), x.clone())
    with pytest.raises(usual.type, match=row.says) as ours:
        row.code(datagrad_ext.accelerate(make()), x.clone())
    assert ours.type is usual.type
    said = " ".join(str(w.message) for w in recwarn if w.category is datagrad_ext.ReferencePathWarning)
    assert row.warns in said if row.warns else not said


def test_sparse_input_that_pytorch_takes_is_right() -> None:
    """Linear layers of a sparse matrix: the reference path."""
    plain, x = _mlp().double(), data(4, 6)
    ours = datagrad_ext.accelerate(copy.deepcopy(plain))
    with pytest.warns(datagrad_ext.ReferencePathWarning, match="to_dense"):
        y = ours(_leaf(x.to_sparse()))
    assert_equal({"y": y}, {"y": plain(x)})


class _NoMoreMemory(RuntimeError):
    """A user's own error, or torch's for lack of memory: a subclass."""


@pytest.mark.parametrize("error", [_NoMoreMemory("a type"), RuntimeError("something else"), ValueError("dtype")])
def test_an_error_about_something_else_stays_as_it_is(error: Exception) -> None:
    """Also where the dtypes of a network differ on purpose."""

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                raise error
            return x

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fails = nn.Linear(6, 3).double(), Fails()

        def forward(self, x: Tensor) -> Tensor:
            return self.fails(self.first(x.double()))

    with pytest.raises(type(error)) as caught:
        datagrad_ext.accelerate(Mixed())(data(4, 6).float().requires_grad_())
    assert caught.value is error


DIMENSIONS = {
    "permute": lambda x: x.permute(0, 1, 5),
    "transpose": lambda x: x.transpose(0, 4),
    "transpose of a number": lambda x: x.sum().transpose(0, 1),
    "movedim": lambda x: x.movedim(5, 0),
    "t": lambda x: x.t(),
}


class Calling(nn.Module):
    """A forward that is one function of a layer's output."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.layer = call, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer(x))


@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_dimension_that_does_not_exist_is_refused_in_pytorchs_words(name: str) -> None:
    said = []
    for model in (Calling(DIMENSIONS[name]), datagrad_ext.accelerate(Calling(DIMENSIONS[name]))):
        with pytest.raises((IndexError, RuntimeError)) as error:
            model(torch.rand(2, 3, 4, requires_grad=True))
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_numbers_have_one_dimension_to_permute() -> None:
    model = datagrad_ext.accelerate(Calling(lambda x: x.sum().transpose(0, -1).movedim(0, -1).t()))
    assert model(torch.rand(3, 4, requires_grad=True)).shape == ()
