"""What an objective keeps from one call to the next changes no result.

Rows are changes between two calls; after each, what a fresh objective finds on a copy of the network is compared.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data, ids, mlp, network
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import DataGrad, Term, penalties
from datagrad_ext.objective import Ramp

CLASSES = 5


@dataclass
class Setting:
    """An objective, its network and a batch."""

    objective: DataGrad
    model: nn.Module
    x: Tensor
    target: Any

    def found(self) -> dict[str, Tensor]:
        """Every figure and every gradient of one call."""
        result = self.objective(self.model, self.x, self.target)
        leaves = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        leaves |= {"x": self.x} if self.x.requires_grad else {}
        bars = torch.autograd.grad(result.total, list(leaves.values()), allow_unused=True)
        figures = {"total": result.total.detach(), "mean": result.loss}
        for k, term in enumerate(result.terms):
            if term is not None:
                figures |= {f"R{k}": term.value, f"J{k}": term.data_gradient}
        return {**figures, **dict(zip(leaves, bars, strict=True))}

    def fresh(self) -> Setting:
        """The same with nothing kept."""
        objective = DataGrad(
            self.objective.loss, self.objective.terms, self.objective.estimator, self.objective.loss_weight
        )
        objective.step = self.objective.step
        model = copy.deepcopy(self.model)
        return Setting(objective, model, self.x.detach().clone().requires_grad_(self.x.requires_grad), self.target)


def _setting(loss: Any = F.cross_entropy, weight: Any = 0.3, every: int = 1) -> Setting:
    return _setting_of(mlp(), loss, weight, every)


def _evaluated() -> Setting:
    """A network with batch norms in evaluation mode, which are folded."""
    return _setting_of(network("mlp_batch_norms_eval").build())


def _setting_of(model: nn.Module, loss: Any = F.cross_entropy, weight: Any = 0.3, every: int = 1) -> Setting:
    model = datagrad_ext.accelerate(model.double())
    x = data(6, next(model.parameters()).shape[1], seed=3)
    return Setting(DataGrad(loss, Term(weight, penalties.l2_squared, every=every)), model, x, torch.arange(6) % CLASSES)


def _change(name: str, value: Any) -> Callable[[Setting], None]:
    return lambda s: setattr(s, name, value(s))


def _of_objective(name: str, value: Any) -> Callable[[Setting], None]:
    return lambda s: setattr(s.objective, name, value(s))


def _freeze(s: Setting) -> None:
    next(s.model.parameters()).requires_grad_(False)


def _hook(s: Setting) -> None:
    s.model[0].register_forward_hook(lambda module, inputs, output: 2 * output)  # type: ignore[index]


def _replace_layer(s: Setting) -> None:
    s.model[0] = nn.Linear(s.x.shape[1], s.model[0].out_features).double()  # type: ignore[index,operator]


def _other_statistics(s: Setting) -> None:
    s.model[6].running_mean = torch.full_like(s.model[6].running_mean, 0.7)  # type: ignore[index]


def _no_statistics(s: Setting) -> None:
    s.model[1].running_mean = s.model[1].running_var = None  # type: ignore[index]


def _step_in_training(s: Setting) -> None:
    s.model.train()
    s.found()
    s.model.eval()


def _smooth(s: Setting) -> None:
    s.objective.loss.label_smoothing = 0.4  # type: ignore[union-attr]


@dataclass(frozen=True)
class Change:
    """What is done between the calls, on which setting."""

    name: str
    apply: Callable[[Setting], None]
    make: Callable[[], Setting] = _setting


CHANGES = [
    Change("nothing", lambda s: None),
    Change("fewer samples", lambda s: (setattr(s, "x", s.x[:4]), setattr(s, "target", s.target[:4]))[0]),
    Change("a target of probabilities", _change("target", lambda s: F.one_hot(s.target, CLASSES).double())),
    Change("x requires a gradient", _change("x", lambda s: s.x.clone().requires_grad_())),
    Change("another model", _change("model", lambda s: datagrad_ext.accelerate(mlp().double()))),
    Change("a model that is not accelerated", _change("model", lambda s: mlp().double())),
    Change("another layer", _replace_layer),
    Change("a hook", _hook),
    Change("a frozen parameter", _freeze),
    Change("evaluation mode", lambda s: s.model.eval() and None),
    Change("another weight of the loss", _of_objective("loss_weight", lambda s: 0.5)),
    Change("another loss", _of_objective("loss", lambda s: lambda y, t: y.square().sum(1))),
    Change("other terms", _of_objective("terms", lambda s: (Term(0.2), Term(0.1, penalties.Centred(1.0))))),
    Change("no terms", _of_objective("terms", lambda s: ())),
    Change("another step of a schedule", _of_objective("step", lambda s: 7), lambda: _setting(weight=Ramp(1.0, 9))),
    Change("a lazy term, which rests by turns", lambda s: None, lambda: _setting(every=2)),
    Change("an option of a loss that is a module", _smooth, lambda: _setting(nn.CrossEntropyLoss())),
    Change("running statistics in place", lambda s: s.model[1].running_var.mul_(3), _evaluated),  # type: ignore[index]
    Change("other running statistics", _other_statistics, _evaluated),
    Change("no running statistics", _no_statistics, _evaluated),
    Change("a frozen weight of a norm", lambda s: s.model[1].weight.requires_grad_(False), _evaluated),  # type: ignore[index]
    Change("a step in training between two in evaluation", _step_in_training, _evaluated),
    Change("one norm in training", lambda s: s.model[1].train(), _evaluated),  # type: ignore[index]
]


@pytest.mark.parametrize("change", CHANGES, ids=ids)
def test_a_change_between_two_calls_is_seen(change: Change) -> None:
    setting = change.make()
    for _ in range(3):
        setting.found()
    change.apply(setting)
    for _ in range(3):
        expected, actual = setting.fresh().found(), setting.found()
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_it_keeps_no_network_alive() -> None:
    setting = _setting()
    for _ in range(3):
        setting.found()
    alive = [weakref.ref(setting.model), *map(weakref.ref, setting.model.parameters())]
    setting.model = nn.Identity()
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_copies_and_pickles_begin_anew() -> None:
    setting = _setting()
    setting.found()
    setting.objective.step = 4
    for other in (copy.deepcopy(setting.objective), pickle.loads(pickle.dumps(setting.objective))):
        assert other.step == 4
        assert other(setting.model, setting.x, setting.target).total == setting.found()["total"]


def test_threads_share_an_objective() -> None:
    """Two networks and two batches by turns, each thread its own."""
    first, second = _setting(), _setting()
    second.objective, second.x, second.target = first.objective, second.x[:3], second.target[:3]
    expected = [s.fresh().found()["total"] for s in (first, second)]

    def totals(s: Setting) -> list[Tensor]:
        return [s.found()["total"] for _ in range(50)]

    with ThreadPoolExecutor(2) as pool:
        for total, found in zip(expected, pool.map(totals, (first, second)), strict=True):
            torch.testing.assert_close(torch.stack(found), total.expand(50), rtol=1e-12, atol=0)
