"""The fused convolutions: references against autograd in float64; on CUDA the plans of cuDNN, the guard and the layer.

A machine without a GPU compares the references, and reads the graphs as far as cuDNN's frontend can without one. With
DATAGRAD_CUDNN=1 a library that was not built or loaded is a failure.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import data, ids
from kernels import same_layout
from oracle import difference
from threads import run_threads
from torch import Tensor, nn

import datagrad_ext
from build_support import toolchain
from build_support.cudnn_headers import HEADERS, find_cudnn
from build_support.options import Unavailable
from build_support.torch_headers import find_torch
from datagrad_ext.layers import fused_passes
from datagrad_ext.layers.fused_passes import FORWARD, JVP, VJP, Call, Cudnn, examples
from datagrad_ext.layers.plan_check import Expected
from datagrad_ext.ops import is_native

ops = torch.ops.datagrad
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCES = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TF32 = 2e-3
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """x and weight shapes, and the geometry."""

    name: str
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def numbers(self) -> tuple:
        """What aten::convolution takes."""
        return self.stride, self.padding, self.dilation, False, (0, 0), self.x[1] // self.weight[1]


ROWS = [
    Row("k3_p1", (4, 16, 10, 12), (24, 16, 3, 3), padding=(1, 1)),
    Row("k4_s2_p1", (4, 16, 12, 10), (32, 16, 4, 4), (2, 2), (1, 1)),
    Row("odd_image", (3, 8, 13, 11), (16, 8, 4, 4), (2, 2), (1, 1)),
    Row("1x1", (4, 32, 7, 9), (16, 32, 1, 1)),
    Row("first_layer", (4, 3, 16, 16), (16, 3, 3, 3), padding=(1, 1)),
    Row("groups", (4, 16, 8, 8), (32, 4, 3, 3), padding=(1, 1)),
    Row("depthwise", (4, 16, 8, 8), (16, 1, 3, 3), padding=(1, 1)),
    Row("dilation", (2, 8, 12, 10), (8, 8, 3, 3), padding=(2, 2), dilation=(2, 2)),
    Row("one_pixel", (2, 32, 4, 4), (8, 32, 4, 4)),
]

rows = pytest.mark.parametrize("row", ROWS, ids=ids)
slopes = pytest.mark.parametrize("slope", [0.0, 0.2])
layouts = pytest.mark.parametrize("layout", LAYOUTS)
sweeps = pytest.mark.parametrize("sweep", [FORWARD, VJP, JVP], ids=lambda sweep: sweep.name)


def call_of(
    row: Row, sweep: Any, dtype: torch.dtype, layout: str, slope: float, bias: bool = True, device: str = "cpu"
) -> Call:
    """A call at operands that say something."""

    def filled(*shape: int, seed: int) -> Tensor:
        t = data(*shape, seed=seed).to(device, dtype)
        return t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t

    x, weight = filled(*row.x, seed=1), filled(*row.weight, seed=2)
    if sweep is FORWARD:
        return Call(sweep, (x, weight, filled(row.weight[0], seed=3) if bias else None), row.numbers, slope)
    y = torch.convolution(x, weight, None, *row.numbers)
    y = filled(*y.shape, seed=4)
    operands = (y, weight, _rectified(x, slope)) if sweep is VJP else (x, weight, _rectified(y, slope))
    return Call(sweep, operands, row.numbers, slope)


def _rectified(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def by_autograd(call: Call) -> Tensor:
    """The call in float64, by plain PyTorch and autograd."""
    a, weight, other = [None if t is None else t.detach().double().contiguous() for t in call.operands]
    assert a is not None
    if call.sweep is FORWARD:
        return nn.functional.leaky_relu(torch.convolution(a, weight, other, *call.numbers), call.slope)
    assert other is not None
    z = other.clone().requires_grad_()
    if call.sweep is VJP:  # z is the argument of the rectifier in front, as far as its gate can tell
        y = torch.convolution(nn.functional.leaky_relu(z, call.slope), weight, None, *call.numbers)
        return torch.autograd.grad(y, z, a)[0]
    rectified = nn.functional.leaky_relu(z, call.slope)
    return torch.autograd.grad(rectified, z, torch.convolution(a, weight, None, *call.numbers))[0]


@rows
@sweeps
@slopes
@layouts
@pytest.mark.parametrize("bias", [True, False])
def test_reference(row: Row, sweep: Any, slope: float, layout: str, bias: bool) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        call = call_of(row, sweep, dtype, layout, slope, bias)
        found = call.at(call.operands, 0)
        like = call.operands[2] if sweep is VJP else call.operands[0]
        expected = by_autograd(call)
        assert difference(found, expected).norm < TOLERANCES[dtype]
        same_layout(found, _in_layout_of(expected.to(dtype), like))


def _in_layout_of(t: Tensor, like: Any) -> Tensor:
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return t.contiguous(memory_format=LAYOUTS["channels_last" if last else "contiguous"])


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (dict(x=torch.zeros(2, 3, 5)), "do not fit, got .2, 3, 5."),
    (dict(x=torch.zeros(2, 5, 5, 5)), "do not fit"),
    (dict(weight=torch.zeros(4, 3, 3, 3).double()), "weight must have x's dtype float32, got float64"),
    (dict(bias=torch.zeros(3)), r"bias must have shape .4., got .3."),
]


@pytest.mark.parametrize(("wrong", "sentence"), REFUSALS)
def test_refusals(wrong: dict[str, Any], sentence: str) -> None:
    given = dict(x=torch.zeros(2, 3, 5, 5), weight=torch.zeros(4, 3, 3, 3), bias=None) | wrong
    with pytest.raises(RuntimeError, match=sentence):
        ops.fused_convolution_forward.default(*given.values(), [1, 1], [0, 0], [1, 1], 0.0, 0)


def test_there_are_no_plans_on_the_cpu() -> None:
    call = call_of(ROWS[0], FORWARD, torch.float32, "contiguous", 0.0)
    with pytest.raises(RuntimeError, match="there is no cuDNN behind the device cpu"):
        Cudnn().open(call, (False, False), False)
    Cudnn().close(call, 0)


def test_graphs_are_valid(tmp_path: Path) -> None:
    """Rows of shapes, layouts, dtypes and slopes, read by cuDNN's frontend."""
    nvcc, torch_found = toolchain.find_nvcc(os.environ), find_torch(os.environ)
    try:
        if nvcc is None:
            raise Unavailable("no nvcc was found")
        folders = find_cudnn(os.environ, torch_found, nvcc)
        library = next((torch_found.root.parent / "nvidia/cudnn/lib").glob("libcudnn.so.*"), None)
        if library is None:
            raise Unavailable("torch has no libcudnn")
    except Unavailable as reason:
        if os.environ.get("DATAGRAD_CUDNN") == "1":
            raise
        pytest.skip(str(reason))
    program = tmp_path / "validate_graphs"
    includes = [word for folder in (ROOT / "csrc", *folders) for word in ("-isystem", str(folder))]
    source = ROOT / "tests" / "validate_graphs.cpp"
    subprocess.run([nvcc.path, "-std=c++17", "-O0", *includes, source, "-o", program, "-ldl"], check=True)
    environ = os.environ | {"LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    done = subprocess.run([program, library], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "768 graphs, 0 failures" in done.stdout


def test_headers_are_three() -> None:
    assert [header.name for header in HEADERS] == ["cudnn_frontend.h", "cudnn.h", "nvrtc.h"]


# On CUDA: what cuDNN really does. No GPU has run these yet.


@pytest.fixture
def cudnn() -> Cudnn:
    """Plans of cuDNN itself; skipped where the build has none and need not."""
    if not is_native("fused_convolution_forward", "cuda") and os.environ.get("DATAGRAD_CUDNN") != "1":
        pytest.skip(datagrad_ext.backends().build.get("not_built", {}).get("cudnn", "built without cuDNN"))
    assert is_native("fused_convolution_forward", "cuda")
    return Cudnn()


PRECISIONS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = PRECISIONS[request.param][1]
    try:
        yield request.param
    finally:
        torch.backends.cudnn.allow_tf32 = before


# A plan is compiled when it is made, so not every combination has one: all for the kernels that networks have most.
COMBINATIONS = [
    *itertools.product(ROWS[:2], (0.0, 0.2), ["channels_last"], PRECISIONS),
    *[(row, (0.0, 0.2)[i % 2], "channels_last", [*PRECISIONS][1 + i % 3]) for i, row in enumerate(ROWS[2:])],
    (ROWS[0], 0.0, "contiguous", "bfloat16"),
]


@pytest.mark.cuda
@sweeps
@pytest.mark.parametrize(
    ("row", "slope", "layout", "precision"),
    COMBINATIONS,
    indirect=["precision"],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_plans_that_pass_the_guard_are_right(
    row: Row, sweep: Any, slope: float, layout: str, precision: str, cudnn: Cudnn
) -> None:
    """Every plan of both forms, at other operands than the guard's; the layout is that of the reference."""
    dtype, tf32 = PRECISIONS[precision]
    call = call_of(row, sweep, dtype, layout, slope, device="cuda")
    expected, truth = Expected.of(call.right, examples(call), None if sweep is FORWARD else 2), by_autograd(call)
    for select in (False, True):
        try:
            plans = cudnn.open(call, cudnn.flags(dtype), select)
        except RuntimeError as error:
            print(f"{call}: {error}")
            continue
        for plan in plans:
            refusal = expected.refusal(lambda operands, plan=plan: call.at(operands, plan))
            print(f"{call}, {'select' if select else 'relu'}: {refusal or 'right'}")
            if refusal is None:
                found = call.at(call.operands, plan)
                assert difference(found, truth).norm < (TF32 if tf32 else TOLERANCES[dtype])
                same_layout(found, call.right(call.operands))
            cudnn.close(call, plan)


@pytest.mark.cuda
def test_a_plan_refuses_other_operands(cudnn: Cudnn) -> None:
    call = call_of(ROWS[0], FORWARD, torch.bfloat16, "channels_last", 0.0, device="cuda")
    plans = cudnn.open(call, (False, True), False)
    x, weight, bias = call.operands
    with pytest.raises(RuntimeError, match="the plan was made for other operands"):
        call.at((x[:2], weight, bias), plans[0])
    with pytest.raises(RuntimeError, match="the plan was made for other operands"):
        call.at((x, weight, None), plans[0])
    with pytest.raises(RuntimeError, match="the plan was made for another op"):
        ops.fused_convolution_jvp.default(x, weight, x, *call.numbers[:3], 0.0, plans[0])
    for plan in plans:
        cudnn.close(call, plan)
    with pytest.raises(RuntimeError, match="there is no plan"):
        call.at(call.operands, plans[0])


def network() -> nn.Module:
    return nn.Sequential(
        *[nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.LeakyReLU(0.2)],
        *[nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.Flatten()],
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Value, data gradient and parameter gradients of a loss with a penalty."""
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    (J,) = torch.autograd.grad(y.float().logsumexp(1).sum(), leaf, create_graph=True)
    (y.float().square().mean() + J.float().square().sum()).backward()
    return [t.detach() for t in (y, J, *[p.grad for p in model.parameters()])]  # type: ignore[union-attr]


@pytest.mark.cuda
@layouts
def test_layer(layout: str, precision: str, cudnn: Cudnn) -> None:
    """A step of a network is as near to float64 as autograd's in the same dtype; something was chosen."""
    dtype, _ = PRECISIONS[precision]
    plain, before = network().cuda(), len(fused_passes.CHOICES)
    model, x = copy.deepcopy(plain).to(dtype), data(8, 16, 16, 16).cuda()
    model, x = model.to(memory_format=LAYOUTS[layout]), x.contiguous(memory_format=LAYOUTS[layout])
    own = gradients(copy.deepcopy(model), x.to(dtype))
    found = gradients(datagrad_ext.accelerate(model), x.to(dtype))
    expected = gradients(plain.double(), x.double())
    assert len(fused_passes.CHOICES) > before
    for ours, theirs, truth in zip(found, own, expected, strict=True):
        assert difference(ours, truth).norm < 3 * difference(theirs, truth).norm + TOLERANCES[dtype]


@pytest.mark.cuda
def test_capture(cudnn: Cudnn) -> None:
    """A graph replays what was chosen before; a key that is new to it takes ATen and is not chosen."""
    call = call_of(ROWS[0], FORWARD, torch.bfloat16, "channels_last", 0.0, device="cuda")
    x, weight, bias = call.operands

    def step(slope: float) -> Tensor:
        y = fused_passes.forward(x, weight, bias, call.numbers, slope)
        return Call(FORWARD, call.operands, call.numbers, slope).right(call.operands) if y is None else y

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        expected = step(0.0).clone()
    torch.cuda.synchronize()
    chosen, graph = len(fused_passes.CHOICES), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, other = step(0.0), step(0.375)
    assert len(fused_passes.CHOICES) == chosen
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    assert other.isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("devices", [1, 2])
def test_threads_and_devices(devices: int, cudnn: Cudnn) -> None:
    """Two threads with streams of their own get the results of one, each on a device where there are two."""
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} GPUs")
    model, x = network().bfloat16().to(memory_format=torch.channels_last), data(8, 16, 16, 16).bfloat16()
    found: dict[int, list[Tensor]] = {}

    def run(place: int) -> None:
        device = torch.device("cuda", place % devices)
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            mine = datagrad_ext.accelerate(copy.deepcopy(model).to(device))
            batch = x.to(device).contiguous(memory_format=torch.channels_last)
            for _ in range(5):
                mine.zero_grad()
                found[place] = [t.cpu() for t in gradients(mine, batch)]

    run_threads([partial(run, place) for place in range(2)])
    for a, b in zip(found[0], found[1], strict=True):
        assert difference(a, b.double()).norm < 1e-2
