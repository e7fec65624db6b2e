"""datagrad_ext.functional against torch.nn.functional and against finite differences."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from oracle import assert_equal, check, leaf
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import datagrad_ext
from datagrad_ext import functional as ours


@dataclass(frozen=True)
class Op:
    """A call: `name`(tensors of these shapes, *fixed, **options); the first tensor is x, the others are θ."""

    label: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = field(default_factory=dict)
    fixed: tuple[Any, ...] = ()

    def tensors(self, device: str) -> list[Tensor]:
        return [data(*shape, seed=k + 3).to(device) for k, shape in enumerate(self.shapes)]

    def call(self, library: Any, tensors: list[Tensor]) -> Tensor:
        fixed = [t.to(tensors[0].device) if isinstance(t, Tensor) else t for t in self.fixed]
        return getattr(library, self.name)(*tensors, *fixed, **self.options)


_CLASSES, _WEIGHT = torch.tensor([2, 0, 3]), torch.tensor([0.3, 1.0, 2.0, 0.7], dtype=torch.float64)
_SHARES = torch.softmax(data(3, 4, seed=9), 1)
OPS = [
    Op("linear", "linear", ((3, 4), (5, 4), (5,))),
    Op("linear_no_bias", "linear", ((2, 3, 4), (5, 4))),
    Op("conv1d", "conv1d", ((2, 4, 6), (4, 2, 3), (4,)), dict(stride=2, padding=1, groups=2)),
    Op("conv1d_same", "conv1d", ((2, 2, 6), (3, 2, 3)), dict(padding="same", dilation=2)),
    Op("conv1d_positional", "conv1d", ((2, 2, 6), (3, 2, 3), (3,)), fixed=(2, 1, 1, 1)),
    Op("conv2d", "conv2d", ((2, 2, 4, 5), (3, 2, 2, 3), (3,)), dict(stride=(1, 2), padding=(0, 1))),
    Op("conv2d_depthwise", "conv2d", ((2, 2, 4, 4), (4, 1, 3, 3), (4,)), dict(groups=2, padding=1)),
    Op("conv2d_valid", "conv2d", ((1, 2, 4, 4), (2, 2, 2, 2)), dict(padding="valid", dilation=2)),
    Op("conv3d", "conv3d", ((1, 2, 3, 3, 3), (2, 2, 2, 2, 2), (2,)), dict(padding=1, stride=2)),
    Op("layer_norm", "layer_norm", ((3, 5),), dict(normalized_shape=[5])),
    Op("layer_norm_last_two", "layer_norm", ((2, 3, 4),), dict(normalized_shape=(3, 4), eps=0.2)),
    Op("group_norm", "group_norm", ((3, 4, 2),), dict(num_groups=2)),
    Op("instance_norm", "instance_norm", ((2, 3, 4),), dict(eps=0.1)),
    Op("batch_norm", "batch_norm", ((4, 3),), dict(running_mean=None, running_var=None, training=True)),
    Op("relu", "relu", ((3, 5),)),
    Op("leaky_relu", "leaky_relu", ((3, 5),)),
    Op("leaky_relu_slope", "leaky_relu", ((2, 2, 3),), dict(negative_slope=0.3)),
    Op("softplus", "softplus", ((3, 5),)),
    Op("softplus_beta", "softplus", ((3, 5),), dict(beta=2.0, threshold=3.0)),
    Op("tanh", "tanh", ((3, 5),)),
    Op("sigmoid", "sigmoid", ((3, 5),)),
    Op("elu", "elu", ((3, 5),)),
    Op("elu_alpha", "elu", ((3, 5),), dict(alpha=0.3)),
    Op("silu", "silu", ((3, 5),)),
    Op("gelu", "gelu", ((3, 5),)),
    Op("gelu_tanh", "gelu", ((3, 5),), dict(approximate="tanh")),
    Op("cross_entropy", "cross_entropy", ((3, 4),), fixed=(_CLASSES,)),
    Op("cross_entropy_sum", "cross_entropy", ((3, 4),), dict(reduction="sum"), (_CLASSES,)),
    Op("cross_entropy_none", "cross_entropy", ((3, 4),), dict(reduction="none"), (_CLASSES,)),
    Op("cross_entropy_smoothed", "cross_entropy", ((3, 4),), dict(label_smoothing=0.2), (_CLASSES,)),
    Op("cross_entropy_shares", "cross_entropy", ((3, 4),), fixed=(_SHARES,)),
    Op(
        "cross_entropy_shares_smoothed",
        "cross_entropy",
        ((3, 4),),
        dict(label_smoothing=0.1),
        (_SHARES * 1.5,),
    ),
    Op("cross_entropy_ignore", "cross_entropy", ((3, 4),), dict(ignore_index=0), (_CLASSES,)),
    Op("cross_entropy_weight", "cross_entropy", ((3, 4),), dict(weight=_WEIGHT), (_CLASSES,)),
    Op("cross_entropy_pixels", "cross_entropy", ((2, 4, 3),), fixed=(torch.tensor([[0, 1, 2], [3, 0, 0]]),)),
    Op("cross_entropy_one_sample", "cross_entropy", ((4,),), fixed=(torch.tensor(2),)),
]


def _id(op: Op) -> str:
    return op.label


def _options_on(op: Op, device: str) -> Op:
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in op.options.items()}
    return Op(op.label, op.name, op.shapes, moved, op.fixed)


def _data_gradient(op: Op, library: Any, x: Tensor, *theta: Tensor) -> Tensor:
    y = op.call(library, [x, *theta])
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return torch.autograd.grad((y + 0.1 * y.square() * weights).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("op", OPS, ids=_id)
def test_gradcheck(op: Op, device: str) -> None:
    op = _options_on(op, device)
    assert gradcheck(lambda *t: op.call(ours, list(t)), [leaf(t) for t in op.tensors(device)])


@pytest.mark.parametrize("op", OPS, ids=_id)
def test_gradcheck_of_the_data_gradient(op: Op, device: str) -> None:
    """Second order on the fast path: derivatives of J by x and every parameter."""
    op = _options_on(op, device)
    assert gradcheck(lambda *t: _data_gradient(op, ours, *t), [leaf(t) for t in op.tensors(device)])


@pytest.mark.parametrize("op", OPS, ids=_id)
def test_gradgradcheck_of_the_input(op: Op, device: str) -> None:
    op = _options_on(op, device)
    x, *theta = op.tensors(device)
    assert gradgradcheck(lambda v: op.call(ours, [v, *theta]), [leaf(x)])


@pytest.mark.filterwarnings("ignore::datagrad_ext.ReferencePathWarning")
@pytest.mark.parametrize("op", OPS, ids=_id)
def test_gradgradcheck_of_everything(op: Op, device: str) -> None:
    op = _options_on(op, device)
    assert gradgradcheck(lambda *t: op.call(ours, list(t)), [leaf(t) for t in op.tensors(device)])


@pytest.mark.parametrize("op", OPS, ids=_id)
def test_equal_to_torch(op: Op, device: str) -> None:
    """Value, gradients, data gradient and its gradients."""
    op = _options_on(op, device)

    def results(library: Any) -> dict[str, Tensor | None]:
        leaves = [leaf(t) for t in op.tensors(device)]
        y = op.call(library, leaves)
        found = {f"grad {k}": g for k, g in enumerate(torch.autograd.grad(y.square().sum(), leaves))}
        J = _data_gradient(op, library, *leaves)
        J.square().sum().backward()
        return {"y": y, "J": J} | found | {f"grad of penalty {k}": t.grad for k, t in enumerate(leaves)}

    assert_equal(results(ours), results(F))


@pytest.mark.parametrize("name", sorted({op.name for op in OPS}))
def test_signature_is_torchs(name: str) -> None:
    """Every argument of ours is torch's, by the same name."""
    try:
        expected = inspect.signature(getattr(F, name))
    except (
        ValueError
    ):  # torch's is a builtin without a signature: linear(input, weight, bias=None) and the like
        pytest.skip(f"torch.nn.functional.{name} does not tell its signature")
    left_out = {
        "size_average",
        "reduce",
        "inplace",
    }  # the first two deprecated in torch, the last without meaning here
    assert [p for p in inspect.signature(getattr(ours, name)).parameters if p not in left_out] == [
        p for p in expected.parameters if p not in left_out
    ]


class Calling(nn.Module):
    """A forward that is one function."""

    def __init__(self, call: Callable) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class HandWritten(nn.Module):
    """A model written with functional calls: residual, two convolutions, gelu, a head."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.library = library
        self.first, self.second = (
            nn.Parameter(data(4, 3, 3, 3) / 3),
            nn.Parameter(data(4, 4, 3, 3, seed=2) / 3),
        )
        self.bias, self.head = nn.Parameter(data(4, seed=3)), nn.Parameter(data(5, 4, seed=4))

    def forward(self, x: Tensor) -> Tensor:
        f = self.library
        h = f.gelu(f.conv2d(x, self.first, self.bias, padding=1))
        h = h + f.leaky_relu(f.conv2d(h, self.second, padding=1), 0.2)
        return f.linear(torch.sin(h.mean((2, 3))), self.head)


def _cross_entropy_and_penalty(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    loss = model.library.cross_entropy(model(x), torch.arange(len(x), device=x.device))
    (J,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + J.abs().sum() + J.square().sum()).backward()
    return {"loss": loss, "J": J}


def _r1(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    (J,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    J.square().sum().backward()
    return {"J": J}


def _swap(library: Any) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        model.library = library
        return model

    return change


@pytest.mark.parametrize("code", [_cross_entropy_and_penalty, _r1], ids=["cross_entropy", "r1"])
def test_hand_written_model(code: Callable, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        HandWritten, "__deepcopy__", lambda self, memo: HandWritten(self.library), raising=False
    )
    check(HandWritten(F), [data(3, 3, 5, 5)], code, _swap(ours), device=device)


@pytest.mark.parametrize("code", [_r1], ids=["r1"])
def test_hand_written_model_accelerated(code: Callable, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate() over a forward that already calls datagrad_ext.functional."""
    monkeypatch.setattr(
        HandWritten, "__deepcopy__", lambda self, memo: HandWritten(self.library), raising=False
    )
    model = lambda m: datagrad_ext.accelerate(_swap(ours)(m))  # noqa: E731
    check(HandWritten(F), [data(3, 3, 5, 5)], code, model, device=device)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_without_gradients(name: str) -> None:
    x = data(3, 4)
    assert not getattr(ours, name)(x).requires_grad
    with torch.no_grad():
        assert torch.equal(getattr(ours, name)(leaf(x)), getattr(ours, name)(x))
    with torch.inference_mode():
        assert getattr(ours, name)(x).is_inference()


OPTIONS = {
    "gelu": lambda f: f.gelu(leaf(data(3, 4)), approximate="exact"),
    "padding": lambda f: f.conv1d(leaf(data(2, 3, 5)), data(4, 3, 3), padding="full"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_does_not_exist_is_refused_as_in_pytorch(name: str) -> None:
    with pytest.raises(RuntimeError) as expected:
        OPTIONS[name](F)
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        OPTIONS[name](ours)
    model = datagrad_ext.accelerate(Calling(lambda x: OPTIONS[name](F)))
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        model(leaf(data(2)))
