"""What a watch remembers changes none of its answers: rows are changes of a module between two looks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from datagrad_ext import _native, watch
from datagrad_ext.watch import Watch


class Scaled(nn.Module):
    """A module of a user's, with attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.scale, self.table, self.sizes, self.mixed = 2.0, {"a": [1]}, [1, 2], (1, [2])
        self.tensor, self.options = torch.ones(2), SimpleNamespace(rate=1.0)
        self.twice = nn.Upsample(size=[4, 4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


def _hook(*_: Any) -> None:
    pass


def _set(path: str, value: Any) -> Callable[[Scaled], None]:
    *parents, name = path.split(".")

    def change(m: Scaled) -> None:
        setattr(m.get_submodule(".".join(parents)), name, value)

    return change


def _new_hooks(m: Scaled) -> None:
    m.inner[0]._forward_hooks = type(m.inner[0]._forward_hooks)()
    m.inner[0].register_forward_hook(_hook)


def _reordered(m: Scaled) -> None:
    m.inner._modules = dict(reversed(m.inner._modules.items()))


CHANGES: dict[str, Callable[[Scaled], Any]] = {
    "nothing": lambda m: None,
    "the same value": _set("scale", 2.0),
    "a number": _set("scale", 3.0),
    "a new attribute": _set("other", 1),
    "an attribute less": lambda m: delattr(m, "scale"),
    "a list's element": lambda m: m.sizes.append(3),
    "an element in a dict's list": lambda m: m.table["a"].append(2),
    "an element in a tuple's list": lambda m: m.mixed[1].append(2),
    "a list by an equal one": _set("sizes", [1, 2]),
    "a hyper-parameter": _set("inner.1.eps", 1e-3),
    "a hyper-parameter's element": lambda m: m.twice.size.append(4),
    "the mode of all": lambda m: m.eval(),
    "the mode of one": lambda m: m.inner[2].eval(),
    "the mode of the outermost": _set("training", False),
    "a forward hook": lambda m: m.inner[0].register_forward_hook(_hook),
    "a hook before": lambda m: m.inner[0].register_forward_pre_hook(_hook),
    "a backward hook": lambda m: m.inner[0].register_full_backward_hook(_hook),
    "a backward hook before": lambda m: m.inner[0].register_full_backward_pre_hook(_hook),
    "a hook in a new table": _new_hooks,
    "a module": lambda m: m.inner.append(nn.ReLU()),
    "another module": lambda m: m.inner.__setitem__(1, nn.BatchNorm1d(3)),
    "a module less": lambda m: m.inner.__delitem__(2),
    "modules in another order": _reordered,
    "another parameter": lambda m: setattr(m.inner[0], "bias", nn.Parameter(torch.ones(3))),
    "no parameter": lambda m: setattr(m.inner[0], "bias", None),
    "a buffer's gradient": lambda m: m.inner[1].running_mean.requires_grad_(),
    "another buffer": lambda m: setattr(m.inner[1], "running_mean", torch.ones(3)),
    "no buffer": lambda m: setattr(m.inner[1], "running_mean", None),
    "a new buffer": lambda m: m.register_buffer("shift", torch.ones(3)),
    "a forward on the instance": lambda m: setattr(m.inner[2], "forward", lambda x: x),
    "a class inside": lambda m: setattr(m.inner[2], "__class__", nn.AlphaDropout),
    "a tensor's gradient": lambda m: m.tensor.requires_grad_(),
    "an attribute of data": lambda m: setattr(m.options, "rate", 2.0),
    "another dtype": lambda m: m.double(),
    "another class": lambda m: setattr(m, "__class__", type("Other", (Scaled,), {})),
}


@pytest.mark.parametrize("look_at_once", ["compiled", "python"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_is_remembered_changes_no_answer(
    change: Callable[[Scaled], Any], look_at_once: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is that of a watch which was never asked before."""
    for function in ("same_objects", "same_gradients"):
        name = function if look_at_once == "compiled" else f"_{function}"
        monkeypatch.setattr(watch, function, getattr(_native, name))
    m = Scaled()
    asked, never_asked = Watch(m), Watch(m)
    before = asked.look(m)
    assert asked.look(m) is before, "nothing changed, and the state was made again"
    change(m)
    expected = never_asked.look(m)
    assert asked.look(m) == expected
    assert asked.look(m) == expected, "the second look differs from the first one"


def test_a_state_does_not_change_with_the_module() -> None:
    m = Scaled()
    asked = Watch(m)
    before = asked.look(m)
    m.twice.size.append(4)
    after = asked.look(m)
    assert before != after


def test_no_reference_to_the_outermost_module() -> None:
    m = Scaled()
    asked = Watch(m)
    asked.look(m)
    gone = weakref.ref(m)
    gc.disable()
    try:
        del m
        assert gone() is None
    finally:
        gc.enable()
