"""`python -m datagrad_ext check` on models of a user's own: equal, different, impossible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext.__main__ import main

MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, width), nn.Softplus(), nn.Dropout(0.3), nn.Linear(width, 4))

    def forward(self, x):
        return self.body(x)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x, label):
        h = torch.relu(self.linear(x * self.table(label)))
        return {"h": h, "parts": [h.square(), label]}


class factories:
    @staticmethod
    def half_frozen(depth=1):
        net = nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)], nn.ReLU(), nn.Linear(5, 2))
        net[0].weight.requires_grad_(False)
        return net


instance = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
number = 3


def broken():
    raise ValueError("no weights at hand")


def not_a_model():
    return [1]


class Integers(nn.Module):
    def forward(self, x):
        return x.long()


class Singular(nn.Module):
    def forward(self, x):
        return (x * 0).square().sum(1).sqrt()
"""


@pytest.fixture(autouse=True)
def folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder holds the user's module; it is forgotten afterwards."""
    (tmp_path / "user_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("user_models", None)


EQUAL = {
    "mlp with dropout": (["user_models:Net", "--input", "7,5"], ["body.0.weight", "body.3.bias", "Linear"]),
    "keyword arguments": (["user_models:Net", "--kwargs", '{"width": 9}', "--input", "7,5"], ["7×9"]),
    "conv with batch norm": (["user_models:Conv", "--input", "6,3,8,8"], ["norm.running_var", "conv.bias"]),
    "two inputs, outputs in a dict": (
        ["user_models:Conditional", "--input", "6,5", "--input", "6:int7"],
        ["input 0", "table.weight"],
    ),
    "a factory inside a class": (["user_models:factories.half_frozen", "--input", "6,5"], ["2.weight"]),
    "a module object": (["user_models:instance", "--input", "4,5"], ["0.weight"]),
}


@pytest.mark.parametrize(("arguments", "words"), EQUAL.values(), ids=EQUAL)
def test_equal_models(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--model", *arguments]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    for word in [*words, "float64 train", "float32 eval (PyTorch)", "equal: every gradient"]:
        assert word in printed


class _Scaled(nn.Module):
    """The value of a model, with gradients that are off by one part in a million."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        y = self.model(*inputs)
        return y.detach() + 1.000001 * (y - y.detach())

    def named_parameters(self, *args: object, **kwargs: object) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def named_buffers(self, *args: object, **kwargs: object) -> Iterator[tuple[str, Tensor]]:
        return self.model.named_buffers()


def _scaled(model: nn.Module) -> nn.Module:
    return _Scaled(model).train(model.training)


def _silent(model: nn.Module) -> nn.Module:
    """One parameter gets no gradient."""
    list(model.parameters())[-1].requires_grad_(False)
    return model


def _poisoned(model: nn.Module) -> nn.Module:
    """NaN in a gradient."""
    next(iter(model.parameters())).register_hook(lambda gradient: gradient * torch.nan)
    return model


def _forgetful(model: nn.Module) -> nn.Module:
    """Running statistics are not updated."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    return model


def _failing(model: nn.Module) -> nn.Module:
    model.forward = lambda *inputs: inputs[0].no_such_method()  # type: ignore[method-assign]
    return model


WRONG = {
    "scaled": (_scaled, "conv.weight: error 1.0e-06, allowed 1.0e-09"),
    "no gradient": (_silent, "head.bias: error inf"),
    "NaN": (_poisoned, "conv.weight: error nan"),
    "buffer": (_forgetful, "float32 train, loss + L1, norm.running_mean: error"),
    "exception": (_failing, "only the accelerated model fails: AttributeError"),
}


@pytest.mark.parametrize(("accelerate", "line"), WRONG.values(), ids=WRONG)
def test_a_wrong_acceleration_is_found(
    accelerate: Callable[[nn.Module], nn.Module],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datagrad_ext, "accelerate", accelerate)
    assert main(["check", "--model", "user_models:Conv", "--input", "6,3,8,8"]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERENT from plain PyTorch" in printed
    assert line in printed


IMPOSSIBLE = {
    "no colon": (["user_models", "--input", "4,5"], "module:callable expected"),
    "no such module": (["no_such_module:Net", "--input", "4,5"], "module no_such_module cannot be imported"),
    "no such name": (["user_models:Nett", "--input", "4,5"], "no attribute 'Nett'"),
    "not callable": (
        ["user_models:number", "--input", "4,5"],
        "a callable or a torch.nn.Module expected, found int",
    ),
    "not a model": (["user_models:not_a_model", "--input", "4,5"], "a torch.nn.Module expected"),
    "raises": (["user_models:broken", "--input", "4,5"], "ValueError: no weights at hand"),
    "arguments": (
        ["user_models:Net", "--kwargs", '{"depth": 2}', "--input", "4,5"],
        "give its arguments with --kwargs",
    ),
    "not JSON": (["user_models:Net", "--kwargs", "width=9", "--input", "4,5"], "JSON expected"),
    "not an object": (["user_models:Net", "--kwargs", "[9]", "--input", "4,5"], "a JSON object expected"),
    "not sizes": (["user_models:Net", "--input", "4x5"], "--input 4x5: sizes separated by commas expected"),
    "an empty batch": (["user_models:Net", "--input", "0,5"], "--input 0,5: sizes"),
    "no floating-point input": (["user_models:Net", "--input", "4,5:int3"], "no input is floating-point"),
    "wrong sizes": (
        ["user_models:Net", "--input", "4,6"],
        "inputs that plain PyTorch can differentiate twice",
    ),
    "too few inputs": (
        ["user_models:Conditional", "--input", "6,5"],
        "inputs that plain PyTorch can differentiate twice",
    ),
    "integer output": (["user_models:Integers", "--input", "4,5"], "no output is a floating-point tensor"),
    "no finite gradient": (["user_models:Singular", "--input", "4,5"], "gradient of input 0 is not finite"),
    "device": (["user_models:Net", "--input", "4,5", "--device", "mps"], "unknown device 'mps'"),
}


@pytest.mark.parametrize(("arguments", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_check_is_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--model", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_search_path_is_left_as_it_was() -> None:
    before = list(sys.path)
    main(["check", "--model", "user_models:Net", "--input", "4,6"])
    assert sys.path == before
