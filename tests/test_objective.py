"""The DataGrad objective against the same objective written in plain autograd code, float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from oracle import difference
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import CentralDifference, DataGrad, Exact, FiniteDifference, Term, penalties
from datagrad_ext.objective import AscentWarning, Ramp, Result, components, lazy_adam

ascent = pytest.mark.filterwarnings("ignore::datagrad_ext.objective.AscentWarning")
reference_path = pytest.mark.filterwarnings("ignore::datagrad_ext.ReferencePathWarning")
accelerated = pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])
N = 5
X, LABELS, CUES = data(N, 6), torch.tensor([2, 0, 1, 1, 0]), data(N, 2, seed=5)


class Heads(nn.Module):
    """A trunk of two layers, a head of three classes and one of two cues."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Softplus())
        self.classes, self.cues = nn.Linear(7, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.classes(h), self.cues(h)


class Regularised(nn.Module):
    """Dropout, BatchNorm, a spectral norm: what a second pass must not draw, count or iterate again."""

    def __init__(self) -> None:
        super().__init__()
        first = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
        self.body = nn.Sequential(first, nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x),)


def build(make: Callable[[], nn.Module] = Heads, accelerate: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    return datagrad_ext.accelerate(model) if accelerate else model


def classes(output: Any, target: Any) -> Tensor:
    return F.cross_entropy(output[0], target[0], reduction="none")


def classes_mean(output: Any, target: Any) -> Tensor:
    return F.cross_entropy(output[0], target[0])


def cues(output: Any, target: Any) -> Tensor:
    return F.mse_loss(output[1], target[1], reduction="none")


def gradients(model: nn.Module, total: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def run(objective: DataGrad, model: nn.Module, x: Any = X) -> tuple[Result, list[Tensor]]:
    torch.manual_seed(1)
    device = next(model.parameters()).device
    result = objective(model, x.to(device), (LABELS.to(device), CUES.to(device)))
    return result, gradients(model, result.total)


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in ts]) for ts in (actual, expected))
    return difference(a, b).norm


def own(loss: Callable[[Any], Tensor], output: Any, x: Tensor) -> Tensor:
    """Row n: the gradient of sample n's own loss."""
    return torch.autograd.grad(loss(output).sum(), x, create_graph=True)[0]


# ------------------------------------------------------------------------------------------- exact estimator


@dataclass(frozen=True)
class Row:
    """An objective, and its total in plain code: plain(model, x) -> scalar."""

    name: str
    objective: Callable[[], DataGrad]
    plain: Callable[[Heads, Tensor], Tensor]


def _ce(model: Heads, x: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(model(x)[0], LABELS, reduction="none")
    return losses.mean(), torch.autograd.grad(losses.sum(), x, create_graph=True)[0]


def _l1(model: Heads, x: Tensor) -> Tensor:
    loss, J = _ce(model, x)
    return loss + 0.3 * J.abs().sum() / N


def _l2_squared(model: Heads, x: Tensor) -> Tensor:
    loss, J = _ce(model, x)
    return 0.5 * loss + 0.3 * J.square().sum() / N


def _multi_task(model: Heads, x: Tensor) -> Tensor:
    y, c = model(x)
    J = torch.autograd.grad(F.cross_entropy(y, LABELS, reduction="sum"), x, create_graph=True)[0]
    K = torch.autograd.grad((c - CUES).square().mean(1).sum(), x, create_graph=True)[0]
    return F.cross_entropy(y, LABELS) + 0.2 * J.norm(dim=1).mean() + 0.4 * K.abs().amax(1).mean()


def _only(model: Heads, x: Tensor) -> Tensor:
    J = torch.autograd.grad(model(x)[1][:, 0].sum(), x, create_graph=True)[0]
    return 2.0 * (J.norm(dim=1) - 1).square().mean()


def _jacobian(model: Heads, x: Tensor) -> Tensor:
    y = model(x)[0]
    rows = [torch.autograd.grad(y[:, k].sum(), x, create_graph=True)[0] for k in range(3)]
    return 0.1 * torch.stack(rows).square().sum() / N


def _activation(model: Heads, x: Tensor) -> Tensor:
    h = model.trunk[1](model.trunk[0](x))
    y = model.classes(model.trunk[3](model.trunk[2](h)))
    J = torch.autograd.grad(F.cross_entropy(y, LABELS, reduction="sum"), h, create_graph=True)[0]
    return F.cross_entropy(y, LABELS) + 0.3 * J.square().sum() / N


def _named_head(model: Heads, x: Tensor) -> Tensor:
    J = torch.autograd.grad(model(x)[1].sum(), x, create_graph=True)[0]
    return 0.3 * J.norm(dim=1).mean()


ROWS = [
    Row("l1", lambda: DataGrad(classes, Term(0.3)), _l1),
    Row("l1_of_a_mean_loss", lambda: DataGrad(classes_mean, Term(0.3)), _l1),
    Row("l2_squared", lambda: DataGrad(classes, [Term(0.3, penalties.l2_squared)], loss_weight=0.5), _l2_squared),
    Row(
        "l2_squared_of_a_mean_loss",
        lambda: DataGrad(classes_mean, Term(0.3, penalties.l2_squared), loss_weight=0.5),
        _l2_squared,
    ),
    Row("no_term", lambda: DataGrad(classes), lambda model, x: F.cross_entropy(model(x)[0], LABELS)),
    Row(
        "multi_task",
        lambda: DataGrad(classes, [Term(0.2, penalties.l2), Term(0.4, penalties.linf, loss=cues)]),
        _multi_task,
    ),
    Row(
        "penalty_alone",
        lambda: DataGrad(None, Term(2.0, penalties.Centred(), loss=lambda output, target: output[1][:, 0])),
        _only,
    ),
    Row("own_callable", lambda: DataGrad(classes, Term(0.3, lambda J: J.abs().sum(1))), _l1),
    Row(
        "tuple_of_losses",
        lambda: DataGrad(None, Term(0.1, penalties.l2_squared, lambda output, target: components(output[0]))),
        _jacobian,
    ),
    Row(
        "tuple_of_losses_of_a_named_head",
        lambda: DataGrad(None, Term(0.1, penalties.l2_squared, components, output="classes")),
        _jacobian,
    ),
    Row("activation", lambda: DataGrad(classes, Term(0.3, penalties.l2_squared, inputs="trunk.1")), _activation),
    Row(
        "named_head",
        lambda: DataGrad(None, Term(0.3, penalties.l2, loss=lambda cue, target: cue.sum(1), output="cues")),
        _named_head,
    ),
]  # fmt: skip


@reference_path
@accelerated
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_exact_equals_plain_autograd(row: Row, accelerate: bool) -> None:
    model, plain = build(accelerate=accelerate), build()
    result, found = run(row.objective(), model)
    expected = row.plain(plain, X.clone().requires_grad_())  # type: ignore[arg-type]
    assert abs(result.total.item() - expected.item()) <= 1e-12 * abs(expected.item())
    assert error(found, gradients(plain, expected)) <= 1e-12


def test_gradients_of_a_differentiable_input_reach_it() -> None:
    model, base = build(), X.clone().requires_grad_()
    result = DataGrad(classes, Term(0.3))(model, 2 * base, (LABELS, CUES))
    plain_base = X.clone().requires_grad_()
    expected = _l1(model, 2 * plain_base)  # type: ignore[arg-type]
    assert (
        error(list(torch.autograd.grad(result.total, base)), list(torch.autograd.grad(expected, plain_base))) <= 1e-12
    )


def test_one_of_several_inputs() -> None:
    weight = data(6, 6, seed=3).requires_grad_()
    model = lambda a, b: (torch.tanh(a @ weight) * torch.tanh(b @ weight)).sum(1)  # noqa: E731
    term = Term(0.3, penalties.l2_squared, inputs=1)
    result = DataGrad(lambda y, target: y, term)(model, (X, X + 1))
    a, b = X, (X + 1).requires_grad_()
    y = model(a, b)
    expected = y.mean() + 0.3 * own(lambda y: y, y, b).square().sum() / N
    assert error(list(torch.autograd.grad(result.total, weight)), list(torch.autograd.grad(expected, weight))) <= 1e-12


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.head(torch.tanh(self.embedding(tokens)).mean(1)),)


def test_gradient_at_an_embedding_of_integers() -> None:
    tokens, model = torch.arange(2 * N).view(N, 2) % 9, build(Tokens)
    _, found = run(DataGrad(classes, Term(0.3, inputs="embedding")), model, tokens)
    e = model.embedding(tokens)
    losses = F.cross_entropy(model.head(torch.tanh(e).mean(1)), LABELS, reduction="none")
    expected = losses.mean() + 0.3 * own(lambda y: y, losses, e).abs().sum() / N
    assert error(found, gradients(model, expected)) <= 1e-12


# published term of the gradient G of a batch-mean loss, and the weight that it has here for λ = 1
CONVENTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "sum of L1": (lambda G: G.abs().sum(), penalties.l1, 1.0),
    "sum of L2": (lambda G: G.norm(dim=1).sum(), penalties.l2, 1.0),
    "sum of squares": (lambda G: G.square().sum(), penalties.l2_squared, 1 / N),
    "mean of squares": (lambda G: G.square().sum(1).mean(), penalties.l2_squared, 1 / N**2),
    "half the sum of squares": (lambda G: G.square().sum() / 2, penalties.l2_squared, 1 / (2 * N)),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_weights_of_other_conventions(name: str) -> None:
    published, penalty, weight = CONVENTIONS[name]
    model, x = build(), X.clone().requires_grad_()
    mean = classes_mean(model(x), (LABELS,))
    (G,) = torch.autograd.grad(mean, x, create_graph=True)
    _, found = run(DataGrad(classes, Term(weight, penalty)), model)
    assert error(found, gradients(model, mean + published(G))) <= 1e-12


# ------------------------------------------------------------------------------------ difference estimators

SMOOTH = {
    "l1": lambda: [Term(0.3)],
    "l2": lambda: [Term(0.3, penalties.l2)],
    "l2_squared": lambda: [Term(0.3, penalties.l2_squared)],
    "centred": lambda: [Term(0.3, penalties.Centred(0.5))],
    "along": lambda: [Term(0.3, penalties.Along(data(N, 6, seed=8)))],
    "activation": lambda: [Term(0.3, penalties.l2, inputs="trunk.1")],
    "two terms": lambda: [Term(0.3, penalties.l2), Term(0.1, penalties.l1, loss=cues)],
    "tuple of losses": lambda: [Term(0.1, penalties.l2_squared, lambda output, target: components(output[0]))],
}


@ascent
@reference_path
@accelerated
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("estimator", "order"), [(FiniteDifference, 1), (CentralDifference, 2)])
def test_order_of_convergence(estimator: Any, order: int, name: str, accelerate: bool) -> None:
    """Halving φ divides the error of the gradient by 2^order, towards the exact gradient."""
    model = build(accelerate=accelerate)
    exact, expected = run(DataGrad(classes, SMOOTH[name]()), model)
    errors = []
    for step in (2e-2, 1e-2):
        result, found = run(DataGrad(classes, SMOOTH[name](), estimator(step)), model)
        errors.append(error(found, expected))
        for ours, theirs in zip(result.terms, exact.terms, strict=True):
            assert difference(ours.value, theirs.value).norm <= 1e-12
            assert difference(ours.data_gradient, theirs.data_gradient).norm <= 1e-12
        assert abs(result.total.item() - exact.total.item()) <= 20 * step**order
    assert errors[1] <= 0.1
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def _random_state(device: str) -> Tensor:
    return torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()


@ascent
@accelerated
@pytest.mark.parametrize(("estimator", "order"), [(FiniteDifference, 1), (CentralDifference, 2)])
def test_two_passes_share_masks_and_state(estimator: Any, order: int, accelerate: bool, device: str) -> None:
    """With dropout, BatchNorm and a spectral norm in training mode, the estimate still converges to the exact one."""
    exact_model = build(Regularised, accelerate).to(device)
    _, expected = run(DataGrad(classes, Term(0.3, penalties.l2)), exact_model)
    after, errors = _random_state(device), []
    for step in (2e-3, 1e-3):
        model = build(Regularised, accelerate).to(device)
        _, found = run(DataGrad(classes, Term(0.3, penalties.l2), estimator(step)), model)
        assert torch.equal(_random_state(device), after)
        for (name, ours), theirs in zip(model.named_buffers(), exact_model.buffers(), strict=True):
            assert torch.equal(ours, theirs), name
        errors.append(error(found, expected))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def noisy(output: Any, target: Any) -> Tensor:
    return (output[0] * torch.randn_like(output[0])).sum(1)


def test_a_random_loss_draws_the_same_numbers_in_every_pass() -> None:
    terms = lambda: [Term(0.3, penalties.l2, loss=noisy), Term(0.1, penalties.l1, loss=lambda o, t: noisy(o, t))]  # noqa: E731
    model = build()
    (_, expected), (_, found) = (
        run(DataGrad(None, terms(), estimator), model) for estimator in (Exact(), CentralDifference(1e-4))
    )
    assert error(found, expected) <= 1e-6


@ascent
@pytest.mark.parametrize("inputs", [None, "trunk.1"])
def test_estimates_reach_what_the_input_was_computed_from(inputs: str | None) -> None:
    model, base = build(), X.clone().requires_grad_()
    found = []
    for estimator in (Exact(), CentralDifference(1e-4)):
        objective = DataGrad(classes, Term(0.3, penalties.l2, inputs=inputs), estimator)
        found.append(torch.autograd.grad(objective(model, 2 * base, (LABELS, CUES)).total, base)[0])
    assert difference(found[1], found[0]).norm <= 1e-6


def test_relative_step() -> None:
    model = build()
    _, expected = run(DataGrad(classes, Term(1e-4, penalties.l2), FiniteDifference(0.01 * X.norm().item())), model)
    y_norm = N**0.5  # of J / ‖J‖ for N samples
    relative = FiniteDifference(0.01 * y_norm, relative=True)
    _, found = run(DataGrad(classes, Term(1e-4, penalties.l2), relative), model)
    assert error(found, expected) <= 1e-10


def test_ascent_of_the_clean_loss_warns() -> None:
    with pytest.warns(AscentWarning, match="negative weight"):
        run(DataGrad(classes, Term(0.3), FiniteDifference(0.1)), build())


# ----------------------------------------------------------------------------------------------- properties


def _title(penalty: Any) -> str:
    return str(getattr(penalty, "__name__", type(penalty).__name__))


@pytest.mark.parametrize("estimator", [Exact(), FiniteDifference(0.5), CentralDifference(0.5)], ids=repr)
@pytest.mark.parametrize("penalty", [penalties.l1, penalties.l2, penalties.l2_squared, penalties.linf, penalties.Lp(3),
                                     penalties.Centred(), penalties.OneSided(), penalties.Match(torch.ones(6).double()),
                                     penalties.Directional(torch.eye(6).double())], ids=_title)  # fmt: skip
def test_finite_where_the_data_gradient_is_zero(estimator: Any, penalty: Any) -> None:
    model = build()
    nn.init.zeros_(model.classes.weight)  # type: ignore[union-attr, arg-type]
    result, found = run(DataGrad(classes, Term(0.3, penalty), estimator), model)
    assert not result.terms[0].data_gradient.any()
    assert all(g.isfinite().all() for g in [result.total, *found])


def test_result_is_detached_and_fit_for_logging() -> None:
    result, _ = run(DataGrad(classes, [Term(0.3, penalties.l2), Term(0.2, loss=cues)]), build())
    first = result.terms[0]
    assert not any(t.requires_grad for t in (result.loss, first.value, first.data_gradient, first.norms))
    assert difference(first.norms.mean(), first.value).norm <= 1e-12
    figures = result.scalars()
    assert list(figures) == ["total", "loss", "penalty_0", "norm_0", "penalty_1", "norm_1"]
    assert figures["total"] == pytest.approx(figures["loss"] + 0.3 * figures["penalty_0"] + 0.2 * figures["penalty_1"])


def test_without_gradients_the_figures_are_the_same_and_no_step_is_counted() -> None:
    objective, model = DataGrad(classes, Term(0.3)), build()
    expected = objective(model, X, (LABELS, CUES))
    with torch.no_grad():
        result = objective(model, X, (LABELS, CUES))
    assert objective.step == 1
    assert not result.total.requires_grad
    assert result.scalars() == pytest.approx(expected.scalars())


@pytest.mark.parametrize("estimator", [Exact(), FiniteDifference(0.5), CentralDifference(0.5)], ids=repr)
def test_an_empty_batch_is_nan_as_its_mean_is(estimator: Any) -> None:
    result = DataGrad(classes, Term(0.1), estimator)(build(), X[:0], (LABELS[:0], CUES[:0]))
    result.total.backward()
    assert result.total.isnan()
    assert result.terms[0].data_gradient.shape == (0, 6)


def test_inference_mode_gives_figures() -> None:
    model, objective = build(), DataGrad(classes, Term(0.3))
    expected = objective(model, X, (LABELS, CUES)).scalars()
    with torch.inference_mode():
        assert objective(model, X, (LABELS, CUES)).scalars() == pytest.approx(expected)


def test_lazy_terms_are_stronger_and_rarer() -> None:
    objective, model = DataGrad(classes, [Term(0.3), Term(0.1, penalties.l2_squared, every=4)]), build()
    weights = [[term and term.weight for term in run(objective, model)[0].terms] for _ in range(5)]
    assert weights == [[0.3, 0.4], [0.3, None], [0.3, None], [0.3, None], [0.3, 0.4]]


def test_a_step_without_any_term_is_a_zero_that_backward_accepts() -> None:
    objective = DataGrad(None, Term(1.0, loss=classes, every=2))
    objective.step = 1
    total = objective(build(), X, (LABELS, CUES)).total
    total.backward()
    assert total.item() == 0


def test_ramp() -> None:
    objective = DataGrad(classes, Term(Ramp(0.4, steps=4, start=0.2)))
    weights = [run(objective, build())[0].terms[0].weight for _ in range(6)]
    assert weights == pytest.approx([0.2, 0.25, 0.3, 0.35, 0.4, 0.4])


def test_lazy_adam_keeps_the_averages_as_long_as_before() -> None:
    settings = lazy_adam(2e-3, (0.5, 0.99), every=16)
    assert settings["lr"] == pytest.approx(2e-3 * 16 / 17)
    assert settings["betas"] == pytest.approx((0.5 ** (16 / 17), 0.99 ** (16 / 17)))
    assert lazy_adam(2e-3, (0.5, 0.99), every=1) == {"lr": 2e-3, "betas": (0.5, 0.99)}


def test_each_loss_and_data_gradient_is_computed_once() -> None:
    calls = []

    def counted(output: Any, target: Any) -> Tensor:
        calls.append(1)
        return classes(output, target)

    run(DataGrad(counted, [Term(0.3), Term(0.1, penalties.l2)]), build())
    assert len(calls) == 1


def test_the_model_keeps_no_hook() -> None:
    model = build()
    run(DataGrad(classes, Term(0.3, inputs="trunk.1")), model)
    assert not any(m._forward_hooks for m in model.modules())
    copy.deepcopy(model)


# --------------------------------------------------------------------------------------------------- errors


def _call(*arguments: Any, x: Any = X, model: Any = None, **options: Any) -> Callable[[], Any]:
    return lambda: DataGrad(*arguments, **options)(model or build(), x, (LABELS, CUES))


ERRORS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "loss not callable": (TypeError, "must be a callable", _call("mse")),
    "sum over the batch": (ValueError, "reduction='sum'", _call(nn.CrossEntropyLoss(reduction="sum"))),
    "sum over the batch in a partial": (ValueError, "reduction='sum'", _call(
        partial(F.cross_entropy, reduction="sum"), Term(1.0))),
    "loss is a class": (TypeError, r"give an object of it, MSELoss\(\)", _call(nn.MSELoss, Term(1.0))),
    "penalty is a class": (TypeError, "is the class Centred", lambda: Term(1.0, penalties.Centred)),
    "loss weight is a tensor": (TypeError, "multiply result.total", _call(
        classes, Term(1.0), loss_weight=torch.ones((), requires_grad=True))),
    "every is no whole number": (TypeError, "whole number of steps, got 1.5", lambda: Term(1.0, every=1.5)),
    "x is an array": (TypeError, "x must be a tensor, or a sequence .*, got ndarray", _call(
        classes, Term(1.0), x=X.numpy())),
    "x is a list of numbers": (TypeError, "got a list of list", _call(classes, Term(1.0), x=X.tolist())),
    "loss returns no tensor": (TypeError, "must return a tensor", _call(lambda output, target: 1.0)),
    "loss of another length": (ValueError, r"\[5, ...\] or a scalar mean, got \[3\]", _call(
        lambda o, t: o[0][0], Term(1.0))),
    "tuple as the main loss": (ValueError, "must be a tensor", _call(lambda o, t: components(o[0]))),
    "no loss": (ValueError, "needs the objective's loss", _call(None, Term(1.0))),
    "not a term": (TypeError, "Term objects, got float", _call(classes, [0.3])),
    "not an estimator": (TypeError, r"Exact\(\), FiniteDifference", _call(classes, Term(1.0), "exact")),
    "penalty not callable": (TypeError, "penalty must be a callable", lambda: Term(1.0, "l1")),
    "weight not a number": (TypeError, "weight must be a number", lambda: Term("1")),
    "penalty returns a scalar": (ValueError, r"shape \[5\], got \[\]", _call(
        classes, Term(1.0, lambda J: J.abs().sum()))),
    "penalty returns no tensor": (ValueError, "got float", _call(classes, Term(1.0, lambda J: 1.0))),
    "inputs of another kind": (TypeError, "name of a submodule, got Tensor", lambda: Term(1.0, inputs=X)),
    "no such input": (ValueError, r"got 1 input\(s\)", _call(classes, Term(1.0, inputs=2))),
    "no such submodule": (ValueError, "no submodule 'trunk.9'", _call(classes, Term(1.0, inputs="trunk.9"))),
    "submodule of a function": (TypeError, "must be a torch.nn.Module, got function", _call(
        classes, Term(1.0, inputs="trunk"), model=lambda x: (x, x))),
    "integer input": (TypeError, "floating-point input, got torch.int64", _call(classes, Term(1.0), x=LABELS)),
    "loss does not depend on x": (ValueError, "does not depend on input 0", _call(
        classes, Term(1.0, loss=lambda o, t: o[0].detach().sum(1)))),
    "negative step": (ValueError, "step must be positive, got -1", lambda: FiniteDifference(-1)),
    "every zero": (ValueError, "every must be at least 1", lambda: Term(1.0, every=0)),
    "ramp of no steps": (ValueError, "steps must be at least 1", lambda: Ramp(1.0, 0)),
    "lazy adam of no steps": (ValueError, "every must be at least 1", lambda: lazy_adam(1e-3, (0.9, 0.99), 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_in_a_sentence(name: str) -> None:
    kind, message, code = ERRORS[name]
    with pytest.raises(kind, match=message):
        code()


def test_an_activation_inside_an_accelerated_part_is_refused() -> None:
    model = build()
    datagrad_ext.accelerate(model.trunk)
    with pytest.raises(ValueError, match=r"output of 'trunk.1' in autograd's graph.*inside an accelerated one"):
        run(DataGrad(classes, [Term(0.1), Term(0.3, inputs="trunk.1")]), model)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle, self.pair = nn.Linear(6, 6), nn.Linear(6, 6), _Pair()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pair(self.layer(self.layer(x)))


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("name", "message"), [("layer", "ran twice"), ("idle", "did not run"), ("pair", "returns tuple")]
)
def test_submodules_that_cannot_be_meant(name: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DataGrad(classes, Term(1.0, inputs=name))(build(_Twice), X, (LABELS, CUES))
