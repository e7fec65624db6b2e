"""Attacks against an independent implementation, their geometry, modes, warnings; robustness figures."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from cases import data
from oracle import difference
from torch import Tensor, nn

from datagrad_ext.attacks import GradientMaskingWarning, Robustness, evaluate_robustness, fgm, fgsm, pgd
from datagrad_ext.attacks.robustness import masking_signs

N, EPSILON = 12, 0.1
X = torch.rand(N, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 3


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 3))
        return nn.Sequential(*layers).double()


class Numpy:
    """The independent implementation: one sample at a time, the gradient by central differences, numpy arrays."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def gradient(self, x: Any, t: int) -> Any:
        shifts = 1e-6 * numpy.eye(x.size).reshape(-1, *x.shape)
        above, below = self.losses(x + shifts, t), self.losses(x - shifts, t)
        return ((above - below) / 2e-6).reshape(x.shape)

    def losses(self, points: Any, t: int) -> Any:
        with torch.no_grad():
            scores = self.model(torch.from_numpy(points)).numpy()
        return numpy.log(numpy.exp(scores).sum(1)) - scores[:, t]

    def attack(self, x: Any, t: int, norm: str, length: float, steps: int) -> Any:
        """`steps` steps, each projected onto the ball of radius EPSILON and onto [0, 1]."""
        moved = x.copy()
        for _ in range(steps):
            g = self.gradient(moved, t)
            step = numpy.sign(g) if norm == "linf" else g / numpy.linalg.norm(g)
            r = moved + length * step - x
            r = r.clip(-EPSILON, EPSILON) if norm == "linf" else r * min(1.0, EPSILON / numpy.linalg.norm(r))
            moved = (x + r).clip(0, 1)
        return moved


ATTACKS: dict[str, tuple[Callable[..., Tensor], str, float, int]] = {
    "fgsm": (fgsm, "linf", EPSILON, 1),
    "fgm": (fgm, "l2", EPSILON, 1),
    "pgd_linf": (functools.partial(pgd, steps=5, random_start=False), "linf", 2.5 * EPSILON / 5, 5),
    "pgd_l2": (functools.partial(pgd, norm="l2", steps=5, step_size=0.04, random_start=False), "l2", 0.04, 5),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_to_an_independent_implementation(name: str) -> None:
    attack, norm, length, steps = ATTACKS[name]
    found = attack(build(), X, T, EPSILON)
    other = Numpy(build())
    expected = [other.attack(x.numpy(), int(t), norm, length, steps) for x, t in zip(X, T, strict=True)]
    assert difference(found, torch.stack([torch.from_numpy(e) for e in expected])).elementwise <= 1e-7


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_pgd_stays_in_the_ball_and_in_the_range(norm: str, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(1)
    x = X.to(device, dtype)
    r = (pgd(build().to(device, dtype), x, T.to(device), 0.3, norm=norm, restarts=2) - x).flatten(1)
    order = float("inf") if norm == "linf" else 2
    lengths = torch.linalg.vector_norm(r, ord=order, dim=1)
    assert lengths.max() <= 0.3 * (1 + 1e-5)
    assert lengths.min() > 0.1
    assert r.dtype == dtype
    assert (x.flatten(1) + r).min() >= -1e-6
    assert (x.flatten(1) + r).max() <= 1 + 1e-6


def _mean_loss(x: Tensor) -> float:
    return F.cross_entropy(build().eval()(x), T).item()


def test_more_work_finds_worse_points() -> None:
    torch.manual_seed(1)
    clean, one = _mean_loss(X), _mean_loss(fgsm(build(), X, T, EPSILON))
    start, many = (
        _mean_loss(pgd(build(), X, T, EPSILON, restarts=1)),
        _mean_loss(pgd(build(), X, T, EPSILON, restarts=4)),
    )
    assert clean < one <= start + 1e-3
    assert start <= many + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_differ_and_follow_the_seed(norm: str) -> None:
    points = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        points.append(pgd(build(), X, T, EPSILON, norm=norm, steps=1, step_size=0.0))
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


def test_attacks_run_in_inference_mode() -> None:
    model = build()
    expected = fgsm(model, X, T, EPSILON)
    with torch.inference_mode():
        found = fgsm(model, X.clone(), T.clone(), EPSILON)
    assert torch.equal(found, expected)


def test_clip_may_differ_between_channels() -> None:
    low, high = torch.tensor([0.0, -1.0]).view(2, 1, 1), torch.tensor([1.0, 1.0]).view(2, 1, 1)
    found = fgsm(build(), X, T, 1.5, clip=(low, high))
    assert found[:, 0].min() == 0
    assert found[:, 1].min() < 0
    assert found.max() == 1
    assert fgsm(build(), X, T, 1.5, clip=None).max() > 1


def test_modes_and_buffers_are_given_back() -> None:
    model = build()
    model[1].eval()
    before = [b.clone() for b in model.buffers()]
    with torch.no_grad():
        first = fgsm(model, X, T, EPSILON)
    assert [m.training for m in model.children()] == [True, False, True, True, True, True]
    assert all(map(torch.equal, model.buffers(), before))
    assert torch.equal(first, fgsm(build().eval(), X, T, EPSILON))
    assert not first.requires_grad
    torch.manual_seed(0)
    assert not torch.equal(first, fgsm(model, X, T, EPSILON, eval_mode=False))


def test_the_data_gradient_of_a_mean_loss_is_that_of_the_samples() -> None:
    mean, each = (fgm(build(), X, T, 1e-3, loss=loss) for loss in (F.cross_entropy, _cross_entropies))
    assert difference(mean, each).elementwise <= 1e-12


def _cross_entropies(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


class Saturated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * x[:, 0, 0, :3]


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x).sqrt().flatten(1)[:, :3]


@pytest.mark.parametrize(("model", "what"), [(Saturated(), "exactly 0"), (Broken(), "not finite")])
def test_a_masked_gradient_warns(model: nn.Module, what: str) -> None:
    x = X.clone()
    x[:, 0, 0, :3] = F.one_hot(T, 3)
    with pytest.warns(GradientMaskingWarning, match=what):
        fgsm(model, x, T, EPSILON)


ERRORS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "epsilon": (ValueError, "epsilon must not be negative, got -1", lambda: fgsm(build(), X, T, -1)),
    "range": (ValueError, r"x has values from .* to .*, outside of clip=\(0.0, 1.0\)", lambda: fgm(
        build(), 3 * X - 1, T, 0.1)),
    "norm": (ValueError, "norm must be 'linf' or 'l2', got 'l1'", lambda: pgd(build(), X, T, 0.1, norm="l1")),
    "steps": (ValueError, "at least 1, got 0 and 1", lambda: pgd(build(), X, T, 0.1, steps=0)),
    "restarts": (ValueError, "would all be the same", lambda: pgd(build(), X, T, 0.1, restarts=2, random_start=False)),
    "mean loss": (ValueError, "needs the loss of each", lambda: pgd(
        build(), X, T, 0.1, restarts=2, loss=F.cross_entropy)),
    "integers": (TypeError, "floating-point data, got torch.uint8", lambda: fgsm(build(), X.byte(), T, 0.1)),
    "detached": (ValueError, "does not depend on x", lambda: fgsm(
        lambda x: x.detach().flatten(1)[:, :3], X, T, 0.1)),
    "empty": (ValueError, "the loader has no samples", lambda: evaluate_robustness(build(), [])),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_in_a_sentence(name: str) -> None:
    kind, message, code = ERRORS[name]
    with pytest.raises(kind, match=message):
        code()


# ---------------------------------------------------------------------------------------------- robustness


def test_robustness_counts_errors(tmp_path: Path) -> None:
    model = build()
    loader = [(X[:5], T[:5]), (X[5:], T[5:])]
    attacks = {"FGSM": fgsm, "L2": fgm}
    found = evaluate_robustness(model, loader, attacks, (0.05, 0.4))
    other = build().eval()
    share = lambda x: (other(x).argmax(1) != T).double().mean().item()  # noqa: E731
    assert found.samples == N
    assert found.clean_error == pytest.approx(share(X))
    for name, attack in attacks.items():
        expected = [share(attack(other, X, T, epsilon)) for epsilon in (0.05, 0.4)]
        assert found.errors[name] == pytest.approx(expected)
    assert model.training
    table = str(found).splitlines()
    assert table[0].split()[-6:] == ["ε", "=", "0.05", "ε", "=", "0.4"]
    assert [line.split()[0] for line in table[2:]] == ["FGSM", "L2"]
    found.plot(tmp_path / "error.png", title="error under attack")
    assert (tmp_path / "error.png").stat().st_size > 5000


def test_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install"):
        Robustness(1, 0.0, (0.1,), {"FGSM": (0.0,)}).plot(tmp_path / "error.png")


SIGNS = {
    "none": ({"FGSM": (0.3, 0.6), "PGD": (0.4, 0.7)}, []),
    "falling": ({"PGD": (0.6, 0.3)}, ["falls from 60.0% at ε = 0.1 to 30.0% at 0.2"]),
    "one step wins": ({"FGSM": (0.3, 0.7), "PGD": (0.3, 0.4)}, ["at ε = 0.2 one step"]),
    "chance": ({"FGSM": (0.3, 0.30), "PGD": (0.28, 0.27)}, []),
}


@pytest.mark.parametrize("name", SIGNS)
def test_signs_of_gradient_masking(name: str) -> None:
    errors, expected = SIGNS[name]
    found = masking_signs(Robustness(1000, 0.1, (0.1, 0.2), errors))
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_a_masked_model_warns() -> None:
    """An error that falls with ε: the attack jumps over the narrow bands in which the model errs."""

    class Bands(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).mean(1)
            return torch.stack([torch.sin(40 * s), -torch.sin(40 * s)], 1)

    x = torch.full((200, 1, 2, 2), 0.5, dtype=torch.float64) + 1e-3 * data(200, 1, 2, 2)
    t = Bands()(x).argmax(1)
    with pytest.warns(GradientMaskingWarning, match="falls from"):
        evaluate_robustness(Bands(), [(x, t)], {"FGSM": fgsm}, (0.06, 0.155))
