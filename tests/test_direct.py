"""Ops called past torch's dispatcher: nobody can tell, and where somebody could, torch's op is called.

That the results are right is shown by the rows "direct" of the ops' own tests.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from test_native import needs_native
from threads import run_threads
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import datagrad_ext
from datagrad_ext import _native

OP = torch.ops.datagrad.chain_forward.default
LINKS = "linear relu+b:0.0 linear+b"
ROWS = 5


def params() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) - 0.5 for shape in [(4, 3), (4,), (2, 4), (2,)]]


def rows() -> Tensor:
    return torch.linspace(-1, 1, ROWS * 3).view(ROWS, 3)


def outcome(call: Callable[[], Any]) -> Any:
    """The first result, or the error."""
    try:
        return call()[0]
    except Exception as error:
        return type(error), str(error)


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or a.is_meta or isinstance(a, torch._subclasses.FakeTensor):
        return bool(type(a) is type(b) and (a.shape == b.shape if isinstance(a, Tensor) else a == b))
    return type(a) is type(b) and a.requires_grad == b.requires_grad and torch.equal(a, b)


@needs_native
def test_this_torch_has_what_direct_calls_need() -> None:
    """They are private to torch; the day they change, `backends()` says so and all calls go through the dispatcher."""
    assert _native._why_dispatched == ""
    assert type(_native.direct("chain_forward")) is not type(OP)
    assert "dispatcher" not in str(datagrad_ext.backends())


def test_a_torch_without_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_why_dispatched", "module 'torch._C' has no attribute '_aoti'")
    assert _native.direct("chain_forward") is OP
    if datagrad_ext.backends().devices[0].library:
        assert "all calls go through torch's dispatcher: module 'torch._C' has no" in str(datagrad_ext.backends())


class Seen(TorchDispatchMode):
    """Takes down the ops that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    """Takes down the functions that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


def seen_by_mode(call: Callable[[], Any]) -> bool:
    with Seen() as mode:
        call()
    return OP in mode.ops


def seen_by_function_mode(call: Callable[[], Any]) -> bool:
    with SeenFunctions() as mode:
        call()
    return OP in mode.ops


def seen_by_profiler(call: Callable[[], Any]) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return "datagrad::chain_forward" in [event.name for event in profiler.events()]


def seen_by_tracing(call: Callable[[], Any]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(lambda x: x + call()[0].sum(), torch.zeros(1), check_trace=False).graph
    return "datagrad::chain_forward" in str(graph)


@pytest.mark.parametrize("seen", [seen_by_mode, seen_by_function_mode, seen_by_profiler, seen_by_tracing])
def test_who_watches_ops_sees_it(seen: Callable[[Callable[[], Any]], bool]) -> None:
    direct, x, theta = _native.direct("chain_forward"), rows(), params()
    with torch.no_grad():
        assert seen(lambda: direct(x, theta, LINKS))


@needs_native
def test_given_lists_come_back_empty() -> None:
    """The op owns their tensors: nobody else's live longer than it needs them. Through torch's op the caller does."""
    direct, theta = _native.direct("chain_forward", given=(1,)), params()
    given = [t.clone() for t in theta]
    alive = [weakref.ref(t) for t in given]
    with torch.no_grad():
        y = direct(rows(), given, LINKS)[0]
        assert given == []
        assert all(t() is None for t in alive)
        kept = list(theta)
        assert torch.equal(direct(rows(), kept, LINKS)[0], y)
        assert kept == []
        with Seen():
            again = list(theta)
            assert torch.equal(direct(rows(), again, LINKS)[0], y)
        assert len(again) == len(theta)
        with pytest.raises(RuntimeError, match="parameters"):
            direct(rows(), theta[:-1], LINKS)


@contextmanager
def _fake() -> Iterator[Callable[[Tensor], Tensor]]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode.from_tensor


class Subclass(Tensor):
    pass


def _ended_transform(x: Tensor) -> Tensor:
    """A wrapper that a torch.func transform left behind."""
    found: list[Tensor] = []
    torch.func.grad(lambda t: found.append(t) or t.sum())(x)
    return found[0]


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "parameter": lambda x: nn.Parameter(x),
    "transposed": lambda x: x.t().contiguous().t(),
    "float64": lambda x: x.double(),
    "no rows": lambda x: x[:0],
    "vector": lambda x: x[0],
    "another width": lambda x: x[:, :2],
    "complex": lambda x: x.cfloat(),
    "negated lazily": lambda x: torch._neg_view(x),
    "zero lazily": lambda x: torch._efficientzerotensor(x.shape),
    "sparse": lambda x: x.to_sparse(),
    "subclass": lambda x: x.as_subclass(Subclass),
    "meta": lambda x: x.to("meta"),
    "wrapper of an ended transform": _ended_transform,
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("which", TENSORS)
def test_every_kind_of_tensor_gives_what_torchs_op_gives(which: str) -> None:
    direct = _native.direct("chain_forward")
    with torch.no_grad():
        x, theta = TENSORS[which](rows()), params()
        assert same(outcome(lambda: direct(x, theta, LINKS)), outcome(lambda: OP(x, theta, LINKS)))


CONTEXTS: dict[str, Callable[[], Any]] = {
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": torch.autograd.detect_anomaly,
    "nothing": nullcontext,
}


@pytest.mark.filterwarnings("ignore:Anomaly")
@pytest.mark.parametrize("context", CONTEXTS)
def test_in_every_mode_of_torch_it_gives_what_torchs_op_gives(context: str) -> None:
    direct = _native.direct("chain_forward")
    x, theta = rows(), [nn.Parameter(p) for p in params()]
    with torch.no_grad(), CONTEXTS[context]():
        assert same(outcome(lambda: direct(x, theta, LINKS)), outcome(lambda: OP(x, theta, LINKS)))


def test_fake_tensors_stay_fake() -> None:
    direct = _native.direct("chain_forward")
    with torch.no_grad(), _fake() as fake:
        y = direct(fake(rows()), [fake(p) for p in params()], LINKS)[0]
    assert isinstance(y, torch._subclasses.FakeTensor)
    assert y.shape == (ROWS, 2)


def test_under_a_transform_it_gives_what_torchs_op_gives() -> None:
    direct, theta = _native.direct("chain_forward"), params()
    stack = torch.stack([rows(), -rows()])
    with torch.no_grad():
        found, expected = (
            outcome(lambda op=op: [torch.vmap(lambda x: op(x, theta, LINKS)[0])(stack)]) for op in (direct, OP)
        )
    assert same(found, expected)


@pytest.mark.parametrize("which", ["plain", "vector", "sparse", "negated lazily"])
def test_a_call_keeps_no_tensor(which: str) -> None:
    """One that succeeds, one that fails, and those that go through the dispatcher."""
    direct = _native.direct("chain_forward")
    with torch.no_grad():
        x, theta = TENSORS[which](rows()), params()
        alive = [weakref.ref(t) for t in (x, *theta)]
        result = outcome(partial(direct, x, theta, LINKS))
        alive += [weakref.ref(result)] if isinstance(result, Tensor) else []
        del x, theta, result
    assert [ref() for ref in alive] == [None] * len(alive)


def test_threads_call_at_once() -> None:
    direct, x, theta = _native.direct("chain_forward"), rows(), params()
    expected, equal = OP(x, theta, LINKS)[0], []

    def work() -> None:
        with torch.no_grad():
            equal.extend([torch.equal(direct(x, theta, LINKS)[0], expected) for _ in range(200)])

    run_threads([work] * 4)
    assert equal == [True] * 800
