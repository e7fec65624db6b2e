"""The contract with autograd: whatever ordinary code asks, the answer is that of plain autograd."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import Case, data, network
from oracle import assert_equal, check, observe
from threads import run_threads
from torch import Tensor, nn
from training_code import (
    CODES,
    TRACEABLE,
    Code,
    data_gradient,
    loss_of,
    numbered,
    penalised,
    potential,
    weights,
)

import datagrad_ext

DEVICES = ("cpu", "functions", "cuda")

# torch's own forward-mode and compiler code uses torch.jit, which it deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]

ROWS = [
    pytest.param(code, network(name), id=f"{code.name}-{name}") for code in CODES for name in code.networks
]


def reference_path_warnings(recorded: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in recorded if issubclass(w.category, datagrad_ext.ReferencePathWarning)]


def _check_recording(
    model: nn.Module, inputs: list[Tensor], code: Callable, device: str = "cpu"
) -> list[str]:
    """`check`, and the reference-path warnings given meanwhile; every other warning is an error as usual."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always", datagrad_ext.ReferencePathWarning)
        check(model, inputs, code, datagrad_ext.accelerate, device=device)
    return reference_path_warnings(recorded)


@pytest.mark.parametrize(("code", "case"), ROWS)
def test_training_code(code: Code, case: Case, device: str) -> None:
    found = _check_recording(case.build(), case.inputs(), code.run, device)
    if case.name == "untraceable" and code.reasons:
        return  # each child is a network of its own, and says so itself
    assert len(found) == bool(code.reasons), found
    for reason in code.reasons:
        assert re.search(reason, found[0], re.IGNORECASE), found[0]
        assert len(found[0].split()) > 5, f"a warning is a sentence: {found[0]}"


def test_reference_path_warns_once_per_network() -> None:
    model, x = (
        datagrad_ext.accelerate(network("mlp_gelu").build()),
        network("mlp_gelu").inputs()[0].requires_grad_(),
    )
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always", datagrad_ext.ReferencePathWarning)
        for _ in range(3):
            torch.autograd.grad(loss_of(model(x)), weights(model), create_graph=True)
    assert len(reference_path_warnings(recorded)) == 1


# ------------------------------------------------------------------------------------ subsets of gradients

SUBSETS: dict[str, Callable[[nn.Module, Tensor], list[Tensor]]] = {
    "first": lambda model, x: weights(model)[:1],
    "last": lambda model, x: weights(model)[-1:],
    "weight_of_last": lambda model, x: weights(model)[-2:-1],
    "middle": lambda model, x: weights(model)[len(weights(model)) // 2 :][:2],
    "every_second": lambda model, x: weights(model)[::2],
    "parameters": lambda model, x: list(weights(model)),
    "input": lambda model, x: [x],
    "input_and_last": lambda model, x: [x, weights(model)[-1]],
    "all": lambda model, x: [x, *weights(model)],
    "all_reversed": lambda model, x: [*weights(model)[::-1], x],
}
# What is differentiated: the loss, loss + penalty, the penalty alone (of a curved and of a linear loss).
TOTALS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "loss": lambda model, x: loss_of(model(x)),
    "penalised": penalised,
    "penalty": lambda model, x: data_gradient(potential(model(x)), x).abs().sum(),
    "penalty_linear_head": lambda model, x: data_gradient(model(x).sum(), x).square().sum(),
}
SUBSET_NETWORKS = (
    "mlp_relu",
    "mlp_softplus",
    "conv_critic",
    "dag_dense",
    "mlp_batch_norm",
    "untraceable",
    "tied_modules",
)


@pytest.mark.parametrize("name", SUBSET_NETWORKS)
@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("subset", SUBSETS)
def test_gradient_with_respect_to_a_subset(subset: str, total: str, name: str, device: str) -> None:
    def by_grad(model: nn.Module, x: Tensor):
        return numbered(
            torch.autograd.grad(TOTALS[total](model, x), SUBSETS[subset](model, x), allow_unused=True)
        )

    def by_backward(model: nn.Module, x: Tensor):
        TOTALS[total](model, x).backward(inputs=SUBSETS[subset](model, x))
        return {}

    case = network(name)
    for code in (by_grad, by_backward):
        check(case.build(), case.inputs(), code, datagrad_ext.accelerate, device=device)


# -------------------------------------------------------------------------------------------------- errors


def _twice(model, x):
    total = penalised(model, x)
    total.backward()
    total.backward()


def _loss_after_backward(model, x):
    loss = loss_of(model(x))
    loss.backward()
    torch.autograd.grad(loss, x)


def _data_gradient_after_backward(model, x):
    y = model(x)
    J = data_gradient(potential(y), x)
    loss_of(y).backward()
    J.abs().sum().backward()


def _parameter_changed(which: int, before: str) -> Callable:
    def code(model, x):
        loss = loss_of(model(x))
        if before == "data gradient":
            with torch.no_grad():
                weights(model)[which].add_(1)
        J = data_gradient(loss, x)
        if before == "backward":
            with torch.no_grad():
                weights(model)[which].add_(1)
        (loss + J.square().sum()).backward()

    return code


def _optimizer_step_between(model, x):
    loss = loss_of(model(x))
    loss.backward(retain_graph=True)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    loss.backward()


def _input_changed(model, x):
    h = x * 1
    loss = loss_of(model(h))
    h.add_(1)
    loss.backward()


def _input_changed_before_second_order(model, x):
    h = x * 1
    loss = loss_of(model(h))
    J = data_gradient(loss, h)
    h.add_(1)
    (loss + J.square().sum()).backward()


def _without_any_gradient(model, x):
    model.requires_grad_(False)
    loss_of(model(x.detach())).backward()


def _data_gradient_of_input_without_gradient(model, x):
    torch.autograd.grad(loss_of(model(x.detach())), x)


def _wrong_width(model, x):
    model(torch.cat([x, x, x], 1))


def _no_argument(model, x):
    model()


def _unknown_argument(model, x):
    model(x, colour="red")


FREED, CHANGED = "second time", "modified by an inplace operation"
ERRORS = [
    pytest.param(_twice, FREED, id="backward_twice"),
    pytest.param(_loss_after_backward, FREED, id="data_gradient_after_backward"),
    pytest.param(_data_gradient_after_backward, FREED, id="penalty_after_backward_of_loss"),
    *(
        pytest.param(
            _parameter_changed(which, before),
            CHANGED,
            id=f"parameter_{which}_changed_before_{before.replace(' ', '_')}",
        )
        for which in (2, -2)
        for before in ("data gradient", "backward")
    ),
    pytest.param(_optimizer_step_between, CHANGED, id="optimizer_step_between_backwards"),
    pytest.param(_input_changed, CHANGED, id="input_changed"),
    pytest.param(_input_changed_before_second_order, CHANGED, id="input_changed_before_second_order"),
    pytest.param(_without_any_gradient, "does not require grad", id="nothing_requires_grad"),
    pytest.param(_data_gradient_of_input_without_gradient, "not have been used", id="detached_input"),
    pytest.param(_wrong_width, "shape|size|channels", id="wrong_width"),
    pytest.param(_no_argument, "missing", id="no_argument"),
    pytest.param(_unknown_argument, "unexpected keyword", id="unknown_argument"),
]


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_gelu", "conv_critic", "dag_dense", "untraceable"])
@pytest.mark.parametrize(("code", "match"), ERRORS)
def test_raises_as_autograd_does(code: Callable, match: str, name: str, device: str) -> None:
    case = network(name)
    raised = []
    for model in (case.build().to(device), datagrad_ext.accelerate(case.build().to(device))):
        (x,) = case.inputs()
        with pytest.raises((RuntimeError, TypeError), match=match) as caught:
            code(model, x.to(device).requires_grad_())
        raised.append(caught.type)
    assert raised[0] is raised[1]


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_gelu", "conv_critic"])
def test_works_after_an_error(name: str, device: str) -> None:
    """An error in one call leaves nothing behind for the next."""
    case = network(name)
    model = datagrad_ext.accelerate(case.build().to(device))
    x = case.inputs()[0].to(device).requires_grad_()
    for code in (_twice, _wrong_width, _parameter_changed(2, "backward"), _no_argument):
        with pytest.raises((RuntimeError, TypeError)):
            code(model, x)
    model.load_state_dict(case.build().state_dict())
    code = lambda m, v: {"total": penalised(m, v).backward()}  # noqa: E731
    assert_equal(observe(model, [x], code), observe(case.build().to(device), [x], code))


@pytest.mark.parametrize(
    "name", ["mlp_smooth_at_end", "mlp_activation_at_end", "dag_residual_smooth", "mlp_relu"]
)
def test_in_place_change_of_the_output_is_never_silently_wrong(name: str, device: str) -> None:
    """Plain autograd raises where it saved the output; ours may know how to go on, but then must be right."""
    case = network(name)

    def code(model, x, clone):
        y = model(x)
        y = y.clone() if clone else y
        y *= 2
        loss_of(y).backward()
        return {}

    expected = observe(
        case.build().to(device), [t.to(device) for t in case.inputs()], lambda m, x: code(m, x, True)
    )
    model = datagrad_ext.accelerate(case.build().to(device))
    try:
        actual = observe(model, [t.to(device) for t in case.inputs()], lambda m, x: code(m, x, False))
    except RuntimeError as error:
        if CHANGED not in str(error):
            raise
    else:
        assert_equal(actual, expected)


# -------------------------------------------------------------------------------- what requires a gradient


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", [*TRACEABLE, "mlp_batch_norm", "untraceable", "dag_dict_output"])
def test_without_gradients(name: str, mode: Callable, device: str) -> None:
    case = network(name)
    outputs = []
    for model in (case.build().to(device), datagrad_ext.accelerate(case.build().to(device))):
        with mode():
            y = model(*(t.to(device) for t in case.inputs()))
        tensors = list(y.values()) if isinstance(y, dict) else [y]
        assert not any(t.requires_grad or t.grad_fn is not None for t in tensors)
        assert all(t.is_inference() == (mode is torch.inference_mode) for t in tensors)
        outputs.append(numbered(tensors))
    assert_equal(outputs[1], outputs[0])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_output_requires_grad_as_in_autograd(frozen: bool, wanted: bool, device: str) -> None:
    case = network("mlp_relu")
    model = datagrad_ext.accelerate(case.build().to(device).requires_grad_(not frozen))
    y = model(case.inputs()[0].to(device).requires_grad_(wanted))
    assert y.requires_grad == (wanted or not frozen)
    assert y.is_leaf == (frozen and not wanted)


def test_parameters_used_by_two_networks(device: str) -> None:
    """Tied across networks: one trunk, two accelerated heads."""

    def code(model: nn.Module, x: Tensor):
        first, second = model
        loss = loss_of(first(x)) + potential(second(x))
        (loss + data_gradient(loss, x).abs().sum()).backward()
        return {}

    def build(accelerate: Callable[[nn.Module], nn.Module]) -> nn.Module:
        trunk = network("mlp_gelu").build()
        heads = [nn.Sequential(trunk, nn.Tanh(), nn.Linear(5, 3).double()) for _ in range(2)]
        for k, head in enumerate(heads):
            head[2].load_state_dict({"weight": torch.ones(3, 5) * (k + 1), "bias": torch.arange(3)})
        return nn.ModuleList(accelerate(head) for head in heads).to(device)

    x = [network("mlp_gelu").inputs()[0].to(device)]
    assert_equal(observe(build(datagrad_ext.accelerate), x, code), observe(build(lambda m: m), x, code))


# ------------------------------------------------------------------------------------------------- threads


def test_two_threads_train_two_models(device: str) -> None:
    names = ["mlp_gelu", "conv_critic"]
    plain = [network(name).build().to(device) for name in names]
    ours = [datagrad_ext.accelerate(copy.deepcopy(model)) for model in plain]
    xs = [network(name).inputs()[0].to(device) for name in names]

    def train(model: nn.Module, x: Tensor) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(15):
            optimizer.zero_grad()
            penalised(model, x.clone().requires_grad_()).backward()
            optimizer.step()

    run_threads([lambda m=m, x=x: train(m, x) for m, x in zip(ours, xs, strict=True)])
    for expected, actual, x in zip(plain, ours, xs, strict=True):
        train(expected, x)
        assert_equal(dict(actual.named_parameters()), dict(expected.named_parameters()), rtol=1e-9)


def test_one_model_is_first_called_by_four_threads(device: str) -> None:
    case = network("dag_dense")
    model, plain = datagrad_ext.accelerate(case.build().to(device)), case.build().to(device)
    found: dict[int, Tensor] = {}

    def body(k: int) -> None:
        x = case.inputs(seed=k)[0].to(device).requires_grad_()
        found[k] = torch.autograd.grad(penalised(model, x), x)[0]

    run_threads([lambda k=k: body(k) for k in range(4)])
    for k in range(4):
        x = case.inputs(seed=k)[0].to(device).requires_grad_()
        assert_equal({"x": found[k]}, {"x": torch.autograd.grad(penalised(plain, x), x)[0]})


# --------------------------------------------------------------------------------------- private functions

PRIVATE = [
    ("_will_engine_execute_node", torch._C),
    ("_current_graph_task_id", torch._C),
    ("_are_functorch_transforms_active", torch._C),
    ("_get_current_graph_task_keep_graph", torch._C._autograd),
    ("is_legacy_batchedtensor", torch._C._functorch),
    ("is_functorch_wrapped_tensor", torch._C._functorch),
    ("_is_any_autocast_enabled", torch._C),
    ("set_code_exec_strategy", torch._C._dynamo.eval_frame),
    ("_FrameExecStrategy", torch._C._dynamo.eval_frame),
    ("_FrameAction", torch._C._dynamo.eval_frame),
    ("_active_ddp_module", nn.parallel.DistributedDataParallel),
    ("maybe_clear_saved_tensors", torch.autograd.function.BackwardCFunction),
]


@pytest.mark.parametrize(("name", "where"), PRIVATE, ids=[name for name, _ in PRIVATE])
def test_private_function_is_still_there(name: str, where: object) -> None:
    assert hasattr(where, name), (
        f"torch {torch.__version__} has no {name} any more: it is private, and datagrad_ext/autograd.py or "
        "network.py uses it; find what replaced it (torch.autograd.graph asks the engine the same questions)"
    )


class _Probe(torch.autograd.Function):
    """Doubles its two inputs, and asks the engine in its backward which of them it will execute."""

    seen: dict[str, object]

    @staticmethod
    def forward(ctx, a, b):
        return a * 2, b * 2

    @staticmethod
    def backward(ctx, g, h):
        def executes(node):
            try:
                return torch._C._will_engine_execute_node(node)
            except RuntimeError:
                return "captured"

        _Probe.seen = {
            "executes": [executes(node) for node, _ in ctx.next_functions],
            "task": torch._C._current_graph_task_id(),
            "keep": torch._C._autograd._get_current_graph_task_keep_graph(),
        }
        return g * 2, h * 2


def test_engine_tells_which_gradients_are_wanted() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    sentence = "torch._C._will_engine_execute_node answers otherwise than datagrad_ext/autograd.py relies on"

    def executed() -> object:
        return _Probe.seen["executes"]

    sum(t.sum() for t in _Probe.apply(a, b)).backward()
    assert executed() == [True, True], sentence
    sum(t.sum() for t in _Probe.apply(a, b)).backward(inputs=[a])
    assert executed() in ([True, False], ["captured", False]), sentence
    torch.autograd.grad(sum(t.sum() for t in _Probe.apply(a, b)), b)
    assert executed() == [False, "captured"], sentence
    torch.autograd.grad(sum(t.sum() for t in _Probe.apply(a * 1, b * 1)), a)
    assert executed() == [True, False], sentence


def test_engine_numbers_its_backwards_and_knows_whether_the_graph_is_kept() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    total = sum(t.sum() for t in _Probe.apply(a, b))
    total.backward(retain_graph=True)
    first = dict(_Probe.seen)
    total.backward()
    assert first["task"] != _Probe.seen["task"], (
        "torch._C._current_graph_task_id gives two backwards one number"
    )
    assert torch._C._current_graph_task_id() == -1, (
        "torch._C._current_graph_task_id is not -1 outside of a backward"
    )
    assert (first["keep"], _Probe.seen["keep"]) == (True, False), (
        "torch._C._autograd._get_current_graph_task_keep_graph no longer tells whether the graph is retained"
    )


def test_an_input_out_of_an_ended_transform() -> None:
    """torch.autograd.Function would unwrap it; the two Functions leave it to the reference path."""
    model, kept = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), []
    x = data(2, 3).requires_grad_()
    torch.func.grad(lambda v: kept.append(v) or v.sum())(x)

    def gradients() -> list[Tensor]:
        (J,) = torch.autograd.grad(model(kept[0]).sum(), x, create_graph=True)
        return [J, *torch.autograd.grad(J.square().sum(), [p for p in model.parameters() if p.dim() == 2])]

    expected = gradients()
    datagrad_ext.accelerate(model)
    with pytest.warns(datagrad_ext.ReferencePathWarning, match="comes out of a torch.func transform that has ended"):
        found = gradients()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_functorch_tells_that_a_transform_is_active() -> None:
    inside = []
    torch.func.grad(lambda v: inside.append(torch._C._are_functorch_transforms_active()) or v.sum())(
        torch.ones(2)
    )
    assert (inside, torch._C._are_functorch_transforms_active()) == ([True], False), (
        "torch._C._are_functorch_transforms_active no longer tells that torch.func is at work: its "
        "transforms reach the autograd Functions of datagrad_ext and give wrong second derivatives"
    )
