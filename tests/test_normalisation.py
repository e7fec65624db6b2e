"""What normalisation layers do besides their derivatives: running statistics, refusals, mixed dtypes."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import CE, Case, Objective, data, ids, network, random_numbers
from oracle import as_pytorch, assert_equal, assert_similar, by_formula, check, leaf, observe
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_code import data_gradient, loss_of, potential

import datagrad_ext

STATISTICS = [
    Case("batch_norm", lambda: nn.BatchNorm2d(4), ((3, 4, 5, 2),)),
    Case("cumulative", lambda: nn.BatchNorm2d(4, momentum=None), ((3, 4, 5, 2),)),
    Case("instance_norm", lambda: nn.InstanceNorm2d(4, track_running_stats=True), ((3, 4, 5, 2),)),
    Case(
        "function",
        lambda: nn.Sequential(Functional(), nn.Tanh()),
        ((5, 6),),
    ),
]


class Functional(nn.Module):
    """Running statistics of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training, momentum=0.2)


def one_step(model: nn.Module, x: Tensor) -> None:
    loss_of(model(x)).backward()


def two_data_gradients(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    first, second = data_gradient(loss_of(y), x), data_gradient(potential(y), x)
    (first.square().sum() + second.abs().sum()).backward()


def retained(model: nn.Module, x: Tensor) -> None:
    total = data_gradient(loss_of(model(x)), x).square().sum()
    total.backward(retain_graph=True)
    total.backward()


def third_order(model: nn.Module, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", datagrad_ext.ReferencePathWarning)
        J = data_gradient(potential(model(x)), x)
        data_gradient(J.square().sum(), x).square().sum().backward()


def without_gradients(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


@pytest.mark.parametrize("step", [one_step, two_data_gradients, retained, third_order, without_gradients])
@pytest.mark.parametrize("case", STATISTICS, ids=ids)
def test_running_statistics_move_once_a_forward(case: Case, step: Callable, device: str) -> None:
    ours, plain = datagrad_ext.accelerate(case.build().to(device)), case.build().to(device)
    for seed in range(3):
        for model in (ours, plain):
            step(model, leaf(data(*case.shapes[0], seed=seed).to(device)))
        assert_equal(dict(ours.named_buffers()), dict(plain.named_buffers()))


class Recurrent(nn.Module):
    """Returns a layer's tuple, which a program cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(6), nn.Dropout(0.4)
        self.gru = nn.GRU(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gru(self.dropout(self.norm(x)).unsqueeze(1))


def test_running_statistics_where_the_program_gives_up() -> None:
    """It is known after the first run that the program cannot return the result: that run must leave nothing behind."""

    def code(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"y": model(x)[0], "again": model(x)[0]}

    torch.manual_seed(0)
    check(Recurrent().double(), [data(4, 6)], code, datagrad_ext.accelerate)


@pytest.mark.parametrize("before", [(), (nn.Linear(4, 4),)], ids=["alone", "folded"])
def test_running_statistics_of_the_forward_are_those_of_its_backward(before: tuple[nn.Module, ...]) -> None:
    """A training step between an evaluation and its backward changes nothing (in PyTorch it does, silently)."""
    layers = copy.deepcopy([*before, nn.BatchNorm1d(4), nn.Tanh()])
    model = datagrad_ext.accelerate(random_numbers(nn.Sequential(*layers)).double())
    x = leaf(data(5, 4))
    found = []
    for interrupted in (False, True):
        y = model.eval()(x)
        if interrupted:
            with torch.no_grad():
                model.train()(data(5, 4, seed=7) * 3)
        J = data_gradient(potential(y), x)
        found.append(torch.autograd.grad(J.square().sum(), [x, *model.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("name", "second"), [("conv_batch_norm_relu", 4), ("mlp_batch_norms_eval", 6)])
def test_evaluation_follows_the_running_statistics(name: str, second: int, device: str) -> None:
    """They are read at each call, not when the network is traced; so are statistics that were taken away."""
    ours, plain = (network(name).build().to(device) for _ in range(2))
    datagrad_ext.accelerate(ours)
    for change in (
        lambda model: model.train(),
        lambda model: model.eval(),
        lambda model: model[1].running_mean.add_(0.3),
        lambda model: model[second].reset_running_stats(),
        lambda model: model.load_state_dict(random_numbers(copy.deepcopy(plain)).state_dict()),
        lambda model: [setattr(model[1], name, None) for name in ("running_mean", "running_var")],
        lambda model: setattr(model[second], "track_running_stats", False),
        lambda model: model.train(),
    ):
        torch.manual_seed(0)
        change(ours)
        torch.manual_seed(0)
        change(plain)
        objective = Objective(CE, ((CE, "l2_squared"),))
        inputs = [data(*network(name).shapes[0]).to(device)]
        assert_equal(observe(ours, inputs, objective), observe(plain, inputs, objective))


class Counted(TorchDispatchMode):
    """Counts the ops of the family."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith("datagrad.normalise"):
            self.count[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("penalised", [True, False])
def test_one_op_a_sweep(penalised: bool, device: str) -> None:
    """Sums that other sweeps took, gates and gradients of parameters cost no op of their own."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)).double()
    model, x = datagrad_ext.accelerate(model.to(device)), leaf(data(4, 6).to(device))
    with Counted() as mode:
        loss = loss_of(model(x))
        if penalised:
            loss = loss + data_gradient(loss, x).square().sum()
        loss.backward()
    sweeps = {"normalise_relu_forward": 1, "normalise_reverse": 1}
    assert mode.count == (sweeps | {"normalise_vjp": 1, "normalise_jvp": 1} if penalised else sweeps)


# module, shape that PyTorch refuses
REFUSED: list = [
    (nn.BatchNorm1d(4), (1, 4)),
    (nn.BatchNorm1d(4), (2, 4, 3, 3)),
    (nn.BatchNorm2d(4), (2, 4)),
    (nn.BatchNorm2d(4), (1, 4, 1, 1)),
    (nn.BatchNorm2d(4), (2, 5, 3, 3)),
    (nn.BatchNorm2d(4).eval(), (2, 5, 3, 3)),
    (nn.BatchNorm2d(4, eps=0.0), (2, 4, 3, 3)),
    (nn.BatchNorm3d(4), (2, 4, 3, 3)),
    (nn.GroupNorm(2, 4), (4,)),
    (nn.GroupNorm(2, 4), (2, 5)),
    (nn.GroupNorm(2, 4), (2, 6, 3)),
    (nn.GroupNorm(2, 2), (1, 2, 1)),
    (nn.LayerNorm((3, 4)), (2, 4, 3)),
    (nn.LayerNorm((3, 4)), (4,)),
    (nn.InstanceNorm2d(4), (2, 4, 1, 1)),
    (nn.InstanceNorm2d(4), (4, 3)),
    (nn.InstanceNorm2d(4, affine=True), (2, 5, 3, 3)),
    (nn.InstanceNorm1d(4, affine=True), (5, 3)),
]


@pytest.mark.parametrize(("module", "shape"), REFUSED, ids=str)
def test_refuses_what_torch_refuses(module: nn.Module, shape: tuple[int, ...], device: str) -> None:
    module, x = module.to(device), torch.ones(shape, device=device, requires_grad=True)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        module(x)
    with pytest.raises(expected.type):
        datagrad_ext.accelerate(nn.Sequential(module))(x)


def test_warns_where_torch_warns() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.InstanceNorm1d(4)))
    with pytest.warns(UserWarning, match="input's size at dim=1 does not match num_features"):
        model(torch.ones(2, 3, 5, requires_grad=True))


EMPTY: list = [
    (nn.BatchNorm1d(4), (0, 4)),
    (nn.BatchNorm2d(4), (2, 4, 0, 3)),
    (nn.GroupNorm(2, 4), (0, 4, 3)),
    (nn.LayerNorm(4), (0, 4)),
    (nn.LayerNorm((3, 4)), (0, 2, 3, 4)),
    (nn.InstanceNorm1d(4), (0, 4, 3)),
    (nn.BatchNorm1d(4).eval(), (0, 4)),
]


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize(("module", "shape"), EMPTY, ids=str)
def test_nothing_to_normalise(module: nn.Module, shape: tuple[int, ...], penalised: bool, device: str) -> None:
    model = nn.Sequential(module, nn.Softplus()).double().train(module.training)

    def code(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = model(x)
        J = data_gradient(y.square().sum(), x)
        (y.sum() + J.square().sum() if penalised else y.sum()).backward()
        for k, p in enumerate(model.parameters()):
            p.grad += k  # as a later backward does: no two gradients may be one tensor
        return {"y": y, "J": J}

    check(model, [data(*shape)], code, datagrad_ext.accelerate, device=device)


BEYOND_SECOND_ORDER: list = [
    (nn.BatchNorm1d(4, eps=0.1), (5, 4)),
    (nn.BatchNorm2d(4, affine=False), (2, 4, 3, 2)),
    (nn.GroupNorm(2, 4), (2, 4, 3)),
    (nn.LayerNorm(4), (3, 4)),
    (nn.LayerNorm((3, 4)), (2, 5, 3, 4)),
    (nn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
]


@pytest.mark.parametrize(("module", "shape"), BEYOND_SECOND_ORDER, ids=str)
def test_third_derivatives_and_batched_cotangents(module: nn.Module, shape: tuple[int, ...], device: str) -> None:
    def code(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = model(x)
        J = data_gradient(y.square().sum(), x)
        K = data_gradient((J * J.detach()).sum(), x)
        cotangents = torch.stack([torch.ones_like(y), y.detach()])
        (rows,) = torch.autograd.grad(y, x, cotangents, create_graph=True, is_grads_batched=True)
        (K.square().sum() + rows.square().sum()).backward()
        return {"J": J, "K": K, "rows": rows}

    model = by_formula(nn.Sequential(random_numbers(copy.deepcopy(module)), nn.Tanh()).double())
    with pytest.warns(datagrad_ext.ReferencePathWarning):
        check(model, [data(*shape)], code, lambda m: datagrad_ext.accelerate(as_pytorch(m)), device=device)


GAPS: list = [
    (nn.BatchNorm1d(4), (5, 4)),
    (nn.BatchNorm1d(4).eval(), (5, 4)),
    (nn.BatchNorm2d(4).eval(), (3, 4, 3, 2)),
    (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), (5, 4)),
    (nn.LayerNorm(4), (5, 4)),
    (nn.GroupNorm(2, 4), (3, 4, 5)),
    (nn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
]


def _with_gaps(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        p.data = torch.stack([p.data, torch.full_like(p.data, 7.0)], -1)[..., 0]
    return datagrad_ext.accelerate(model)


@pytest.mark.parametrize(("module", "shape"), GAPS, ids=str)
def test_parameters_with_gaps_between_elements(module: nn.Module, shape: tuple[int, ...], device: str) -> None:
    """PyTorch itself is wrong for some, so its model has dense ones."""

    def code(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = model(x)
        J = data_gradient(y.square().sum(), x)
        (y.sum() + J.square().sum()).backward()
        return {"y": y, "J": J}

    model = nn.Sequential(random_numbers(copy.deepcopy(module)), nn.Tanh()).double().train(module.training)
    check(model, [data(*shape)], code, _with_gaps, device=device)


MIXED = [
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4).eval(),
    nn.GroupNorm(2, 4),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm((4, 3, 5)),
]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("module", MIXED, ids=str)
def test_parameters_in_float32(module: nn.Module, low: torch.dtype, device: str) -> None:
    """Input of 16 bits: gradients of parameters in float32, close to those of float64."""

    def code(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = model(x)
        ramp = torch.linspace(0, 1, y.numel()).to(y).view_as(y)
        J = data_gradient((y.sigmoid() * ramp).sum(), x)
        ((y * ramp).square().mean() + J.square().sum()).backward()
        return {"y": y, "J": J}

    x = data(6, 4, 3, 5).to(device, low)
    model = nn.Sequential(module).train(module.training)
    ours = observe(datagrad_ext.accelerate(copy.deepcopy(model).to(device)), [x], code)
    exact = observe(copy.deepcopy(model).to(device).double(), [x.double()], code)
    assert {k: v.dtype for k, v in ours.items() if k.startswith("grad 0.")} == {
        "grad 0.weight": torch.float32,
        "grad 0.bias": torch.float32,
    }
    assert ours["value y"].dtype == ours["value J"].dtype == low
    wanted = [k for k in exact if k.startswith(("grad", "value"))]
    assert_similar(
        {k: ours[k] for k in wanted}, {k: exact[k] for k in wanted}, norm=0.05, cosine=2e-3, bias=0.02
    )


def test_parameters_of_another_dtype_are_refused() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.LayerNorm(4).double()))
    with pytest.raises(RuntimeError, match="weight must have x's dtype float32, got float64"):
        model(torch.ones(2, 4, requires_grad=True))


@pytest.mark.parametrize("name", ["group_norm", "batch_norm", "batch_norm_eval", "instance_norm"])
def test_channels_last_stays(name: str, device: str) -> None:
    norms = {
        "group_norm": nn.GroupNorm(2, 4),
        "batch_norm": nn.BatchNorm2d(4),
        "batch_norm_eval": nn.BatchNorm2d(4).eval(),
        "instance_norm": nn.InstanceNorm2d(4),
    }
    model = datagrad_ext.accelerate(nn.Sequential(norms[name].to(device)))
    x = leaf(torch.randn(2, 4, 5, 6, device=device).contiguous(memory_format=torch.channels_last))
    y = model(x)
    J = data_gradient(y.pow(3).sum(), x)
    J.square().sum().backward()
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, J, x.grad))


_C = (4,)
# name, shapes of the parameters behind x, how to call
FUNCTIONS: list = [
    ("layer_norm", ((4, 3), (4, 3)), lambda f, x, w, b: f.layer_norm(x, (4, 3), w, b, 0.1)),
    ("group_norm", (_C, _C), lambda f, x, w, b: f.group_norm(x, 2, w, b)),
    ("instance_norm", (_C, _C), lambda f, x, w, b: f.instance_norm(x, weight=w, bias=b)),
    ("batch_norm", (_C,), lambda f, x, w: f.batch_norm(x, None, None, w, training=True)),
]


@pytest.mark.parametrize(("name", "shapes", "call"), FUNCTIONS)
def test_functions_with_parameters(name: str, shapes: tuple, call: Callable, device: str) -> None:
    def results(library: object) -> dict[str, Tensor | None]:
        leaves = [leaf(data(*shape, seed=k).to(device)) for k, shape in enumerate(((5, 4, 3), *shapes))]
        J = data_gradient(call(library, *leaves).sigmoid().square().sum(), leaves[0])
        J.square().sum().backward()
        return {"J": J} | {f"grad {k}": t.grad for k, t in enumerate(leaves)}

    assert_equal(results(datagrad_ext.functional), results(F))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_functions_with_running_statistics(name: str, training: bool, device: str) -> None:
    def results(library: object) -> dict[str, Tensor | None]:
        x, weight = leaf(data(5, 4, 3).to(device)), leaf(data(4, seed=2).to(device))
        mean, var = data(4, seed=3).to(device), data(4, seed=4).abs().to(device)
        for _ in range(2):
            y = getattr(library, name)(x, mean, var, weight, None, training, 0.3)
            J = data_gradient(y.sigmoid().square().sum(), x)
        J.square().sum().backward()
        return {"y": y, "J": J, "mean": mean, "var": var, "grad x": x.grad, "grad w": weight.grad}

    assert_equal(results(datagrad_ext.functional), results(F))


def test_sync_batch_norm_alone_is_batch_norm(device: str) -> None:
    module = nn.SyncBatchNorm(4, momentum=0.4)
    check(
        nn.Sequential(module, nn.Tanh()).double(),
        [data(3, 4, 2, 2)],
        Objective(CE, ((CE, "l2_squared"),)),
        datagrad_ext.accelerate,
        device=device,
    )


def test_sync_batch_norm_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda *arguments, value=value: value)
    model = datagrad_ext.accelerate(nn.Sequential(nn.SyncBatchNorm(4)))
    with pytest.raises(RuntimeError, match="SyncBatchNorm: its statistics span processes"):
        model(torch.ones(3, 4, requires_grad=True))
