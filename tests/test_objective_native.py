"""The native path of objectives: an autograd Function, equal to plain autograd and to the ordinary path.

The first call of a network goes over its sweeps; later ones of a narrow chain are one op ("fused").

Everything is compared in float64 with the formula written in plain PyTorch on the unmodified model, and once more in
float32 by norm. N batch, J data gradient, λ weights.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Case, data, ids, mlp, network
from oracle import difference
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import DataGrad, ReferencePathWarning, Term, functional, objective, penalties, presets
from datagrad_ext.objective import score
from datagrad_ext.ops import is_native

CLASSES = 5
Plain = tuple[float, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Row:
    """An objective and its formula: λ0 main + Σ λ mean_n R(J_n), J = N ∂mean/∂x with `mean` the loss of the terms.

    `main` is the loss of the objective itself, None: the same.
    """

    name: str
    make: Callable[[], DataGrad]
    mean: Callable[[Tensor, Any], Tensor]
    terms: Sequence[Plain]
    main_weight: float = 1.0
    target: str = "indices"
    main: Callable[[Tensor, Any], Tensor] | None = None

    def total(self, model: nn.Module, x: Tensor, target: Any) -> Tensor:
        y = model(x)
        mean = self.mean(y, target)
        (J,) = torch.autograd.grad(len(x) * mean, x, create_graph=True)
        main = mean if self.main is None else self.main(y, target)
        return self.main_weight * main + sum(weight * R(J.flatten(1)).mean() for weight, R in self.terms)


def _targets(kind: str, samples: int, dtype: torch.dtype, classes: int = CLASSES) -> Any:
    indices = torch.arange(samples) % classes
    logits = data(samples, classes, seed=9).to(dtype)
    return {
        "indices": indices,
        "ignored": indices.where(indices != 1, -100),
        "probabilities": logits.softmax(1),
        "values": logits,
        "none": None,
    }[kind]


def _l1(J: Tensor) -> Tensor:
    return J.abs().sum(1)


def _l2(J: Tensor) -> Tensor:
    return J.norm(dim=1)


def _l2_squared(J: Tensor) -> Tensor:
    return J.square().sum(1)


def _linf(J: Tensor) -> Tensor:
    return J.abs().amax(1)


def _ce(y: Tensor, t: Any) -> Tensor:
    return F.cross_entropy(y, t)


def _ce_over_all(y: Tensor, t: Any) -> Tensor:
    return F.cross_entropy(y, t, reduction="none").mean()


def _score_mean(y: Tensor, t: Any) -> Tensor:
    return y.flatten(1).sum(1).mean()


def _eikonal(J: Tensor) -> Tensor:
    return (_l2(J) - 1).square()


def _hinge(y: Tensor, t: Any) -> Tensor:
    """A loss that no table knows."""
    return (1 - y).clamp_min(0).mean()


SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)
ROWS = [
    Row("l1", lambda: DataGrad(F.cross_entropy, Term(0.3)), _ce, [(0.3, _l1)]),
    Row("l2", lambda: DataGrad(nn.CrossEntropyLoss(), Term(0.3, penalties.l2)), _ce, [(0.3, _l2)]),
    Row("linf", lambda: DataGrad(functional.cross_entropy, Term(0.3, penalties.linf)), _ce, [(0.3, _linf)]),
    Row(
        "l2_squared",
        lambda: DataGrad(nn.CrossEntropyLoss(reduction="none"), Term(0.3, penalties.l2_squared), loss_weight=0.5),
        _ce,
        [(0.3, _l2_squared)],
        0.5,
    ),
    Row("own_cross_entropy", lambda: presets.double_backprop(0.4), _ce, [(0.2, _l2_squared)]),
    Row("probabilities", lambda: DataGrad(F.cross_entropy, Term(0.3)), _ce, [(0.3, _l1)], target="probabilities"),
    Row("ignored", lambda: DataGrad(F.cross_entropy, Term(0.3)), _ce, [(0.3, _l1)], target="ignored"),
    Row(
        "ignored_over_all",
        lambda: DataGrad(nn.CrossEntropyLoss(reduction="none"), Term(0.3)),
        _ce_over_all,
        [(0.3, _l1)],
        target="ignored",
    ),
    Row(
        "label_smoothing",
        lambda: DataGrad(nn.CrossEntropyLoss(label_smoothing=0.1), Term(0.3)),
        SMOOTHED,
        [(0.3, _l1)],
    ),
    Row("option", lambda: DataGrad(SMOOTHED, Term(0.3, penalties.l2)), SMOOTHED, [(0.3, _l2)]),
    Row(
        "mse",
        lambda: DataGrad(F.mse_loss, Term(0.3, penalties.l2_squared)),
        F.mse_loss,
        [(0.3, _l2_squared)],
        target="values",
    ),
    Row(
        "mse_module",
        lambda: DataGrad(nn.MSELoss(reduction="none"), Term(0.3)),
        F.mse_loss,
        [(0.3, _l1)],
        target="values",
    ),
    Row("critic", lambda: presets.r1(0.6), _score_mean, [(0.3, _l2_squared)], 0.0, "none"),
    Row(
        "critic_and_loss",
        lambda: DataGrad(score, Term(0.3, penalties.Centred(1.0)), loss_weight=-0.5),
        _score_mean,
        [(0.3, lambda J: (_l2(J) - 1).square())],
        -0.5,
        "none",
    ),
    Row(
        "three_terms",
        lambda: DataGrad(
            F.cross_entropy,
            [Term(0.3), Term(0.2, penalties.l2_squared), Term(0.1, penalties.OneSided(0.1, penalties.linf))],
        ),
        _ce,
        [(0.3, _l1), (0.2, _l2_squared), (0.1, lambda J: (_linf(J) - 0.1).clamp_min(0).square())],
    ),
    Row(
        "absolute",
        lambda: DataGrad(F.l1_loss, Term(0.3, penalties.l2_squared)),
        F.l1_loss,
        [(0.3, _l2_squared)],
        target="values",
    ),
    Row(
        "logistic",
        lambda: DataGrad(nn.BCEWithLogitsLoss(), Term(0.3)),
        F.binary_cross_entropy_with_logits,
        [(0.3, _l1)],
        target="probabilities",
    ),
    Row(
        "two_losses",
        lambda: DataGrad(F.cross_entropy, Term(0.3, penalties.l2, score), loss_weight=0.7),
        _score_mean,
        [(0.3, _l2)],
        0.7,
        main=_ce,
    ),
    Row(
        "two_curved_losses",
        lambda: DataGrad(F.mse_loss, Term(0.3, loss=F.cross_entropy)),
        _ce_over_all,
        [(0.3, _l1)],
        target="probabilities",
        main=F.mse_loss,
    ),
    Row(
        "eikonal",
        lambda: presets.eikonal(0.3, nn.L1Loss()),
        _score_mean,
        [(0.3, _eikonal)],
        target="values",
        main=F.l1_loss,
    ),
    Row(
        "critic_with_a_loss_of_its_own",
        lambda: DataGrad(_hinge, Term(0.3, penalties.l2_squared, score), loss_weight=0.7),
        _score_mean,
        [(0.3, _l2_squared)],
        0.7,
        "none",
        main=_hinge,
    ),
    Row(
        "curved_loss_and_a_loss_of_its_own",
        lambda: DataGrad(lambda y, t: y.square().mean(), Term(0.3, loss=F.cross_entropy)),
        _ce,
        [(0.3, _l1)],
        main=lambda y, t: y.square().mean(),
    ),
    Row(
        "penalty_alone_curved_loss",
        lambda: DataGrad(None, Term(0.3, penalties.l2_squared, F.cross_entropy)),
        _ce,
        [(0.3, _l2_squared)],
        0.0,
    ),
]
BASIC = ROWS[0]
FUSED, OUTSIDE = "FusedBackward", "critic_with_a_loss_of_its_own"

NETWORKS = [
    network(name)
    for name in (
        "mlp_relu",
        "mlp_gelu",
        "mlp_linear",
        "mlp_one_row",
        "mlp_dropout",
        "mlp_batch_norm",
        "mlp_batch_norms_eval",
        "mlp_frozen_norms_eval",
        "conv_critic",
        "dag_residual_smooth",
        "opaque_scaled_weights",
        "frozen_first",
        "frozen_middle",
        "frozen_all",
    )
]
TIED = Case("tied_weights", lambda: nn.Sequential((a := nn.Linear(6, 6)), nn.Tanh(), a, nn.ReLU(), nn.Linear(6, 5)))


def _nodes(total: Tensor) -> set[str]:
    """The kinds of nodes in the graph of a total."""
    found, left = set(), [total.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            found.add(type(node).__name__)
            left += [following for following, _ in node.next_functions]
    return found


def _native(total: Tensor) -> bool:
    return not _nodes(total).isdisjoint({"SweepsBackward", FUSED})


def _gradients(total: Tensor, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    named = {"x": x, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(named.items(), found, strict=True)}


def _assert_close(actual: Any, expected: Any, dtype: torch.dtype = torch.float64) -> None:
    scale = max(g.norm().item() for g in expected.values())
    for name, g in expected.items():
        if dtype == torch.float64:
            close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12 * (1 + scale))
            close(actual[name], g, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert (actual[name] - g).norm() <= 1e-4 * (g.norm() + scale / 100), name


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def _models(case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[nn.Module, nn.Module, nn.Module]:
    """Plain for the formula, plain for the ordinary path, accelerated."""
    model = case.build().to(device, dtype)
    return model, copy.deepcopy(model), datagrad_ext.accelerate(copy.deepcopy(model))


@pytest.mark.parametrize("case", [*NETWORKS, TIED], ids=ids)
@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_total_and_gradients(row: Row, case: Case, dtype: torch.dtype, device: str) -> None:
    plain, ordinary, accelerated = _models(case, dtype, device)
    x = case.inputs()[0].to(device, dtype).requires_grad_()
    target = _targets(row.target, len(x), dtype, copy.deepcopy(plain)(x).shape[1])
    target = None if target is None else target.to(device)
    if len(x) == 1 and row.target == "ignored":
        target = torch.zeros_like(target)
    for seed in (1, 2):  # the second call runs the trace of the first
        torch.manual_seed(seed)
        total = row.total(plain, x, target)
        expected = _gradients(total, plain, x)
        torch.manual_seed(seed)
        by_autograd = row.make()(ordinary, x, target)
        torch.manual_seed(seed)
        result = row.make()(accelerated, x, target)
        assert _native(result.total)
        found = _gradients(result.total, accelerated, x)
        close = partial(torch.testing.assert_close, rtol=1e-10 if dtype == torch.float64 else 1e-4, atol=1e-6)
        close(result.total, total)
        for ours, theirs in zip(result.terms, by_autograd.terms, strict=True):
            close(ours.value, theirs.value)
            close(ours.data_gradient, theirs.data_gradient)
            assert ours.weight == theirs.weight
            assert not ours.value.requires_grad
        assert (result.loss is None) == (by_autograd.loss is None)
        if result.loss is not None:
            close(result.loss, by_autograd.loss)
            assert result.loss.dtype == by_autograd.loss.dtype
            assert not result.loss.requires_grad
        _assert_close(found, expected, dtype)
        _assert_close(found, _gradients(by_autograd.total, ordinary, x), dtype)
    for (name, buffer), other in zip(plain.named_buffers(), accelerated.buffers(), strict=True):
        assert difference(other, buffer).norm < 1e-4, name


@pytest.fixture(params=["sweeps", "fused"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _ready(
    case: Case = NETWORKS[1], row: Row = BASIC, path: str = "sweeps"
) -> tuple[nn.Module, Tensor, Any, Callable[[], Any]]:
    """An accelerated network that has not run yet, or so that its next call is one op."""
    model = datagrad_ext.accelerate(case.build())
    x = case.inputs()[0].requires_grad_()
    target = _targets(row.target, len(x), torch.float64)

    def evaluate() -> Any:
        return row.make()(model, x, target)

    if path == "fused":
        evaluate()
        assert (FUSED in _nodes(evaluate().total)) == (is_native("chain_penalty_step", "cpu") and row.name != OUTSIDE)
    return model, x, target, evaluate


def _scaled(evaluate: Callable[[], Any]) -> Tensor:
    return 2 * evaluate().total


def _with_another_loss(evaluate: Callable[[], Any]) -> Tensor:
    return evaluate().total + evaluate().total.square()


def _retained(evaluate: Callable[[], Any]) -> Tensor:
    total = evaluate().total
    for _ in range(2):  # the second adds to what the first one gave away
        total.backward(retain_graph=True)
    return total


def _accumulated(evaluate: Callable[[], Any]) -> Tensor:
    evaluate().total.backward()
    return -0.5 * evaluate().total


@pytest.mark.parametrize("use", [_scaled, _with_another_loss, _retained, _accumulated])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name in ("l1", "critic", "three_terms", "eikonal", OUTSIDE)], ids=ids
)
def test_uses_of_the_total(use: Callable, row: Row, path: str) -> None:
    gradients = []
    for accelerate in (False, True):
        model = NETWORKS[1].build()
        model = datagrad_ext.accelerate(model) if accelerate else model
        x = NETWORKS[1].inputs()[0].requires_grad_()
        evaluate = partial(row.make(), model, x, _targets(row.target, len(x), torch.float64))
        if path == "fused":
            evaluate()
        use(evaluate).backward()
        gradients.append({"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}})
    # Plain autograd has no gradient for the last bias of a critic's penalty; here it is zero.
    expected = {k: torch.zeros_like(gradients[1][k]) if g is None else g for k, g in gradients[0].items()}
    _assert_close(gradients[1], expected)


def test_only_x_or_only_some_parameters(path: str) -> None:
    model, x, _target, evaluate = _ready(path=path)
    expected = _gradients(evaluate().total, model, x)
    (only_x,) = torch.autograd.grad(evaluate().total, x)
    torch.testing.assert_close(only_x, expected["x"])
    (some,) = torch.autograd.grad(evaluate().total, model[2].weight)
    torch.testing.assert_close(some, expected["2.weight"])


def test_an_input_that_wants_no_gradient_gets_none(path: str) -> None:
    model, x, target, evaluate = _ready(path=path)
    expected = _gradients(evaluate().total, model, x)
    x = x.detach()
    total = BASIC.make()(model, x, target).total
    total.backward()
    assert _native(total)
    assert x.grad is None
    _assert_close({k: p.grad for k, p in model.named_parameters()} | {"x": expected["x"]}, expected)


def test_a_second_backward_without_retain_graph_is_pytorchs_error(path: str) -> None:
    *_, evaluate = _ready(path=path)
    total = evaluate().total
    total.backward()
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


@pytest.mark.parametrize("changed", ["parameter", "input", "target", "data gradient"])
def test_a_change_in_place_before_the_backward_is_pytorchs_error(changed: str, path: str) -> None:
    row = next(row for row in ROWS if row.name == "mse")
    model, x, target, evaluate = _ready(row=row, path=path)
    result = evaluate()
    J = result.terms[0].data_gradient
    tensor = {"parameter": model[2].weight, "input": x, "target": target, "data gradient": J}
    with torch.no_grad():
        tensor[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.total.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_without_gradients(mode: Callable, path: str) -> None:
    model, x, target, evaluate = _ready(path=path)
    expected = evaluate()
    with mode():
        found = BASIC.make()(model, x.detach(), target)
    assert not found.total.requires_grad
    assert found.scalars() == pytest.approx(expected.scalars(), rel=1e-12)


VARIED = ["l2", "mse", "three_terms", "critic_and_loss", "two_losses", OUTSIDE]


@pytest.mark.parametrize("name", VARIED)
def test_gradcheck(name: str, path: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    model, x, target, _ = _ready(row=row, path=path)
    parameters = list(model.parameters())

    def total(x: Tensor, *_: Tensor) -> Tensor:
        found = row.make()(model, x, target).total
        assert _native(found)
        return found

    torch.autograd.gradcheck(total, (x, *parameters))


@pytest.mark.filterwarnings("ignore::datagrad_ext.ReferencePathWarning")
@pytest.mark.parametrize("name", VARIED)
def test_more_derivatives_take_the_reference_path(name: str, path: str) -> None:
    """create_graph=True: gradients of the gradients, by x and by parameters."""
    row = next(row for row in ROWS if row.name == name)
    found = []
    for accelerate in (False, True):
        model = NETWORKS[1].build()
        model = datagrad_ext.accelerate(model) if accelerate else model
        x = NETWORKS[1].inputs()[0].requires_grad_()
        target = _targets(row.target, len(x), torch.float64)
        for _ in range(1 + (path == "fused")):
            total = row.make()(model, x, target).total
        assert _native(total) == accelerate
        first = torch.autograd.grad(total, [x, *model.parameters()], create_graph=True)
        found.append(_gradients(total + sum(g.square().sum() for g in first), model, x))
    _assert_close(found[1], found[0])


def test_more_derivatives_warn_once(path: str) -> None:
    _model, x, _target, evaluate = _ready(path=path)
    first, second = evaluate().total, evaluate().total
    with pytest.warns(ReferencePathWarning, match="create_graph=True"):
        torch.autograd.grad(first, x, create_graph=True)
    torch.autograd.grad(second, x, create_graph=True)  # warnings are errors


def _own_loss(output: Tensor, target: Any) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


@dataclass
class Unhashable:
    """A callable that no table can look up: R(J), or a loss."""

    def __call__(self, *arguments: Any) -> Tensor:
        return _l1(arguments[0]) if len(arguments) == 1 else _own_loss(*arguments)


WEIGHTS = torch.ones(CLASSES, dtype=torch.float64)
ORDINARY: dict[str, DataGrad] = {
    "own loss": DataGrad(_own_loss, Term(0.3)),
    "class weights": DataGrad(nn.CrossEntropyLoss(WEIGHTS), Term(0.3)),
    "function of a lambda": DataGrad(lambda y, t: F.cross_entropy(y, t), Term(0.3)),
    "own penalty": DataGrad(F.cross_entropy, Term(0.3, lambda J: J.abs().sum(1))),
    "one own penalty of two": DataGrad(F.cross_entropy, [Term(0.3), Term(0.3, lambda J: J.abs().sum(1))]),
    "penalty without a hash": DataGrad(F.cross_entropy, Term(0.3, Unhashable())),
    "loss without a hash": DataGrad(partial(Unhashable()), Term(0.3)),
    "distance of a norm without a hash": DataGrad(F.cross_entropy, Term(0.3, penalties.OneSided(0.0, Unhashable()))),
    "norm of a distance": DataGrad(F.cross_entropy, Term(0.3, penalties.Centred(1.0, penalties.Lp(3)))),
    "two losses": DataGrad(F.cross_entropy, Term(0.3, loss=_own_loss)),
    "terms of two losses": DataGrad(F.cross_entropy, [Term(0.3), Term(0.3, loss=score)]),
    "tuple of losses": DataGrad(F.cross_entropy, Term(0.3, loss=objective.components)),
    "penalty reads the target": DataGrad(F.cross_entropy, Term(0.3, lambda J, t: J.abs().sum(1), with_target=True)),
    "finite difference": DataGrad(F.cross_entropy, Term(0.3), datagrad_ext.FiniteDifference(0.5)),
    "no term": DataGrad(F.cross_entropy),
    "lazy term": DataGrad(F.cross_entropy, Term(0.3, every=2)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_not_known_takes_the_ordinary_path(name: str) -> None:
    plain, _, accelerated = _models(NETWORKS[1], torch.float64)
    x = NETWORKS[1].inputs()[0].requires_grad_()
    target, criterion = _targets("indices", len(x), torch.float64), ORDINARY[name]
    criterion.step = 1
    total = criterion(accelerated, x, target).total
    assert not _native(total)
    criterion.step = 1
    _assert_close(_gradients(total, accelerated, x), _gradients(criterion(plain, x, target).total, plain, x))


def test_a_hook_on_the_module_fires() -> None:
    model, x, target, evaluate = _ready()
    plain = NETWORKS[1].build()
    for m in (model, plain):
        m.register_forward_hook(lambda m, inputs, y: 2 * y)
    total = evaluate().total
    assert not _native(total)
    _assert_close(_gradients(total, model, x), _gradients(BASIC.make()(plain, x, target).total, plain, x))


@pytest.mark.parametrize("name", ["untraceable"])
def test_a_network_without_a_program_takes_the_ordinary_path(name: str) -> None:
    plain, _, accelerated = _models(network(name), torch.float64)
    x = network(name).inputs()[0].requires_grad_()
    target = _targets("indices", len(x), torch.float64)
    total = BASIC.make()(accelerated, x, target).total
    assert not _native(total)
    _assert_close(_gradients(total, accelerated, x), _gradients(BASIC.make()(plain, x, target).total, plain, x))


@pytest.mark.filterwarnings("ignore::datagrad_ext.ReferencePathWarning")
def test_autocast_takes_the_ordinary_path() -> None:
    _model, _x, _target, evaluate = _ready()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _native(evaluate().total)


def test_a_backward_inside_autocast_runs_in_the_dtypes_of_the_forward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3))
    x, target = torch.rand(4, 2, 5, 5), torch.arange(4) % 3
    total = BASIC.make()(datagrad_ext.accelerate(model), x, target).total
    expected = torch.autograd.grad(total, list(model.parameters()), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(total, list(model.parameters()))
    assert _native(total)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_sequence_of_inputs_takes_the_ordinary_path() -> None:
    model, x, target, evaluate = _ready()
    total = BASIC.make()(model, [x], target).total
    assert not _native(total)
    torch.testing.assert_close(total, evaluate().total)


def test_an_empty_batch_takes_the_ordinary_path() -> None:
    model, x, target, _ = _ready()
    assert not _native(BASIC.make()(model, x[:0], target[:0]).total)


def test_a_target_that_the_head_does_not_cover() -> None:
    """Targets of another dtype than the logits: the loss itself runs, on the output alone."""
    model, x, _, _ = _ready()
    plain, target = NETWORKS[1].build(), _targets("probabilities", len(x), torch.float32)
    total = BASIC.make()(model, x, target).total
    assert _native(total)
    _assert_close(_gradients(total, model, x), _gradients(BASIC.make()(plain, x, target).total, plain, x))


def test_a_target_that_the_loss_of_the_objective_itself_does_not_cover() -> None:
    model, x, _, _ = _ready()
    plain, target = NETWORKS[1].build(), _targets("probabilities", len(x), torch.float32)
    criterion = DataGrad(F.cross_entropy, Term(0.3, penalties.l2, score))
    total = criterion(model, x, target).total
    assert _native(total)
    _assert_close(_gradients(total, model, x), _gradients(criterion(plain, x, target).total, plain, x))


def test_a_loss_with_parameters_of_its_own(path: str) -> None:
    """The objective's own loss may be anything: it is ordinary code on the network's output."""
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    found = []
    for accelerate in (False, True):
        model, x = NETWORKS[1].build(), NETWORKS[1].inputs()[0]
        model = datagrad_ext.accelerate(model) if accelerate else model
        criterion = DataGrad(lambda y, t: (scale * y).sigmoid().mean(), Term(0.3, penalties.l2, score))
        for _ in range(1 + (path == "fused")):
            total = criterion(model, x).total
        assert _native(total) == accelerate
        found.append(torch.autograd.grad(total, [scale, *model.parameters()]))
    _assert_close(dict(enumerate(found[1])), dict(enumerate(found[0])))


def test_a_tuple_as_the_loss_of_the_objective_itself() -> None:
    model, x, target, _ = _ready()
    with pytest.raises(ValueError, match="a tuple of losses is for terms"):
        DataGrad(objective.components, Term(0.3, penalties.l2, score))(model, x, target)


def test_a_wide_chain_goes_over_its_sweeps() -> None:
    torch.manual_seed(0)
    model = datagrad_ext.accelerate(nn.Sequential(nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, CLASSES)))
    x, target = torch.rand(4, 6), torch.arange(4)
    totals = [BASIC.make()(model, x, target).total for _ in range(2)]
    assert [FUSED in _nodes(total) for total in totals] == [False, False]
    assert all(map(_native, totals))


@pytest.mark.parametrize(
    "target", [torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 99]), torch.zeros(4, 3, dtype=torch.float64)]
)
def test_bad_targets_are_pytorchs_errors(target: Tensor, path: str) -> None:
    model, x, _, _ = _ready(path=path)
    with pytest.raises(Exception) as expected:
        F.cross_entropy(model(x), target)
    with pytest.raises(expected.type):
        BASIC.make()(model, x, target)


def test_what_is_kept_is_saved_and_freed_while_the_total_is_alive(path: str) -> None:
    """Every tensor between the passes goes through hooks on saved tensors, and is gone after the backward."""
    model, x, _target, evaluate = _ready(path=path)
    expected = _gradients(evaluate().total, model, x)
    kept: list[weakref.ref] = []

    class Box:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach().clone()
            kept.append(weakref.ref(self))

    with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.tensor):
        total = evaluate().total
    assert len(kept) > len(list(model.parameters()))
    total.backward()
    assert [box for box in kept if box() is not None] == []
    _assert_close({"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}, expected)
    assert total.isfinite()


def test_memory_does_not_grow_over_200_steps() -> None:
    model, x, target, _ = _ready(NETWORKS[1])
    criterion, optimizer = BASIC.make(), torch.optim.SGD(model.parameters(), lr=0.01)

    def steps(n: int) -> int:
        for k in range(n):
            optimizer.zero_grad()
            rows = 1 + k % len(x)
            criterion(model, x[:rows].detach(), target[:rows]).total.backward()
            optimizer.step()
        return len([o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)])

    gc.collect()
    gc.disable()
    try:
        assert steps(200) <= steps(20)
    finally:
        gc.enable()


def test_a_copy_of_an_objective() -> None:
    model, x, target, evaluate = _ready()
    total = copy.deepcopy(BASIC.make())(model, x, target).total
    assert _native(total)
    assert total.item() == evaluate().total.item()


def test_training_is_the_same() -> None:
    models = [mlp(nn.Tanh).double(), mlp(nn.Tanh).double()]
    models[1].load_state_dict(models[0].state_dict())
    datagrad_ext.accelerate(models[1])
    x, target = data(8, 6), torch.arange(8) % CLASSES
    for model in models:
        criterion = DataGrad(F.cross_entropy, Term(objective.Ramp(0.3, 3), penalties.l2, every=2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(6):
            optimizer.zero_grad()
            criterion(model, x, target).total.backward()
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
