"""The oracle: ordinary autograd on an unmodified copy of the model, and comparers of two runs.

`observe` runs a piece of training code and collects all a user could look at afterwards: the values it
returned, the gradients of parameters and inputs, the buffers, the state of the random generator. `check` does
it for the plain and for the accelerated model and compares. Nothing here knows the package under test.
"""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Results = dict[str, "Tensor | None"]
Code = Callable[..., Mapping[str, "Tensor | None"]]
RTOL = 1e-10


@dataclass(frozen=True)
class Difference:
    """How far a tensor is from the expected one; all zero if equal.

    elementwise  max |a - b| / max |b|
    norm         ‖a - b‖ / ‖b‖
    cosine       1 - <a, b> / (‖a‖ ‖b‖)
    bias         <a, b> / <b, b> - 1, a wrong overall factor
    """

    elementwise: float
    norm: float
    cosine: float
    bias: float


def _ratio(numerator: float, denominator: float) -> float:
    if denominator:
        return numerator / denominator
    return 0.0 if numerator == 0 else math.inf


def difference(actual: Tensor, expected: Tensor, floor: float = 0.0) -> Difference:
    """Difference in float64; `floor` is the smallest scale that the elementwise error is relative to.

    Infinities and NaN must be at the same places; then they count as equal.
    """
    a, b = (t.detach().to("cpu", torch.float64).flatten() for t in (actual, expected))
    if a.shape != b.shape:
        return Difference(math.inf, math.inf, math.inf, math.inf)
    special = ~torch.isfinite(b)
    if not torch.equal(torch.nan_to_num(a[special], 0.5), torch.nan_to_num(b[special], 0.5)):
        return Difference(math.inf, math.inf, math.inf, math.inf)
    a, b = a[~special], b[~special]
    if not bool(torch.isfinite(a).all()):
        return Difference(math.inf, math.inf, math.inf, math.inf)
    if a.numel() == 0:
        return Difference(0.0, 0.0, 0.0, 0.0)
    error, aa, ab, bb = float((a - b).abs().max()), float(a @ a), float(a @ b), float(b @ b)
    return Difference(
        elementwise=_ratio(error, max(float(b.abs().max()), floor)),
        norm=_ratio(float((a - b).norm()), math.sqrt(bb)),
        cosine=1 - ab / math.sqrt(aa * bb) if aa and bb else float(aa != bb),
        bias=ab / bb - 1 if bb else float(aa != 0),
    )


def scale_of(results: Mapping[str, Tensor | None]) -> float:
    """The largest finite gradient: rounding errors of one gradient that cancels are relative to it."""
    values = [
        t.detach()[torch.isfinite(t)]
        for name, t in results.items()
        if t is not None and name.startswith("grad ")
    ]
    return max((float(v.abs().max()) for v in values if v.numel()), default=0.0)


def _same_kind(name: str, actual: Tensor, expected: Tensor) -> None:
    for what in ("shape", "dtype", "device"):
        ours, theirs = getattr(actual, what), getattr(expected, what)
        assert ours == theirs, f"{name}: {what} is {ours}, autograd has {theirs}"


def assert_equal(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], rtol: float = RTOL
) -> None:
    """Every tensor equal to rtol of its largest element (of 1e-4 of the largest gradient, if it cancels).

    Where autograd leaves no gradient, exact zeros are accepted too; never the other way round.
    """
    assert actual.keys() == expected.keys(), f"only in one: {actual.keys() ^ expected.keys()}"
    floor = 1e-4 * scale_of(expected)
    wrong = []
    for name, b in expected.items():
        a = actual[name]
        if a is None or b is None:
            if a is not b and (a is None or bool(a.any())):
                wrong.append(f"{name}: {'None' if a is None else 'not None'}, autograd has the opposite")
            continue
        _same_kind(name, a, b)
        found = difference(a, b, floor)
        if not found.elementwise <= rtol:
            wrong.append(f"{name}: {found}")
    assert not wrong, "differs from autograd:\n  " + "\n  ".join(wrong)


def assert_similar(
    actual: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    norm: float,
    cosine: float,
    bias: float,
) -> None:
    """Low precision: every gradient close to the expected one by norm, direction and overall factor."""
    assert actual.keys() == expected.keys(), f"only in one: {actual.keys() ^ expected.keys()}"
    for name, b in expected.items():
        a = actual[name]
        if b is None or not b.any():
            continue
        assert a is not None, f"{name}: None, autograd has one"
        found = difference(a, b)
        close = found.norm <= norm and found.cosine <= cosine and abs(found.bias) <= bias
        assert close, f"{name}: {found}"


def observe(model: nn.Module, inputs: Sequence[Tensor], code: Code, seed: int = 0) -> Results:
    """Run `code(model, *inputs)` on fresh leaves and collect all that it leaves behind."""
    leaves = [leaf(t) for t in inputs]
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(seed)
    results: Results = {f"value {k}": v for k, v in code(model, *leaves).items()}
    results |= {f"grad {k}": p.grad for k, p in model.named_parameters()}
    results |= {f"grad input {k}": t.grad for k, t in enumerate(leaves) if t.is_leaf}
    results |= {f"buffer {k}": b for k, b in model.named_buffers()}
    results["random state"] = torch.random.get_rng_state()
    return {k: v if v is None else v.detach().clone() for k, v in results.items()}


def by_formula(model: nn.Module) -> nn.Module:
    """The model with its norms, by statistics of what they get, written out; in place.

    PyTorch's own take the statistics for constants in a third derivative.
    """
    for module in model.modules():
        if isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)):
            module.forward = types.MethodType(_normalised, module)
    return model


def as_pytorch(model: nn.Module) -> nn.Module:
    """The inverse."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
    return model


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        type(norm).forward(norm, x)  # moves the running statistics
    dims, shape = list(range(x.dim())), (-1, *[1] * (x.dim() - 2))
    if isinstance(norm, nn.LayerNorm):
        over, shape, z = dims[-len(norm.normalized_shape) :], norm.normalized_shape, x
    elif isinstance(norm, nn.GroupNorm):
        z, over = x.unflatten(1, (norm.num_groups, -1)), [d + 1 for d in dims[1:]]
    else:
        z, over = x, dims[2:] if isinstance(norm, _InstanceNorm) else [0, *dims[2:]]
    z = z - z.mean(over, keepdim=True)
    z = (z / (z.square().mean(over, keepdim=True) + norm.eps).sqrt()).reshape(x.shape)
    return z if norm.weight is None else z * norm.weight.view(shape) + norm.bias.view(shape)


def leaf(tensor: Tensor) -> Tensor:
    """A fresh leaf with the strides of `tensor` that wants a gradient (if it is floating point)."""
    return (
        tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(tensor.is_floating_point())
    )


def check(
    model: nn.Module,
    inputs: Sequence[Tensor],
    code: Code,
    accelerate: Callable[[nn.Module], nn.Module],
    rtol: float = RTOL,
    device: str = "cpu",
) -> None:
    """The accelerated model leaves behind exactly what the plain one does."""
    inputs = [t.to(device) for t in inputs]
    expected = observe(copy.deepcopy(model).to(device), inputs, code)
    actual = observe(accelerate(copy.deepcopy(model).to(device)), inputs, code)
    assert_equal(actual, expected, rtol)
