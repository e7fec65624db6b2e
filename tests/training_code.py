"""Rows of ordinary autograd code, each run on a plain and on an accelerated model.

`run(model, x)` is what a user writes; what it returns, and every gradient it leaves, must be the same for
both. `reasons` are regular expressions for what the one warning of the reference path must name; none: the
fast path, no warning. `networks` are names of rows of cases.NETWORKS.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwd
from cases import LOSSES, PENALTIES, flat
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

TRACEABLE = ("mlp_relu", "mlp_gelu", "mlp_leaky_relu", "conv_critic", "dag_dense")
EVERYWHERE = (*TRACEABLE, "mlp_batch_norm", "opaque_scaled_weights", "untraceable")
SMOOTH = ("mlp_gelu", "mlp_softplus_beta", "dag_residual_smooth")
THIRD, PARAMETER, FUNC, FORWARD_MODE = "third order", "parameter gradient", "torch.func", "forward.mode"
Returned = Mapping[str, "Tensor | None"]


@dataclass(frozen=True)
class Code:
    name: str
    run: Callable[[nn.Module, Tensor], Returned]
    networks: tuple[str, ...]
    reasons: tuple[str, ...]


CODES: list[Code] = []


def row(networks: Iterable[str] = EVERYWHERE, *reasons: str) -> Callable:
    """Make the function a row of the table."""

    def register(run: Callable[[nn.Module, Tensor], Returned]) -> Callable:
        CODES.append(Code(run.__name__, run, tuple(networks), reasons))
        return run

    return register


def loss_of(y: object) -> Tensor:
    return LOSSES["cross_entropy"](flat(y))


def potential(y: object) -> Tensor:
    return LOSSES["logsumexp"](flat(y))


def data_gradient(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value, x, create_graph=True)[0]


def penalised(model: nn.Module, x: Tensor) -> Tensor:
    """Cross-entropy + ‖J‖², the usual total."""
    loss = loss_of(model(x))
    return loss + data_gradient(loss, x).square().sum()


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def numbered(gradients: Sequence[Tensor | None]) -> Returned:
    return {str(k): g for k, g in enumerate(gradients)}


# ----------------------------------------------------------------------------------------------- fast path


@row()
def accumulates_over_steps(model, x):
    for _ in range(3):
        penalised(model, x).backward()
    return {}


@row()
def retain_graph_twice(model, x):
    total = penalised(model, x)
    total.backward(retain_graph=True)
    total.backward()
    return {}


@row()
def retain_graph_three_different_backwards(model, x):
    y = model(x)
    J = data_gradient(potential(y), x)
    J.abs().sum().backward(retain_graph=True)
    loss_of(y).backward(retain_graph=True)
    (loss_of(y) + J.square().sum()).backward()
    return {}


@row(("dag_two_heads", "dag_tuple_output"))
def data_gradient_of_one_head(model, x):
    """The penalty's cotangent never reaches the other head, whose own loss is there all the same."""
    first, second = model(x)
    J = data_gradient(first.square().sum(), x)
    (second.square().sum() + J.square().sum()).backward()
    return {"J": J}


@row()
def two_data_gradients_of_one_forward(model, x):
    y = model(x)
    J, K = data_gradient(loss_of(y), x), data_gradient(potential(y), x)
    (J.abs().sum() + (J * K).sum() + loss_of(y)).backward()
    return {"J": J, "K": K}


@row()
def jacobian_penalty_row_by_row(model, x):
    y = flat(model(x))
    total = sum(data_gradient(y[:, k].sum(), x).square().sum() for k in range(3))
    (total + loss_of(y)).backward()
    return {}


@row()
def wgan_gp(model, x):
    """Three forwards of one network in one loss."""
    fake = x.detach().flip(0) * 0.7
    middle = (0.3 * x.detach() + 0.7 * fake).requires_grad_()
    J = data_gradient(model(middle).sum(), middle)
    (model(fake).mean() - model(x).mean() + 10 * (J.flatten(1).norm(dim=1) - 1).square().mean()).backward()
    return {"middle": middle.grad}


@row()
def r1_penalty_alone(model, x):
    J = data_gradient(model(x).sum(), x)
    J.square().sum().backward()
    return {"J": J}


@row()
def forward_between_data_gradient_and_backward(model, x):
    loss = loss_of(model(x))
    J = data_gradient(loss, x)
    other = loss_of(model(x.detach() + 1))
    (J.abs().sum() + loss + other).backward()
    return {}


@row()
def adversarial_direction_is_differentiated(model, x):
    """The data gradient of one forward is the input of a second one."""
    J = data_gradient(loss_of(model(x)), x)
    loss_of(model(x + 0.1 * J / J.norm())).backward()
    return {}


@row()
def fgsm_without_create_graph(model, x):
    y = model(x)
    (J,) = torch.autograd.grad(loss_of(y), x, retain_graph=True)
    (loss_of(y) + loss_of(model(x + 0.1 * J.sign()))).backward()
    return {"J": J}


@row()
def data_gradient_only_detached(model, x):
    loss = loss_of(model(x))
    J = data_gradient(loss, x)
    (loss * J.detach().norm()).backward()
    return {}


@row()
def data_gradient_never_used(model, x):
    loss = loss_of(model(x))
    data_gradient(loss, x)
    loss.backward()
    return {}


@row()
def loss_never_used(model, x):
    """y itself is dropped before the backward: only the data gradient holds the graph."""
    J = data_gradient(potential(model(x)), x)
    (J * J.flip(0)).sum().backward()
    return {}


@row()
def product_of_loss_and_penalty(model, x):
    loss = loss_of(model(x))
    (loss * data_gradient(loss, x).square().sum()).backward()
    return {}


@row()
def zero_cotangents(model, x):
    loss = loss_of(model(x))
    J = data_gradient(loss, x)
    (loss * 0 + (J * 0).sum()).backward()
    return {}


@row()
def zero_cotangent_of_one_of_two(model, x):
    y = model(x)
    J, K = data_gradient(loss_of(y), x), data_gradient(potential(y), x)
    ((J * 0).sum() + K.abs().sum()).backward()
    return {}


@row()
def explicit_cotangent(model, x):
    y = flat(model(x))
    v = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    (J,) = torch.autograd.grad(y, x, v, create_graph=True)
    J.abs().sum().backward()
    return {"J": J}


@row()
def cotangent_with_gradient(model, x):
    """The double-backward trick: a tangent pushed forward as the gradient with respect to a cotangent."""
    y = flat(model(x))
    v = torch.ones_like(y, requires_grad=True)
    (J,) = torch.autograd.grad(y, x, v, create_graph=True)
    (tangent,) = torch.autograd.grad(J, v, x.detach(), retain_graph=True)
    (J.square().sum() + loss_of(y)).backward()
    return {"tangent": tangent, "v": v.grad}


@row()
def expanded_cotangent(model, x):
    y = flat(model(x))
    (J,) = torch.autograd.grad(
        y, x, torch.ones((), dtype=y.dtype, device=y.device).expand_as(y), create_graph=True
    )
    (J * J.detach()).mean().backward()
    return {"J": J}


@row()
def non_leaf_data_gradient(model, x):
    h = torch.tanh(x) * 2
    loss = loss_of(model(h))
    (loss + data_gradient(loss, h).abs().sum()).backward()
    return {}


@row()
def data_gradient_through_the_input(model, x):
    h = torch.tanh(x) * 2
    loss = loss_of(model(h))
    (loss + data_gradient(loss, x).abs().sum()).backward()
    return {}


@row()
def two_data_gradients_at_two_depths(model, x):
    h = torch.tanh(x) * 2
    loss = loss_of(model(h))
    (data_gradient(loss, x).square().sum() + data_gradient(loss, h).abs().sum()).backward()
    return {}


@row()
def input_in_loss_too(model, x):
    loss = loss_of(model(x)) + x.square().mean()
    (loss + (data_gradient(loss, x) * x).sum()).backward()
    return {}


@row()
def input_without_gradient(model, x):
    loss_of(model(x.detach())).backward()
    return {}


@row()
def output_returned_twice_in_loss(model, x):
    y = flat(model(x))
    (y.square().sum() + y[0].sum() + loss_of(y)).backward()
    return {"y": y}


@row((*EVERYWHERE, "dag_squeeze"))
def in_place_on_output(model, x):
    y = model(x)
    y += 1
    y[:, 0] = 0
    y.mul_(2)
    J = data_gradient(potential(y), x)
    (loss_of(y) + J.abs().sum()).backward()
    return {"y": y, "J": J}


@row()
def in_place_on_data_gradient(model, x):
    loss = loss_of(model(x))
    J = data_gradient(loss, x)
    J += 1
    J[0] = 0
    (loss + J.square().sum()).backward()
    return {"J": J}


@row()
def hooks_on_tensors(model, x):
    seen = []
    x.register_hook(lambda g: seen.append(g.detach()) or g * 2)
    y = model(x)
    y.register_hook(lambda g: g * 3)
    y.retain_grad()
    J = data_gradient(loss_of(y), x)
    J.register_hook(lambda g: g * 5)
    J.retain_grad()
    (loss_of(y) + J.square().sum()).backward()
    return {"y.grad": y.grad, "J.grad": J.grad, **numbered(seen)}


@row()
def hooks_on_parameters(model, x):
    count = torch.zeros(())

    def after(parameter):
        count.add_(1)

    handles = [p.register_hook(lambda g: g * 2) for p in weights(model)[::2]]
    handles += [p.register_post_accumulate_grad_hook(after) for p in weights(model)]
    penalised(model, x).backward()
    for handle in handles:
        handle.remove()
    return {"count": count}


@row()
def hooks_on_the_module(model, x):
    seen = []
    handles = [
        model.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 1.5,)),
        model.register_forward_hook(lambda m, inputs, y: y * 2),
        model.register_full_backward_pre_hook(lambda m, g: (g[0] * 0.5,)),
        model.register_full_backward_hook(
            lambda m, g_in, g_out: seen.append(g_out[0].detach()) or (g_in[0] * 3,)
        ),
    ]
    loss = loss_of(model(x))
    J = data_gradient(loss, x)
    (loss + J.square().sum()).backward()
    for handle in handles:
        handle.remove()
    return {"J": J, "calls": torch.tensor(len(seen)), **numbered(seen)}


@row()
def backward_that_fails_first(model, x):
    y = model(x)
    J = data_gradient(potential(y), x)
    total = loss_of(y) + J.abs().sum()

    def fail(gradient):
        raise ArithmeticError

    for tensor in (y, J, x):
        handle = tensor.register_hook(fail)
        try:
            total.backward(retain_graph=True)
        except ArithmeticError:
            handle.remove()
        x.grad = None
        model.zero_grad()
    total.backward()
    return {}


@row()
def other_total_after_a_failed_backward(model, x):
    """What the failed backward left behind must not enter the gradient of the next loss."""
    y = model(x)
    J, K = data_gradient(potential(y), x), data_gradient(loss_of(y), x)

    def fail(gradient):
        raise ArithmeticError

    handle = y.register_hook(fail)
    try:
        (J.square().sum() + loss_of(y)).backward(retain_graph=True)
    except ArithmeticError:
        handle.remove()
    x.grad = None
    model.zero_grad()
    K.abs().sum().backward()
    return {}


@row()
def backward_in_another_thread(model, x):
    total = penalised(model, x)
    thread = threading.Thread(target=total.backward)
    thread.start()
    thread.join()
    return {}


@row()
def saved_tensor_hooks(model, x):
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = penalised(model, x)
    assert packed
    total.backward()
    return {}


@row()
def save_on_cpu(model, x):
    with torch.autograd.graph.save_on_cpu():
        total = penalised(model, x)
    total.backward()
    return {}


@row((*TRACEABLE, "mlp_dropout", "untraceable"))
def checkpointed(model, x):
    loss = loss_of(checkpoint(model, x, use_reentrant=False))
    loss.backward()
    return {}


@row((*TRACEABLE, "mlp_dropout", "untraceable"))
def checkpointed_with_data_gradient(model, x):
    loss = loss_of(checkpoint(model, x, use_reentrant=False))
    J = data_gradient(loss, x)
    (loss + J.abs().sum()).backward()
    return {}


@row()
def anomaly_mode(model, x):
    with torch.autograd.set_detect_anomaly(True):
        penalised(model, x).backward()
    return {}


@row()
def no_grad_before_training(model, x):
    with torch.no_grad():
        y = model(x)
    assert not y.requires_grad
    penalised(model, x).backward()
    return {"y": y}


@row()
def inference_mode_before_training(model, x):
    with torch.inference_mode():
        y = model(x)
    assert y.is_inference()
    penalised(model, x).backward()
    return {"y": y + 0}


@row()
def enable_grad_inside_no_grad(model, x):
    with torch.no_grad():
        with torch.enable_grad():
            loss = loss_of(model(x))
            total = loss + data_gradient(loss, x).square().sum()
        total.backward()
    return {}


@row(("mlp_gelu", "mlp_relu", "dag_residual", "mlp_dropout"))
def network_of_itself(model, x):
    y = model(x)
    y = model(torch.cat([y, y], 1)[:, :6])
    (loss_of(y) + data_gradient(loss_of(y), x).abs().sum()).backward()
    return {}


@row(("dag_residual_smooth", "dag_shared_module"))
def data_gradient_into_the_same_network(model, x):
    """Energy model: the force is fed to the network again."""
    y = model(x)
    J = data_gradient(potential(y), x)
    (loss_of(model(J)) + loss_of(y)).backward()
    return {"J": J}


@row(("dag_residual_smooth", "mlp_relu"))
def data_gradient_into_another_network(model, x):
    other = copy.deepcopy(model)
    J = data_gradient(potential(model(x)), x)
    (loss_of(other(J)) + loss_of(other(x))).backward()
    return {f"other {k}": p.grad for k, p in other.named_parameters()}


@row()
def functional_call_is_ordinary_autograd(model, x):
    theta = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
    loss = loss_of(functional_call(model, theta, (x,)))
    (loss + data_gradient(loss, x).abs().sum()).backward()
    return {k: p.grad for k, p in theta.items()}


@row()
def functional_call_with_non_leaf_parameters(model, x):
    scale = torch.tensor(1.1, dtype=x.dtype, device=x.device, requires_grad=True)
    theta = {k: p * scale for k, p in model.named_parameters()}
    loss = loss_of(functional_call(model, theta, (x,)))
    (loss + data_gradient(loss, x).abs().sum()).backward()
    return {"scale": scale.grad}


@row()
def training(model, x):
    """Five steps of SGD with momentum; the parameters are compared."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        penalised(model, x).backward()
        optimizer.step()
    return {f"parameter {k}": p for k, p in model.named_parameters()}


@row()
def jacobian_by_autograd(model, x):
    return {"jacobian": torch.autograd.functional.jacobian(lambda v: flat(model(v)), x)}


@row()
def jacobian_created_with_graph(model, x):
    jacobian = torch.autograd.functional.jacobian(lambda v: flat(model(v)), x, create_graph=True)
    jacobian.square().sum().backward()
    return {"jacobian": jacobian}


@row(("mlp_gelu", "mlp_relu", "opaque_scaled_weights"))
def hessian_by_autograd(model, x):
    return {"hessian": torch.autograd.functional.hessian(lambda v: potential(model(v)), x)}


@row()
def hessian_vector_product(model, x):
    J = data_gradient(potential(model(x)), x)
    return {"Hv": torch.autograd.grad(J, x, x.detach().cos())[0]}


@row(("mlp_relu", "mlp_gelu", "conv_critic", "opaque_scaled_weights"), "batched")
def batched_cotangents(model, x):
    y = flat(model(x))
    eye = torch.eye(y.numel(), dtype=y.dtype, device=y.device).view(-1, *y.shape)
    return {"jacobian": torch.autograd.grad(y, x, eye, is_grads_batched=True)[0]}


# ------------------------------------------------------------------------------------------ reference path


@row(EVERYWHERE, PARAMETER)
def maml(model, x):
    names = [k for k, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_of(model(x)), weights(model), create_graph=True)
    fast = {k: p - 0.1 * g for k, p, g in zip(names, weights(model), gradients, strict=True)}
    potential(functional_call(model, fast, (x.detach() + 1,))).backward()
    return {}


@row(EVERYWHERE, PARAMETER)
def penalty_on_parameter_gradients(model, x):
    loss = loss_of(model(x))
    gradients = torch.autograd.grad(loss, weights(model), create_graph=True)
    (loss + sum(g.square().sum() for g in gradients)).backward()
    return numbered(gradients)


@row(EVERYWHERE, PARAMETER)
def penalty_on_data_and_parameter_gradients(model, x):
    loss = loss_of(model(x))
    J, *gradients = torch.autograd.grad(loss, [x, *weights(model)], create_graph=True)
    (loss + J.abs().sum() + sum(g.square().sum() for g in gradients)).backward()
    return numbered(gradients)


@row(EVERYWHERE, PARAMETER)
def first_order_with_create_graph(model, x):
    """Asked for with create_graph and never differentiated."""
    return numbered(torch.autograd.grad(loss_of(model(x)), [x, *weights(model)], create_graph=True))


@row(SMOOTH, THIRD, PARAMETER)
def parameter_gradient_of_a_penalty_with_create_graph(model, x):
    """Second-order gradients with respect to the parameters that are differentiated once more."""
    gradients = torch.autograd.grad(penalised(model, x), weights(model), create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    return numbered(gradients)


@row((*SMOOTH, "opaque_scaled_weights"), THIRD)
def laplacian(model, x):
    """A physics-informed network: mean of (Δu - f)²."""
    J = data_gradient(model(x).sum(), x)
    trace = sum(data_gradient(J[:, k].sum(), x)[:, k] for k in range(x.shape[1]))
    (trace - 1).square().mean().backward()
    return {"trace": trace}


@row((*SMOOTH, "opaque_scaled_weights"), THIRD)
def third_derivative(model, x):
    J = data_gradient(potential(model(x)), x)
    K = data_gradient(J.square().sum(), x)
    M = data_gradient(K.square().sum(), x)
    M.sum().backward()
    return {"J": J, "K": K, "M": M}


@row(SMOOTH, THIRD)
def laplacian_and_gradient_and_value(model, x):
    """All orders at once: value, first and second derivative in one residual."""
    u = model(x)
    J = data_gradient(u.sum(), x)
    trace = sum(data_gradient(J[:, k].sum(), x)[:, k] for k in range(2))
    (u.square().sum() + (J.sum(1) * trace).sum() + PENALTIES["l1"](J)).backward()
    return {}


@row(SMOOTH, THIRD)
def hessian_penalty(model, x):
    J = data_gradient(potential(model(x)), x)
    Hv = data_gradient((J * x.detach()).sum(), x)
    Hv.square().sum().backward()
    return {"Hv": Hv}


@row(SMOOTH, THIRD)
def differentiable_tangent(model, x):
    """The double-backward trick for a tangent that is itself trained."""
    y = flat(model(x))
    v = torch.ones_like(y, requires_grad=True)
    (J,) = torch.autograd.grad(y, x, v, create_graph=True)
    (tangent,) = torch.autograd.grad(J, v, x.detach(), create_graph=True)
    tangent.square().sum().backward()
    return {"tangent": tangent}


def _functional(model: nn.Module) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    theta = {k: p.detach() for k, p in model.named_parameters()}
    return theta, lambda parameters, x: flat(functional_call(model, parameters, (x,)))


@row(TRACEABLE, FUNC)
def func_grad(model, x):
    theta, f = _functional(model)
    return torch.func.grad(lambda p: loss_of(f(p, x.detach())))(theta)


@row(TRACEABLE, FUNC)
def func_grad_of_grad(model, x):
    theta, f = _functional(model)

    def total(p, v):
        J = torch.func.grad(lambda u: loss_of(f(p, u)))(v)
        return J.square().sum()

    return torch.func.grad(total)(theta, x.detach())


@row(TRACEABLE, FUNC)
def func_per_sample_gradients(model, x):
    theta, f = _functional(model)
    per_sample = torch.func.vmap(torch.func.grad(lambda p, v: potential(f(p, v[None]))), in_dims=(None, 0))
    return per_sample(theta, x.detach())


@row(TRACEABLE, FUNC)
def func_vmap(model, x):
    return {"y": torch.func.vmap(lambda v: flat(model(v[None])))(x.detach())}


@row(TRACEABLE, FUNC)
def func_jacobians(model, x):
    f = lambda v: flat(model(v))  # noqa: E731
    v = x.detach()
    return {"reverse": torch.func.jacrev(f)(v), "forward": torch.func.jacfwd(f)(v)}


@row(("mlp_gelu", "dag_dense"), FUNC)
def func_hessian(model, x):
    return {"hessian": torch.func.hessian(lambda v: potential(model(v)))(x.detach())}


@row(TRACEABLE, FUNC)
def func_jvp(model, x):
    y, tangent = torch.func.jvp(lambda v: flat(model(v)), (x.detach(),), (torch.ones_like(x),))
    return {"y": y, "tangent": tangent}


@row(TRACEABLE, FORWARD_MODE)
def forward_mode(model, x):
    with fwd.dual_level():
        y = flat(model(fwd.make_dual(x.detach(), torch.ones_like(x))))
        return {"tangent": fwd.unpack_dual(y).tangent}


@row(TRACEABLE, FORWARD_MODE)
def forward_mode_over_reverse(model, x):
    with fwd.dual_level():
        v = fwd.make_dual(x.detach().requires_grad_(), torch.ones_like(x))
        J = data_gradient(potential(model(v)), v)
        return {"Hv": fwd.unpack_dual(J).tangent}
