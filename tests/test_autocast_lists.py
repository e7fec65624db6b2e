"""torch.autocast's lists of operations are the oracle: every layer has the dtypes that they give it, on each device.

The list for CUDA needs no GPU: torch keeps it for fake tensors too. There ours runs on the CPU with the casts for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import LAYERS, Body, Body2, Case, ids, network
from test_functional import OPS, Op
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import OWN

import datagrad_ext
from datagrad_ext.precision import Precision

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LOW = torch.bfloat16
_SQUARE, _BATCH = (4, 4), (2, 4, 4)


def _one(name: str, call: Callable[[Tensor], object], shape: tuple[int, ...] = _SQUARE, **attributes: object) -> Case:
    return Case(name, lambda: Body(lambda m, x: call(x), **attributes), (shape,))


def _two(name: str, call: Callable[[Tensor, Tensor], object], shape: tuple[int, ...] = _SQUARE) -> Case:
    return Case(name, lambda: Body2(lambda m, x, z: call(x, z)), (shape, shape))


def _with(name: str, body: Callable[..., object], shape: tuple[int, ...] = _SQUARE, **attributes: Callable) -> Case:
    return Case(name, lambda: Body(body, **{key: make() for key, make in attributes.items()}), (shape,))


def _parameter(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.ones(shape))


CALLS: list[Case] = [
    *(
        _one(name, call)
        for name, call in {
            "exp": torch.exp,
            "expm1": torch.expm1,
            "log": lambda x: x.abs().log(),
            "log1p": lambda x: x.abs().log1p(),
            "sqrt": lambda x: x.abs().sqrt(),
            "rsqrt": lambda x: x.abs().rsqrt(),
            "erf": torch.erf,
            "sin": torch.sin,
            "cos": torch.cos,
            "abs": torch.abs,
            "square": torch.square,
            "pow_2": lambda x: x**2,
            "pow_3": lambda x: torch.pow(x, 3),
            "reciprocal": torch.reciprocal,
            "number_over": lambda x: 1 / x,
            "over_number": lambda x: x / 3,
            "affine": lambda x: 2 * x + 1,
            "clamp": lambda x: x.clamp(-1, 1),
            "clamp_min": lambda x: x.clamp_min(0),
            "sum": lambda x: x.sum(1),
            "mean": lambda x: x.mean(1),
            "maximum": lambda x: x.max(1)[0],
            "norm": lambda x: x.norm(dim=1),
            "vector_norm": torch.linalg.vector_norm,
            "normalize": F.normalize,
            "softmax": lambda x: x.softmax(0),
            "log_softmax": lambda x: F.log_softmax(x, 1),
            "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
            "where_number": lambda x: torch.where(x > 0, x, 0.5),
            "chunk": lambda x: x.chunk(2)[0],
            "unbind": lambda x: x.unbind()[1],
            "index": lambda x: x.select(0, 1),
            "expand": lambda x: x.unsqueeze(0).expand(2, -1, -1),
            "repeat": lambda x: x.repeat(2, 1),
            "roll": lambda x: torch.roll(x, 1, 0),
            "flip": lambda x: x.flip(0),
            "transpose": lambda x: x.T,
            "pad": lambda x: F.pad(x, (1, 1)),
            "glu": lambda x: F.glu(x),
            "float": lambda x: x.float().exp(),
            "to_low": lambda x: x.to(LOW).sin(),
            "float_matmul": lambda x: x @ x.float(),
            "softmax_in_float32": lambda x: F.softmax(x, -1, dtype=torch.float32),
        }.items()
    ),
    *(
        _two(name, call)
        for name, call in {
            "add": torch.add,
            "sub": lambda x, z: x - z,
            "mul": torch.mul,
            "div": torch.div,
            "where": lambda x, z: torch.where(x > 0, x, z),
            "cat": lambda x, z: torch.cat([x, z]),
            "stack": lambda x, z: torch.stack([x, z]),
            "matmul": torch.matmul,
            "mm": torch.mm,
            "linear_of_values": F.linear,
            "type_as": lambda x, z: (x * 2).type_as(z) * z,
            "iadd": lambda x, z: (x * 1).add_(z),
            "imul": lambda x, z: (x * 1).mul_(z).sin(),
            "idiv": lambda x, z: (x * 1).div_(z),
        }.items()
    ),
    _one("exp_in_place", lambda x: (x * 1).exp_()),
    _one("square_in_place", lambda x: (x * 1).square_()),
    _one("power_in_place", lambda x: (x * 1).pow_(3).cos()),
    _two("bmm", torch.bmm, _BATCH),
    _two("attention", lambda x, z: F.scaled_dot_product_attention(x, z, x), _BATCH),
    _two("causal_attention", lambda x, z: F.scaled_dot_product_attention(x, z, z, is_causal=True), _BATCH),
    _with("attention_bias", lambda m, x: F.scaled_dot_product_attention(x, x, x, m.b), _BATCH, b=_parameter(4, 4)),
    _with("parameter_sum", lambda m, x: x + m.p, p=_parameter(4)),
    _with("parameter_number", lambda m, x: x * m.p, p=_parameter()),
    _with("parameter_dtype", lambda m, x: x.to(m.p.dtype).sin(), p=_parameter(4)),
    _with("parameter_product", lambda m, x: x @ m.p, p=_parameter(4, 2)),
    _with(
        "embedding",
        lambda m, x: m.table(m.ids) * x,
        table=lambda: nn.Embedding(3, 4),
        ids=lambda: nn.Buffer(torch.tensor([0, 1, 1, 2])),
    ),
    _with("heads", lambda m, x: m.mix(x, x, x)[0], _BATCH, mix=lambda: nn.MultiheadAttention(4, 2)),
    _with("heads_weights", lambda m, x: m.mix(x, x, x)[1], _BATCH, mix=lambda: nn.MultiheadAttention(4, 2)),
    _with("layer_norm", lambda m, x: F.layer_norm(x, (4,))),
    _with("group_norm", lambda m, x: F.group_norm(x, 2)),
    _with("batch_norm", lambda m, x: F.batch_norm(x, None, None, training=True)),
    _with("instance_norm", lambda m, x: F.instance_norm(x), _BATCH),
    *(
        Case(f"encoder_{name}", lambda o=options: nn.TransformerEncoderLayer(4, 2, 8, **o), (_BATCH,))
        for name, options in {"norm_last": {}, "norm_first": {"norm_first": True, "batch_first": True}}.items()
    ),
]
WHOLE = [*OWN, *[network(name) for name in ("conv_resnet_batch_norm", "conv_next", "conv_mobile", "conv_mobile_eval")]]
ROWS = [*[case for case in [*LAYERS, *CALLS] if case.opaque is False], *WHOLE]


@contextmanager
def _autocast(device: str) -> Iterator[None]:
    """torch.autocast, also where torch has no CUDA; without deterministic algorithms, which no list knows."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.use_deterministic_algorithms(False)
    torch.set_autocast_enabled("cuda", device == "cuda")
    torch.set_autocast_dtype("cuda", LOW)
    try:
        with torch.autocast("cpu", LOW, enabled=device == "cpu"), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.use_deterministic_algorithms(True, warn_only=True)


def _inputs(case: Case, dtypes: Sequence[torch.dtype], device: str) -> list[Tensor]:
    return [torch.ones(shape, device=device, dtype=dtype) for shape, dtype in zip(case.shapes, dtypes, strict=True)]


def _train(model: nn.Module, inputs: list[Tensor], device: str) -> dict[str, torch.dtype]:
    """The dtypes of the value, of data gradients and of gradients of parameters, of a loss with a penalty."""
    found = _gradients(model, inputs, device) | {name: p.grad for name, p in model.named_parameters()}
    return {name: t.dtype for name, t in found.items() if t is not None}


def _has_float64(op: Op) -> bool:
    """Whether a constant of the call is float64, which no list casts."""
    return any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in (*op.fixed, *op.options.values()))


def _gradients(call: Callable[..., Tensor], inputs: list[Tensor], device: str) -> dict[str, Tensor | None]:
    inputs = [x.requires_grad_() for x in inputs]
    with _autocast(device):
        y = call(*inputs)
        J = torch.autograd.grad(y.double().sin().sum(), inputs, create_graph=True)
    sum(j.double().square().sum() for j in J).backward()
    return {"y": y, **{f"J{i}": j for i, j in enumerate(J)}}


def _check(ours: dict[str, torch.dtype], usual: dict[str, torch.dtype], model: nn.Module) -> None:
    assert usual.items() <= ours.items(), f"{ours}, torch has {usual}"
    assert [row.layer for row in datagrad_ext.program(model).rows if row.kind == "opaque"] == []


def _every(case: Case) -> Iterator[tuple[torch.dtype, ...]]:
    """Every choice of float32 and the low dtype for the inputs: together they tell the lists apart."""
    return product((torch.float32, LOW), repeat=len(case.shapes))


@pytest.mark.parametrize("case", ROWS, ids=ids)
def test_dtypes(case: Case, device: str) -> None:
    for dtypes in _every(case):
        usual = _train(case.build().to(device, torch.float32), _inputs(case, dtypes, device), device)
        model = datagrad_ext.accelerate(case.build().to(device, torch.float32))
        _check(_train(model, _inputs(case, dtypes, device), device), usual, model)


@pytest.mark.parametrize("dtype", [torch.float32, LOW], ids=str)
@pytest.mark.parametrize("op", [op for op in OPS if not _has_float64(op)], ids=lambda op: op.label)
def test_dtypes_of_functions(op: Op, dtype: torch.dtype, device: str) -> None:
    """datagrad_ext.functional against torch.nn.functional, with float32 parameters."""
    x, *theta = [t.float().requires_grad_() for t in op.tensors(device)]

    def dtypes(library: object) -> dict[str, torch.dtype]:
        found = _gradients(lambda v: op.call(library, [v, *theta]), [x.detach().to(dtype)], device)
        return {name: t.dtype for name, t in found.items() if t is not None}

    assert dtypes(datagrad_ext.functional) == dtypes(F)


def _to_fake_cuda(model: nn.Module) -> None:
    """Move a model, but for single numbers; without gradients, because a cast with a graph asks for a device."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, t in table.items():
                device = "cuda" if t is not None and t.dim() else "cpu"
                table[name] = None if t is None else torch.empty(t.shape, dtype=t.dtype, device=device)


def _listed_for_cuda(case: Case, dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype of the value by torch's list for CUDA."""
    model = case.build().float()
    with FakeTensorMode():
        _to_fake_cuda(model)
        inputs = _inputs(case, dtypes, "cuda")
        try:
            with _autocast("cuda"):
                return model(*inputs).dtype
        except RuntimeError as error:
            if not isinstance(error, DataDependentOutputException) and "not linked with support" not in str(error):
                raise
            pytest.skip("torch asks for a device, or for a number")


@pytest.mark.parametrize("case", ROWS, ids=ids)
def test_dtypes_of_the_list_for_cuda(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtypes in _every(case):
        usual = {"y": _listed_for_cuda(case, dtypes)}
        model = datagrad_ext.accelerate(case.build().float())
        with monkeypatch.context() as patch:
            patch.setattr(Precision, "of", staticmethod(lambda tensors: Precision("cuda", LOW)))
            patch.setattr(Precision, "context", lambda precision: nullcontext())
            try:
                ours = _train(model, _inputs(case, dtypes, "cpu"), "cuda")
            except NotImplementedError as error:
                pytest.skip(f"on the CPU: {error}")
        _check(ours, usual, model)
