"""What a forward reads beside its input is read at every call, and what it decides is decided at every call."""

from __future__ import annotations

import argparse
import random
import types
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CE, Objective, data
from oracle import Results, assert_equal, observe
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune

import datagrad_ext
from datagrad_ext.accelerate import network_of
from datagrad_ext.snapshot import snapshot

OBJECTIVE = Objective(CE, ((CE, "l2_squared"),))
Forward = Callable[..., Any]


class Net(nn.Module):
    """Two linear layers, things to read, and the forward of a row."""

    def __init__(self, run: Forward, config: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.run, self.config = nn.Linear(6, 5), nn.Linear(5, 3), run, config
        self.pool = nn.MaxPool1d(2, return_indices=True)
        self.weights, self.threshold = nn.ParameterList(), nn.Threshold(0.1, 0.2)
        self.skip, self.plain, self.list = nn.Identity(), torch.ones(5), [torch.ones(5)]
        self.register_buffer("mask", torch.ones(5))
        self.register_buffer("optional", None)
        self.generator = torch.Generator()

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Any:
        return self.run(self, x, *args, **named)

    def body(self, x: Tensor, scale: Any = 1.0) -> Tensor:
        return self.second(self.first(x).tanh() * scale)


def pair(run: Forward, config: Callable[[], Any] = lambda: None) -> tuple[nn.Module, nn.Module]:
    """The accelerated network and the plain one."""
    models = [Net(run, config()).double() for _ in range(2)]
    for k, p in enumerate(models[0].parameters()):
        p.data.copy_(data(*p.shape, seed=k))
    models[1].load_state_dict(models[0].state_dict())
    return datagrad_ext.accelerate(models[0]), models[1]


def step(model: nn.Module, seed: int, code: Callable = OBJECTIVE, x: Tensor | None = None) -> Results:
    random.seed(seed)
    np.random.seed(seed)
    found = observe(model, [data(4, 6) if x is None else x], code, seed=seed)
    return found | {"python": torch.tensor(random.random()), "numpy": torch.tensor(np.random.rand())}


# -------------------------------------------------------------------------- decisions of a call


def _namespace(net: Net, x: Tensor) -> Tensor:
    net.config.hidden = net.first(x)
    return net.second(net.config.hidden.tanh())


def _under_no_grad(net: Net, x: Tensor) -> Tensor:
    h = net.first(x)
    with torch.no_grad():
        scale = h.abs().mean()
    return net.second(h / scale)


DECISIONS: dict[str, Forward] = {
    "random of Python": lambda net, x: net.body(x, 2.0 if random.random() < 0.5 else 1.0),
    "random of numpy": lambda net, x: net.body(x, 2.0 if np.random.rand() < 0.5 else 1.0),
    "random of torch": lambda net, x: net.body(x, 2.0 if torch.rand(()).item() < 0.5 else 1.0),
    "random of a generator": lambda net, x: net.body(
        x, 2.0 if torch.rand((), generator=net.generator).item() < 0.5 else 1.0
    ),
    "noise of fixed shape": lambda net, x: net.body(x, torch.randn(5)),
    "elements of an attribute": lambda net, x: net.body(x, 2.0 if net.plain.sum() > 5 else 1.0),
    "isinstance of the input": lambda net, x: net.body(x if isinstance(x, Tensor) else x[0], 2.0),
    "isinstance of a layer's result": lambda net, x: net.body(x, 2.0 if isinstance(net.first(x), tuple) else 1.0),
    "isinstance of a tuple": lambda net, x: net.body(x, 2.0 if isinstance(net.pool(x[:, None]), tuple) else 1.0),
    "isinstance of a sum": lambda net, x: net.body(x, 2.0 if isinstance(1 - net.first(x) + x[0, 0], Tensor) else 1.0),
    "isinstance of a size": lambda net, x: net.body(x, 2.0 if isinstance(x.shape[0] + 1, int) else 1.0),
    "isinstance of a value": lambda net, x: net.body(x, 2.0 if isinstance(net.first(x).max(1), tuple) else 1.0),
    "is_tensor": lambda net, x: net.body(x, 2.0 if torch.is_tensor(x) else 1.0),
    "hasattr": lambda net, x: net.body(x, 2.0 if hasattr(x, "tensors") else 1.0),
    "item of the input": lambda net, x: net.body(x) / x.abs().max().item(),
    "item of a parameter": lambda net, x: net.body(x) * net.first.weight.max().item(),
    "list of the input": lambda net, x: net.body(x) * x.sum(1).tolist()[0],
    "number of unequal elements": lambda net, x: net.body(x) * torch.unique(x).numel(),
    "writes to an object": _namespace,
    "no_grad inside": _under_no_grad,
    "complex products": lambda net, x: net.body(torch.view_as_real(torch.fft.fft(x) * x.to(torch.complex128))[..., 0]),
    "modulus": lambda net, x: net.body(torch.fft.fft(x).abs()),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_is_made_at_each_call(name: str) -> None:
    ours, plain = pair(DECISIONS[name], types.SimpleNamespace)
    for seed in range(5):
        assert_equal(step(ours, seed), step(plain, seed))
        for model in (ours, plain):
            model.plain.add_(0.1)


def test_asking_for_the_type_of_tensors_keeps_one_program() -> None:
    for name in ("isinstance of the input", "isinstance of a layer's result", "isinstance of a sum", "is_tensor"):
        ours, _ = pair(DECISIONS[name])
        step(ours, 0)
        assert not datagrad_ext.program(ours).note, name


# ------------------------------------------------------------------ what may change between calls


@dataclass
class Settings:
    scale: float = 1.0


@dataclass(slots=True)
class Slots:
    scale: float = 1.0


class Attributes(dict):
    """A dictionary whose items are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def _set_item(config: Any, value: float) -> None:
    config["scale"] = value


def _set(config: Any, value: float) -> None:
    config.scale = value


CONFIGURATIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any, float], Any]]] = {
    "namespace": (lambda: types.SimpleNamespace(scale=1.0), lambda c: c.scale, _set),
    "arguments": (lambda: argparse.Namespace(scale=1.0), lambda c: c.scale, _set),
    "dataclass": (Settings, lambda c: c.scale, _set),
    "dataclass with slots": (Slots, lambda c: c.scale, _set),
    "nested": (lambda: [types.SimpleNamespace(of=Settings())], lambda c: c[0].of.scale, lambda c, v: _set(c[0].of, v)),
    "dict": (lambda: {"scale": 1.0}, lambda c: c["scale"], _set_item),
    "ordered dict": (lambda: OrderedDict(scale=1.0), lambda c: c["scale"], _set_item),
    "dict of a class": (lambda: Attributes(scale=1.0), lambda c: c.scale, _set_item),
    "set": (set, lambda c: 1.0 + len(c), lambda c, v: c.add(v)),
    "deque": (lambda: deque([1.0]), lambda c: c[-1], lambda c, v: c.append(v)),
    "array": (lambda: np.ones(2), lambda c: float(c[0]), lambda c, v: c.fill(v)),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_is_changed_in_place(name: str) -> None:
    make, read, write = CONFIGURATIONS[name]
    ours, plain = pair(lambda net, x: net.body(x, read(net.config)), make)
    for value in (2.0, 3.0, 3.0):
        assert_equal(step(ours, 0), step(plain, 0))
        for model in (ours, plain):
            write(model.config, value)


def _counted(net: Net, x: Tensor) -> Tensor:
    net.config.scale += 1.0
    return net.body(x, net.config.scale)


@pytest.mark.parametrize("make", [Settings, Slots, lambda: types.SimpleNamespace(scale=1.0)])
def test_a_forward_that_changes_its_configuration_does_it_once_a_call(make: Callable[[], Any]) -> None:
    ours, plain = pair(_counted, make)
    for _ in range(3):
        assert_equal(step(ours, 0), step(plain, 0))
    assert ours.config.scale == plain.config.scale


def test_large_containers_inside_of_an_object_are_not_looked_into() -> None:
    vocabulary = types.SimpleNamespace(words={str(k): k for k in range(2000)})
    assert snapshot(vocabulary) is vocabulary
    assert snapshot([list(range(2000))]).parts[0].__class__ is list


def test_an_unchanged_configuration_keeps_the_trace() -> None:
    for make, read, _ in CONFIGURATIONS.values():
        ours, _ = pair(lambda net, x, read=read: net.body(x, read(net.config)), make)
        latest = []
        for _ in range(2):
            step(ours, 0)
            latest.append(network_of(ours).latest)
        assert latest[0] is latest[1]
        assert not datagrad_ext.program(ours).note


def _optional(net: Net, x: Tensor) -> Tensor:
    return net.body(x, net.mask if net.optional is None else net.optional)


def _extra(net: Net, x: Tensor) -> Tensor:
    return net.body(x, net.extra if hasattr(net, "extra") else 1.0)


def _wants_gradient(name: str) -> Callable[[Net], object]:
    return lambda net: getattr(net, name).requires_grad_()


def _computed(name: str) -> Callable[[Net], object]:
    return lambda net: setattr(net, name, net.first.bias * 2)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def _patched(net: Net) -> None:
    net.first.forward = types.MethodType(lambda layer, x: F.linear(x, layer.weight) * 3, net.first)


def _product(net: Net, x: Tensor) -> Tensor:
    for weight in net.weights:
        x = x * weight
    return net.body(x)


def _in_own_dtype(net: Net, x: Tensor) -> Tensor:
    return net.second(net.first(x.to(next(net.parameters()).dtype)).tanh()).double()


def _trained_or_not(net: Net, x: Tensor) -> Tensor:
    return net.body(x, 2.0 if next(net.parameters()).requires_grad else 1.0)


CHANGES: dict[str, tuple[Forward, Callable[[Net], object]]] = {
    "a buffer comes": (_optional, lambda net: setattr(net, "optional", torch.full((5,), 2.0).double())),
    "a parameter is registered": (_extra, lambda net: setattr(net, "extra", nn.Parameter(torch.ones(5).double()))),
    "a buffer is registered": (_extra, lambda net: net.register_buffer("extra", torch.full((5,), 3.0).double())),
    "a buffer wants a gradient": (lambda net, x: net.body(x, net.mask), _wants_gradient("mask")),
    "a buffer is computed": (lambda net, x: net.body(x, net.mask), _computed("mask")),
    "an attribute wants a gradient": (lambda net, x: net.body(x, net.plain), _wants_gradient("plain")),
    "an attribute is computed": (lambda net, x: net.body(x, net.plain), _computed("plain")),
    "a tensor in a list is computed": (
        lambda net, x: net.body(x, net.list[0]),
        lambda net: net.list.__setitem__(0, net.first.bias * 2),
    ),
    "all parameters are frozen": (_trained_or_not, lambda net: net.requires_grad_(False)),
    "a list of parameters grows": (
        _product,
        lambda net: net.weights.append(nn.Parameter(torch.full((6,), 2.0).double())),
    ),
    "a part changes in place": (
        lambda net, x: net.body(x, net.threshold(h := net.first(x).sin()) + h),
        lambda net: setattr(net.threshold, "inplace", True),
    ),
    "a part has another class": (Net.body, lambda net: setattr(net.first, "__class__", Doubled)),
    "a part has a forward of its own": (Net.body, _patched),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_the_first_call(name: str) -> None:
    run, change = CHANGES[name]
    ours, plain = pair(run)
    assert_equal(step(ours, 0), step(plain, 0))
    for model in (ours, plain):
        change(model)

    def code(model: nn.Module, x: Tensor) -> Results:
        leaves = {name: t for name in ("mask", "plain") if (t := getattr(model, name)).is_leaf}
        return {**OBJECTIVE(model, x), **{name: t.grad for name, t in leaves.items()}}

    assert_equal(step(ours, 0, code), step(plain, 0, code))


def test_a_forward_that_reads_the_dtype_of_its_parameters() -> None:
    ours, plain = pair(_in_own_dtype)
    for dtype in (torch.float64, torch.float32, torch.float64):
        found, expected = (step(model.to(dtype), 0) for model in (ours, plain))
        assert_equal(found, expected, rtol=1e-10 if dtype == torch.float64 else 1e-4)


# --------------------------------------------------------------------------------------- arguments


@dataclass
class Scale:
    value: Any


def _mutable(net: Net, x: Tensor, given: Any) -> Tensor:
    return net.body(x, given.value)


_SHARED = types.SimpleNamespace(value=1.0)
ARGUMENTS: dict[str, tuple[Forward, Callable[[float], Any]]] = {
    "an object changed in place": (_mutable, lambda v: setattr(_SHARED, "value", v) or _SHARED),
    "new objects": (_mutable, Scale),
    "an object with a tensor": (_mutable, lambda v: Scale(torch.full((5,), v).double())),
    "an array": (lambda net, x, given: net.body(x, float(given[0])), lambda v: np.array([v])),
    "a set": (lambda net, x, given: net.body(x, len(given)), lambda v: set(range(int(v)))),
    "a slice": (lambda net, x, given: net.body(x)[:, given], lambda v: slice(0, int(v))),
    "a number": (lambda net, x, given: net.body(x, given), float),
    "a zero with a sign": (
        lambda net, x, given: net.body(x, torch.full_like(x[0, 0], given).atan2(-x.detach()[0, 0].abs())),
        lambda v: 0.0 if v == 2.0 else -0.0,
    ),
    "nan": (lambda net, x, given: net.body(x, 1.0 if given != given else given), lambda v: float("nan")),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_no_tensors(name: str) -> None:
    run, make = ARGUMENTS[name]
    ours, plain = pair(run)
    for value in (1.0, 2.0, 3.0):
        given = make(value)
        code = lambda model, x, given=given: OBJECTIVE(lambda t: model(t, given), x)  # noqa: E731
        assert_equal(step(ours, 0, code), step(plain, 0, code))


def test_numbers_that_change_at_every_call_keep_few_traces() -> None:
    ours, _ = pair(lambda net, x, given: net.body(x, given))
    x = data(4, 6).requires_grad_()
    for k in range(70):
        ours(x, float(k))
    assert len(network_of(ours).traces) == 64
    for _ in range(70):
        ours(x, float("nan"))
    assert len(network_of(ours).traces) == 64


# ----------------------------------------------------------------------------------------- results


class Output(OrderedDict):
    """A result with attributes, as some libraries have it."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Parts(list):
    """A list of a class of its own."""


Named = namedtuple("Named", "logits other")
CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "ordered dict": (lambda y: OrderedDict(logits=y), lambda r: r["logits"]),
    "a class of dict": (lambda y: Output(logits=y), lambda r: r.logits),
    "a class of list": (lambda y: Parts([y]), lambda r: r[0]),
    "dataclass": (lambda y: Scale(y), lambda r: r.value),
    "namespace": (lambda y: types.SimpleNamespace(value=y), lambda r: r.value),
    "named tuple": (lambda y: Named(y, None), lambda r: r.logits),
    "nested": (lambda y: {"a": [y, (y * 2, 3, None)], "b": "text"}, lambda r: r["a"][0] + r["a"][1][0] * r["a"][1][1]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_result_keeps_its_container(name: str) -> None:
    put, take = CONTAINERS[name]
    ours, plain = pair(lambda net, x: put(net.body(x)))
    ours_type, plain_type = [type(model(data(4, 6).requires_grad_())) for model in (ours, plain)]
    assert ours_type is plain_type
    code = lambda model, x: OBJECTIVE(lambda t: take(model(t)), x)  # noqa: E731
    assert_equal(step(ours, 0, code), step(plain, 0, code))


def _changes_parts_in_place(net: Net, x: Tensor) -> Tensor:
    h = net.skip(x * 1)
    h += x.detach()
    return net.body(h if h.sum() < 1e9 else -h)  # decides on data: the parts are networks of their own


def test_parts_that_return_a_view_may_be_changed_in_place() -> None:
    ours, plain = pair(_changes_parts_in_place)
    for _ in range(2):
        assert_equal(step(ours, 0), step(plain, 0))


# ---------------------------------------------------------------------- parametrised weights, hooks


class Dropped(nn.Module):
    """A weight with dropout."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5, self.training)


def _dropped() -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Dropped())
    return layer


SHARED: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "dropout of a weight": _dropped,
}


@pytest.mark.parametrize("name", SHARED)
def test_a_parametrised_layer_that_is_called_twice(name: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        shared = SHARED[name]()
        models.append(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 3)).double())
    ours, plain = datagrad_ext.accelerate(models[0]), models[1]
    for seed in range(3):
        assert_equal(step(ours, seed), step(plain, seed))


COMPILED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.jit.script": torch.jit.script,
    "torch.compile": lambda part: torch.compile(part, backend="eager"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_a_part_that_is_compiled(name: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        parts = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        parts[1] = COMPILED[name](parts[1])
        models.append(parts)
    ours, plain = datagrad_ext.accelerate(models[0]), models[1]
    for seed in range(2):
        assert_equal(step(ours, seed), step(plain, seed))


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "before": lambda part: part.register_forward_pre_hook(lambda m, args: (args[0] * 0.9,)),
    "after": lambda part: part.register_forward_hook(lambda m, args, y: y * 0.9),
    "backward": lambda part: part.register_full_backward_hook(lambda m, inner, outer: (inner[0] * 0.9,)),
    "before backward": lambda part: part.register_full_backward_pre_hook(lambda m, outer: (outer[0] * 0.9,)),
}
PARTS = (nn.Identity, nn.Flatten, nn.ReLU, lambda: nn.Dropout(0.0), lambda: nn.Linear(6, 6), lambda: nn.BatchNorm1d(6))


@pytest.mark.parametrize("place", range(len(PARTS)))
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_of_any_part_changes_what_flows(kind: str, place: int) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(6, 6), PARTS[place](), nn.Tanh(), nn.Linear(6, 3)).double())
        HOOKS[kind](models[-1][1])
    assert_equal(step(datagrad_ext.accelerate(models[0]), 0), step(models[1], 0))


class Writer(nn.Module):
    """A part whose forward writes what the row says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(5, 5), None
        self.write: Callable[[Writer, Tensor], object] = lambda part, y: None
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).tanh()
        self.write(self, y)
        return y


def _writing(write: Callable[[Writer, Tensor], object]) -> Callable[[Net], object]:
    return lambda net: setattr(net.config, "write", write)


def _keep(part: nn.Module, y: Tensor) -> None:
    part.kept = y


def _count(part: Writer, y: Tensor) -> None:
    part.kept = 1.0 if part.kept is None else part.kept + 1.0


def _keep_after_a_look(part: Writer, y: Tensor) -> None:
    part.kept = y if y.sum() < 1e9 else -y


def _average(part: Writer, y: Tensor) -> None:
    part.mean = y.mean(0)


def _keeping(net: Net, place: str = "config") -> None:
    net.kept = None
    net.config.register_forward_hook(lambda m, args, y: _keep(net.get_submodule(place), y))


WRITTEN: dict[str, tuple[Callable[[Net], object], Callable[[Net], Any]]] = {
    "a tensor": (_writing(_keep), lambda net: net.config.kept),
    "a number": (_writing(_count), lambda net: net.config.kept),
    "a tensor, behind a decision on data": (_writing(_keep_after_a_look), lambda net: net.config.kept),
    "a buffer": (_writing(_average), lambda net: net.config.mean),
    "a new buffer": (
        _writing(lambda part, y: part.register_buffer("latest", y.detach().mean(0))),
        lambda net: net.config.latest,
    ),
    "into a part inside": (_writing(lambda part, y: _keep(part.layer, y)), lambda net: net.config.layer.kept),
    "by a hook": (_keeping, lambda net: net.config.kept),
    "by a hook, into the outermost module": (lambda net: _keeping(net, ""), lambda net: net.kept),
    "a weight, by a hook": (
        lambda net: prune.l1_unstructured(net.first, "weight", 0.3),
        lambda net: net.first.weight.sum(1),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_part_writes_is_read_as_it_is(name: str) -> None:
    prepare, read = WRITTEN[name]
    ours, plain = pair(lambda net, x: net.body(x, net.config(net.first(x)) * read(net)), Writer)
    for model in (ours, plain):
        prepare(model)
    for k in range(3):
        assert_equal(step(ours, k), step(plain, k))


@pytest.mark.parametrize("prepare", [_writing(_keep), _keeping], ids=["in an attribute", "by a hook"])
def test_a_loss_of_what_a_part_kept_is_an_error(prepare: Callable[[Net], object]) -> None:
    """Its gradient would be lost without a word."""
    ours, _ = pair(lambda net, x: net.second(net.config(net.first(x))), Writer)
    prepare(ours)
    y = ours(data(4, 6).requires_grad_())
    with pytest.raises(RuntimeError, match="let the network's forward return it"):
        (y.sum() + ours.config.kept.sum()).backward()


def test_a_hook_for_all_modules_sees_each() -> None:
    ours, plain = pair(Net.body)
    assert_equal(step(ours, 0), step(plain, 0))

    def double(module: nn.Module, args: Any, y: Any) -> Any:
        return y * 2 if isinstance(module, nn.Linear) else None

    handle = register_module_forward_hook(double)
    try:
        with pytest.warns(datagrad_ext.ReferencePathWarning, match="for all modules"):
            found = step(ours, 0)
        assert_equal(found, step(plain, 0))
    finally:
        handle.remove()
    assert_equal(step(ours, 0), step(plain, 0))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_records_the_forward() -> None:
    ours, plain = pair(Net.body)
    x = data(4, 6).requires_grad_()
    with pytest.warns(datagrad_ext.ReferencePathWarning, match="torch.jit.trace"):
        recorded = torch.jit.trace(ours, x)
    assert torch.equal(recorded(x), plain(x))
