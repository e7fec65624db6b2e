"""Every preset against its formula in plain PyTorch, float64: the value and the gradient of the parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import data
from oracle import difference
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import presets
from datagrad_ext.attacks import fgsm
from datagrad_ext.objective import Ramp, Result

N, CLASSES = 5, 3
X, T = data(N, 6), torch.tensor([2, 0, 1, 1, 0])
REAL, FAKE = data(N, 6, seed=2), data(N, 6, seed=3)
UNIT = torch.rand(N, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
DIRECTIONS = data(2, 6, seed=5)

reference_path = pytest.mark.filterwarnings("ignore::datagrad_ext.ReferencePathWarning")
accelerated = pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])


class Net(nn.Module):
    """Six inputs, a hidden layer `hidden` of seven sigmoids, `outputs` outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(6, 7), nn.Sigmoid()
        self.second, self.head = nn.Sequential(nn.Linear(7, 5), nn.Tanh()), nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.hidden(self.first(x))))


class Noisy(nn.Module):
    """Dropout and BatchNorm in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def build(outputs: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(outputs).double()


def ce(model: nn.Module, x: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(model(x), T, reduction=reduction)


def J_of(model: nn.Module, x: Tensor, create_graph: bool = True) -> Tensor:
    x = x if x.requires_grad else x.clone().requires_grad_()
    return torch.autograd.grad(ce(model, x, "sum"), x, create_graph=create_graph)[0]


def norms(J: Tensor, p: float = 2) -> Tensor:
    return torch.linalg.vector_norm(J, ord=p, dim=1)


def unit(J: Tensor) -> Tensor:
    return J / norms(J)[:, None]


def critic_gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]


def jacobians(model: nn.Module, x: Tensor) -> Tensor:
    """(N, outputs, 6)."""
    x = x.clone().requires_grad_()
    y = model(x)
    rows = [torch.autograd.grad(y[:, k].sum(), x, create_graph=True)[0] for k in range(y.shape[1])]
    return torch.stack(rows, 1)


# -------------------------------------------------------------------------------------------- the formulas


def plain_goodfellow(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    """With x' differentiated through, too: the derivative of the sign is 0."""
    x = x.clone().requires_grad_()
    return 0.7 * ce(model, x) + 0.3 * ce(model, x + 0.2 * J_of(model, x).sign())


def plain_moved(direction: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda model, x, t: ce(model, x + direction(J_of(model, x, False)))


def largest_entry(J: Tensor) -> Tensor:
    return torch.zeros_like(J).scatter(1, J.abs().argmax(1, keepdim=True), 1.0) * J.sign()


def conjugate(J: Tensor) -> Tensor:
    """argmax of ⟨r, J⟩ over ‖r‖₃ ≤ 1, by p* = 3/2."""
    r = J.sign() * J.abs().sqrt()
    return r / norms(r, 3)[:, None]


def plain_mix(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    moved = x + 0.1 * J_of(model, x, False).sign()
    return 0.4 * ce(model, x) + 0.6 * ce(model, moved)


def plain_virtual(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    log_p = model(x).detach().log_softmax(1)
    kl = lambda y: (log_p.exp() * (log_p - y.log_softmax(1))).sum(1)  # noqa: E731
    u = unit(torch.randn_like(x))
    for _ in range(2):
        moved = (x + 1e-3 * u).requires_grad_()
        u = unit(torch.autograd.grad(kl(model(moved)).sum(), moved)[0])
    return ce(model, x) + 1.5 * kl(model(x + 0.8 * u)).mean()


def plain_contractive(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    """The closed form for a sigmoid layer."""
    h, W = model.hidden(model.first(x)), model.first.weight
    return 0.3 * ((h * (1 - h)).square() * W.square().sum(1)).sum(1).mean()


def plain_deep(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    h = model.hidden(model.first(x))
    first = ((h * (1 - h)).square() * model.first.weight.square().sum(1)).sum(1).mean()
    k = model.second(h)
    second = ((1 - k * k).square() * model.second[0].weight.square().sum(1)).sum(1).mean()
    return ce(model, x) + 0.3 * first + 0.2 * second


def plain_tangent(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    products = torch.einsum("kd,ncd->nkc", DIRECTIONS, jacobians(model, x))
    return ce(model, x) + 0.3 * products.square().sum((1, 2)).mean()


def plain_own_tangent(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    products = torch.einsum("nd,ncd->nc", REAL, jacobians(model, x))
    return F.cross_entropy(model(x), t[0]) + 0.3 * products.square().sum(1).mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if name.endswith("weight")]


def plain_tasks(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    y = model(x)
    return 0.7 * F.cross_entropy(y, T) + 0.2 * F.mse_loss(y, torch.ones_like(y))


def line(real: Tensor, fake: Tensor) -> Tensor:
    share = torch.rand(len(real), dtype=real.dtype)[:, None]
    return share * real + (1 - share) * fake


def plain_dragan(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    alpha = torch.rand(N, dtype=x.dtype)[:, None]
    near = x + alpha * 0.5 * x.std() * torch.rand_like(x)
    return 10 * (norms(critic_gradient(model, near)) - 1).square().mean()


def plain_path(model: nn.Module, w: Tensor, t: Any) -> Tensor:
    w = w.clone().requires_grad_()
    images = model(w)
    noise = torch.randn_like(images) / math.sqrt(1)
    lengths = norms(torch.autograd.grad((images * noise).sum(), w, create_graph=True)[0])
    return 2.0 * (lengths - 0.01 * lengths.mean()).square().mean()


def plain_input_gradient(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    """As published: of the batch-mean loss, summed, with a ½."""
    x = x.clone().requires_grad_()
    loss = ce(model, x)
    (J,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + 40.0 * J.square().sum() / 2


def plain_jacobian(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    return ce(model, x) + 0.01 / 2 * jacobians(model, x).square().sum((1, 2)).mean()


def plain_projections(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    x, total = x.clone().requires_grad_(), 0.0
    y = model(x)
    for _ in range(2):
        v = unit(torch.randn_like(y))
        (J,) = torch.autograd.grad((v * y).sum(), x, create_graph=True)
        total = total + CLASSES / 2 * J.square().sum(1).mean()
    return ce(model, x) + 0.3 / 2 * total


def plain_tulip(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    v = unit(J_of(model, x, False))
    slopes = (ce(model, x + 0.01 * v, "none") - ce(model, x, "none")) / 0.01
    return ce(model, x) + 0.3 / 2 * slopes.square().mean()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)


def plain_trades(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    y = model(x).detach()
    moved = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(3):
        moved.requires_grad_()
        (J,) = torch.autograd.grad(kl(y, model(moved)).sum(), moved)
        moved = (moved.detach() + 0.05 * J.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    return ce(model, x) + 6.0 * kl(model(x), model(moved)).mean()


def plain_cure(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    J = J_of(model, x)
    z = unit(J.detach().sign())
    return ce(model, x) + 4.0 * norms(J_of(model, x + 1.5 * z) - J).square().mean()


def plain_llr(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    J, losses = J_of(model, x, False), ce(model, x, "none").detach()
    moved = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(4):
        moved = moved.detach().requires_grad_()
        gap = (ce(model, moved, "none") - losses - ((moved - x) * J).sum(1)).abs()
        (step,) = torch.autograd.grad(gap.sum(), moved)
        moved = (moved.detach() + 2.5 * 0.1 / 4 * step.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    delta = (moved - x).detach()
    along = (delta * J_of(model, x)).sum(1)
    gap = (ce(model, x + delta, "none") - ce(model, x, "none") - along).abs()
    return ce(model, x) + 4.0 * gap.mean() + 3.0 * along.abs().mean()


def plain_align(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    J = J_of(model, x, False)
    moved = J_of(model, x + 0.1 * (2 * torch.rand_like(x) - 1))
    return ce(model, x) + 0.2 * (1 - F.cosine_similarity(moved, J, dim=1).mean())


def plain_forces(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    energies, forces = t
    predicted = -critic_gradient(model, x)
    return 0.5 * F.mse_loss(model(x)[:, 0], energies) + 20.0 * F.mse_loss(predicted, forces)


def plain_sobolev(model: nn.Module, x: Tensor, t: Any) -> Tensor:
    values, gradients = t
    distance = (critic_gradient(model, x) - gradients).square().sum(1).mean()
    return F.mse_loss(model(x)[:, 0], values) + 0.3 * distance


# ------------------------------------------------------------------------------------------------ the rows


@dataclass(frozen=True)
class Row:
    """A preset and its formula; both draw the same random numbers in the same order."""

    name: str
    make: Callable[[], Any]
    plain: Callable[[nn.Module, Tensor, Any], Tensor]
    x: Tensor = X
    t: Any = T
    outputs: int = CLASSES


ENERGIES = (data(N, seed=6), data(N, 6, seed=7))
ROWS = [
    Row("goodfellow", lambda: presets.goodfellow(0.2, 0.7), plain_goodfellow),
    Row("nokland", lambda: presets.nokland(0.2), plain_moved(lambda J: 0.2 * J.sign())),
    Row("strong_adversary_l2", lambda: presets.strong_adversary(0.3), plain_moved(lambda J: 0.3 * unit(J))),
    Row("strong_adversary_linf", lambda: presets.strong_adversary(0.3, "linf"), plain_moved(lambda J: 0.3 * J.sign())),
    Row("strong_adversary_l1", lambda: presets.strong_adversary(0.3, "l1"),
        plain_moved(lambda J: 0.3 * largest_entry(J))),
    Row("gradient_family_2", lambda: presets.gradient_family(0.3, 2), plain_moved(lambda J: 0.3 * unit(J))),
    Row("gradient_family_3", lambda: presets.gradient_family(0.3, 3), plain_moved(lambda J: 0.3 * conjugate(J))),
    Row("gradient_family_inf", lambda: presets.gradient_family(0.3, math.inf), plain_moved(lambda J: 0.3 * J.sign())),
    Row("adversarial_mix", lambda: presets.adversarial_mix(0.6, 0.1, functools.partial(fgsm, clip=None)), plain_mix),
    Row("virtual_adversarial", lambda: presets.virtual_adversarial(0.8, 1.5, iterations=2, xi=1e-3), plain_virtual),
    Row("double_backprop", lambda: presets.double_backprop(0.3),
        lambda model, x, t: ce(model, x) + 0.3 * 0.5 * norms(J_of(model, x)).square().mean()),
    Row("contractive", lambda: presets.contractive(0.3, "hidden"), plain_contractive),
    Row("contractive_output", lambda: presets.contractive(0.3),
        lambda model, x, t: 0.3 * jacobians(model, x).square().sum((1, 2)).mean()),
    Row("deep_contractive", lambda: presets.deep_contractive({"hidden": 0.3, "second": 0.2}), plain_deep),
    Row("tangent_prop", lambda: presets.tangent_prop(0.3, DIRECTIONS), plain_tangent),
    Row("tangent_prop_own", lambda: presets.tangent_prop(
        0.3, lambda t: t[1][:, None], loss=lambda y, t: F.cross_entropy(y, t[0])), plain_own_tangent, t=(T, REAL)),
    Row("weight_l1", lambda: presets.weight_l1(0.1),
        lambda model, x, t: ce(model, x) + 0.1 * sum(w.abs().sum() for w in weights(model))),
    Row("weight_l2", lambda: presets.weight_l2(0.1),
        lambda model, x, t: ce(model, x) + 0.1 * sum(w.square().sum() for w in weights(model))),
    Row("multi_task", lambda: presets.multi_task(
        [F.cross_entropy, lambda y, t: F.mse_loss(y, torch.ones_like(y), reduction="none")], [0.7, 0.2]), plain_tasks),
    Row("wgan_gp", presets.wgan_gp,
        lambda model, x, t: 10 * (norms(critic_gradient(model, line(x, t))) - 1).square().mean(), REAL, FAKE, 1),
    Row("wgan_gp_one_sided", lambda: presets.wgan_gp(2.0, 0.05, one_sided=True), lambda model, x, t: 2 * (
        norms(critic_gradient(model, line(x, t))) - 0.05).clamp(min=0).square().mean(), REAL, FAKE, 1),
    Row("r1", presets.r1, lambda model, x, t: 5 * norms(critic_gradient(model, x)).square().mean(), REAL, None, 1),
    Row("r2", lambda: presets.r2(3.0),
        lambda model, x, t: 1.5 * norms(critic_gradient(model, x)).square().mean(), FAKE, None, 1),
    Row("lazy_r1", lambda: presets.lazy(presets.r1()),
        lambda model, x, t: 80 * norms(critic_gradient(model, x)).square().mean(), REAL, None, 1),
    Row("dragan", presets.dragan, plain_dragan, REAL, None, 1),
    Row("path_length", presets.path_length, plain_path),
    Row("input_gradient", lambda: presets.input_gradient(40.0), plain_input_gradient),
    Row("jacobian_exact", lambda: presets.jacobian(projections=CLASSES), plain_jacobian),
    Row("jacobian_projections", lambda: presets.jacobian(0.3, 2), plain_projections),
    Row("tulip", lambda: presets.tulip(0.3), plain_tulip),
    Row("trades", lambda: presets.trades(6.0, 0.1, steps=3, step_size=0.05), plain_trades, UNIT),
    Row("cure", lambda: presets.cure(h=1.5), plain_cure),
    Row("llr", lambda: presets.llr(epsilon=0.1, steps=4), plain_llr, UNIT),
    Row("grad_align", lambda: presets.grad_align(epsilon=0.1), plain_align),
    Row("eikonal", lambda: presets.eikonal(0.3),
        lambda model, x, t: 0.3 * (norms(critic_gradient(model, x)) - 1).square().mean(), X, None, 1),
    Row("forces", lambda: presets.forces(0.5, 20.0), plain_forces, X, ENERGIES, 1),
    Row("sobolev", lambda: presets.sobolev(0.3), plain_sobolev, X, ENERGIES, 1),
]  # fmt: skip


def gradients(model: nn.Module, total: Tensor) -> Tensor:
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return torch.cat([
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for p, g in zip(model.parameters(), found, strict=True)
    ])  # fmt: skip


@reference_path
@accelerated
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_preset_is_its_formula(row: Row, accelerate: bool) -> None:
    model, plain = build(row.outputs), build(row.outputs)
    if accelerate:
        model = datagrad_ext.accelerate(model)
    torch.manual_seed(9)
    result = row.make()(model, row.x, row.t)
    torch.manual_seed(9)
    expected = row.plain(plain, row.x, row.t)
    assert abs(result.total.item() - expected.item()) <= 1e-12 * max(1.0, abs(expected.item()))
    assert difference(gradients(model, result.total), gradients(plain, expected)).norm <= 1e-12
    assert all(math.isfinite(figure) for figure in result.scalars().values())


def test_every_preset_has_a_row() -> None:
    there = {name for name in presets.__all__ if name != "TwoPoint"}
    assert there == {name for name in there if any(row.name.startswith(name) for row in ROWS)}


# --------------------------------------------------------------------------- limits, estimators, conversions


def test_random_projections_are_unbiased_with_the_factor_c() -> None:
    model, exact = build(), presets.jacobian(2.0, CLASSES, loss=None)
    estimate = presets.jacobian(2.0, 1, loss=None)
    torch.manual_seed(0)
    values = torch.stack([estimate(model, X).total.detach() for _ in range(400)])
    expected = exact(model, X).total.item()
    assert abs(values.mean().item() - expected) <= 4 * values.std().item() / 20


# the preset at size φ, the weight of its penalty there, and the penalty: L + weight · penalty is its first order
FIRST_ORDER: dict[str, tuple[Callable[[float], Any], Callable[[float], float], Callable[[Tensor], Tensor]]] = {
    "goodfellow": (lambda s: presets.goodfellow(s, 0.7), lambda s: 0.3 * s, lambda J: norms(J, 1)),
    "nokland": (presets.nokland, lambda s: s, lambda J: norms(J, 1)),
    "strong_adversary_l2": (presets.strong_adversary, lambda s: s, norms),
    "strong_adversary_linf": (lambda s: presets.strong_adversary(s, "linf"), lambda s: s, lambda J: norms(J, 1)),
    "strong_adversary_l1": (lambda s: presets.strong_adversary(s, "l1"), lambda s: s, lambda J: norms(J, math.inf)),
    "gradient_family_3": (lambda s: presets.gradient_family(s, 3), lambda s: s, lambda J: norms(J, 1.5)),
    "adversarial_mix": (lambda s: presets.adversarial_mix(0.6, s, functools.partial(fgsm, clip=None)),
        lambda s: 0.6 * s, lambda J: norms(J, 1)),
    "tulip": (lambda s: presets.tulip(0.3, s), lambda s: 0.15, lambda J: norms(J).square()),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_in_its_size(name: str) -> None:
    """Halving φ halves the error of the penalty's gradient, the preset's minus that of L, over its weight."""
    make, weight, penalty = FIRST_ORDER[name]
    model = build()
    expected, clean = gradients(model, penalty(J_of(model, X)).mean()), gradients(model, ce(model, X))
    errors = []
    for size in (2e-3, 1e-3):
        found = (gradients(model, make(size)(model, X, T).total) - clean) / weight(size)
        errors.append(difference(found, expected).norm)
    assert errors[1] <= 1e-2
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_tulip_and_cure_have_their_limits() -> None:
    """tulip → (λ/2) mean ‖J‖², first order in h; cure is zero for h → 0, second order in h."""
    model = build()
    squared = norms(J_of(model, X)).square().mean().item()
    errors = [abs(presets.tulip(2.0, h)(model, X, T).terms[0].value.item() - squared) for h in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    values = [presets.cure(1.0, h)(model, X, T).terms[0].value.item() for h in (0.02, 0.01)]
    assert values[0] / values[1] == pytest.approx(4, rel=0.1)


def test_virtual_adversarial_finds_the_dominant_eigenvector() -> None:
    """Of the KL's Hessian Wᵀ(diag p − p pᵀ)W for a linear model."""
    model = nn.Linear(6, 3, bias=False).double()
    result = presets.virtual_adversarial(1e-3, 1.0, iterations=60, xi=1e-4, loss=None)(model, X)
    W, p = model.weight.detach(), model(X).softmax(1).detach()
    H = W.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ W
    largest = torch.linalg.eigvalsh(H)[:, -1]
    assert result.terms[0].value.item() == pytest.approx(1e-6 / 2 * largest.mean().item(), rel=1e-2)
    assert result.total.item() == result.terms[0].value.item()


def test_differentiating_through_the_step_doubles_the_l2_penalty() -> None:
    """The trap of x' = x + φ J: presets hold the step constant."""
    model, phi = build(), 1e-5
    x = X.clone().requires_grad_()
    J = J_of(model, x)
    through = (ce(model, x + phi * J) - ce(model, x)) / phi
    held = (ce(model, x + phi * J.detach()) - ce(model, x)) / phi
    both = [gradients(model, part) for part in (through, held)]
    assert both[0] @ both[1] / (both[1] @ both[1]) == pytest.approx(2.0, rel=1e-2)


def test_wgan_gp_is_finite_where_the_critic_is_flat() -> None:
    critic = build(1)
    nn.init.zeros_(critic.head.weight)
    result = presets.wgan_gp()(critic, REAL, FAKE)
    result.total.backward()
    assert result.total.item() == pytest.approx(10.0)
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


def test_lazy_steps_cost_nothing() -> None:
    objective, critic = presets.lazy(presets.r1(), every=3), build(1)
    totals = [objective(critic, REAL).total.item() for _ in range(4)]
    assert totals[1] == totals[2] == 0
    assert totals[0] == totals[3] > 0


def test_path_length_keeps_a_moving_average() -> None:
    objective, model = presets.path_length(decay=0.5), build()
    penalty = objective.terms[0].penalty
    lengths = []
    for _ in range(2):
        lengths.append(objective(model, X).terms[0].norms.mean().item())
    assert penalty.mean.item() == pytest.approx(0.25 * lengths[0] + 0.5 * lengths[1])


def test_path_length_of_several_styles_is_their_root_mean_square() -> None:
    weight = data(4, 2, seed=1).requires_grad_()
    generator = lambda w: torch.tanh(w @ weight).sum(1)[:, :, None, None]  # noqa: E731
    w = data(N, 3, 4, seed=2)
    torch.manual_seed(0)
    result = presets.path_length(1.0, decay=0.0)(generator, w)
    torch.manual_seed(0)
    w = w.clone().requires_grad_()
    images = generator(w)
    (J,) = torch.autograd.grad((images * torch.randn_like(images)).sum(), w, create_graph=True)
    expected = J.square().sum(2).mean(1).mean()
    assert difference(result.total, expected).elementwise <= 1e-12


def test_weights_may_follow_a_schedule() -> None:
    objective = presets.tulip(Ramp(2.0, steps=2))
    assert [objective(build(), X, T).terms[0].weight for _ in range(3)] == [0.0, 0.5, 1.0]


TWO_PASSES: dict[str, Callable[[], Any]] = {
    "goodfellow": presets.goodfellow,
    "adversarial_mix": lambda: presets.adversarial_mix(0.5, 0.1),
    "virtual_adversarial": lambda: presets.virtual_adversarial(xi=1e-3),
    "tulip": lambda: presets.tulip(0.1),
    "trades": lambda: presets.trades(steps=2),
    "cure": presets.cure,
    "llr": lambda: presets.llr(steps=2),
    "grad_align": presets.grad_align,
}


@accelerated
@pytest.mark.parametrize("name", TWO_PASSES)
def test_running_statistics_are_updated_once_and_modes_stay(name: str, accelerate: bool) -> None:
    torch.manual_seed(0)
    model = Noisy().double()
    once = Noisy().double()
    once.load_state_dict(model.state_dict())
    once(UNIT)
    if accelerate:
        model = datagrad_ext.accelerate(model)
    TWO_PASSES[name]()(model, UNIT, T).total.backward()
    for (key, ours), theirs in zip(model.named_buffers(), once.buffers(), strict=True):
        assert difference(ours, theirs).elementwise <= 1e-12, key
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["virtual_adversarial", "tulip", "grad_align"])
def test_both_passes_have_the_same_mask(name: str) -> None:
    """At radius 0 the second pass is the first, so every distance between them is 0."""
    still = {
        "virtual_adversarial": lambda: presets.virtual_adversarial(0.0),
        "tulip": lambda: presets.tulip(1.0, 1e-300),
        "grad_align": lambda: presets.grad_align(epsilon=0.0),
    }[name]
    torch.manual_seed(0)
    result: Result = still()(Noisy().double(), UNIT, T)
    assert abs(result.terms[0].value.item()) <= 1e-12


def test_without_gradients_there_are_figures() -> None:
    with torch.no_grad():
        result = presets.cure()(build(), X, T)
    assert not result.total.requires_grad
    assert result.scalars()["total"] > 0


ERRORS: dict[str, tuple[str, Callable[[], Any]]] = {
    "alpha": ("alpha must be from 0 to 1, got 2", lambda: presets.goodfellow(alpha=2)),
    "epsilon": ("step must be positive, got 0", lambda: presets.nokland(0)),
    "p": ("p must be from 1 to infinity, got 0.5", lambda: presets.gradient_family(0.1, 0.5)),
    "norm": ("norm must be one of linf, l2, l1, got 'l3'", lambda: presets.strong_adversary(0.1, "l3")),
    "share": ("share must be from 0 to 1, got -1", lambda: presets.adversarial_mix(-1)),
    "iterations": ("iterations must be at least 1", lambda: presets.virtual_adversarial(iterations=0)),
    "projections": ("projections must be at least 1", lambda: presets.jacobian(projections=0)),
    "h": ("h must be positive", lambda: presets.tulip(1.0, h=0)),
    "tasks": ("got 1 losses and 2 weights", lambda: presets.multi_task([F.cross_entropy], [1.0, 2.0])),
    "shapes": (r"real is \[5, 6\], fake is \[2, 6\]", lambda: presets.wgan_gp()(build(1), REAL, FAKE[:2])),
    "no fake": ("fake is NoneType", lambda: presets.wgan_gp()(build(1), REAL)),
    "no weights": ("has no parameter", lambda: presets.weight_l1(1.0)(nn.Identity(), X, T)),
    "mean loss": ("needs the loss of each sample", lambda: presets.tulip(1.0, loss=F.cross_entropy)(build(), X, T)),
    "range": ("outside of clip", lambda: presets.trades()(build(), X, T)),
}


def test_only_terms_can_be_lazy() -> None:
    with pytest.raises(TypeError, match="with terms, got TwoPoint"):
        presets.lazy(presets.trades())  # type: ignore[arg-type]


def test_weights_are_those_of_a_module() -> None:
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got function"):
        presets.weight_l2(1.0)(lambda x: x, X, T)


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_in_a_sentence(name: str) -> None:
    message, code = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        code()
