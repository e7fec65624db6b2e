"""What stands behind an accelerated module: its traces, when they hold, and when ordinary autograd must do the work.

A call takes the fast path if gradients are on and an input requires one. Without such an input there is no data
gradient to speak of, and the module's own forward runs. The reference path (the module's own forward under ordinary
autograd, with one warning) is for what the two Functions cannot see through: torch.func, torch.compile, forward-mode
differentiation, tensor subclasses.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from .advice import advice
from .autograd import apply
from .layers import Application, Expansion, UnsupportedOutput, expanded, rule_of_module
from .lower import Kinds, Lowered, Parameter, Value, lower
from .precision import Precision
from .reference import warn_once
from .snapshot import PLAIN
from .trace import Untraceable, trace
from .watch import Watch, is_library

Forward = Callable[..., Any]
_TENSOR = object()
_MOST_TRACES = 64  # of one module; with more, the oldest goes
_STATIC_GRAPH = (
    "DistributedDataParallel(static_graph=True) counts the first backward, which is the data gradient, as the step's, "
    "and leaves gradients unsynchronised. Construct it without static_graph."
)
_SHARDED = (
    "FSDP (fully_shard) frees a network's parameters after the first backward, which is the data gradient, and never "
    "reduces the gradients of the second. Use DistributedDataParallel, or an objective whose estimator needs no second "
    "derivative: DataGrad(..., FiniteDifference(step))."
)


class _Sharded(Untraceable):
    """FSDP manages the module: its own forward runs, and what it returns refuses a second derivative."""


@dataclass
class Network:
    """Traces of one module, by call signature and module state. Copies and pickles start without traces."""

    owner: weakref.ref[nn.Module] | None = None

    def __post_init__(self) -> None:
        self.traces: dict[Any, Lowered | Untraceable] = {}
        self.latest: Lowered | Untraceable | None = None
        self._latest_key: Any = None
        self.warned: set[str] = set()
        self._watch: Watch | None = None

    def __deepcopy__(self, memo: Any) -> Network:
        return Network()

    def __reduce__(self) -> Any:
        return Network, ()

    def call(self, module: nn.Module, forward: Forward, adopt: Forward, args: tuple, kwargs: dict) -> Any:
        """The module's result; `adopt` accelerates a child where the module itself does not trace."""
        if not torch.is_grad_enabled():
            return forward(module, *args, **kwargs)
        call = _Call.of(args, kwargs)
        active = [t for t in call.tensors if t.requires_grad]
        reason = refusal(active)
        if reason is not None:
            warn_once(self.warned, f"{type(module).__name__}: {reason}")
            return forward(module, *args, **kwargs)
        if not active:
            return forward(module, *args, **kwargs)
        if nn.modules.module._has_any_global_hook():
            warn_once(self.warned, f"{type(module).__name__}: a hook for all modules must see each of them")
            return forward(module, *args, **kwargs)
        ddp = DistributedDataParallel._active_ddp_module
        if ddp is not None and ddp.static_graph:
            raise RuntimeError(_STATIC_GRAPH)
        if torch._C._is_any_autocast_enabled():
            call.enter(Precision.of(call.tensors))
        found = self.find(module, forward, adopt, call)
        if isinstance(found, Untraceable):
            value = forward(module, *args, **kwargs)
            return _refusing_second_derivatives(value) if type(found) is _Sharded else value
        before = None if found.rows else _State(module)  # only the first run tells whether the program can
        try:
            return self._run(found, call.tensors)
        except (UnsupportedOutput, AttributeError, TypeError) as error:
            if before is None and not isinstance(error, UnsupportedOutput):
                raise
            if before is not None:
                before.restore()
            self._give_up(module, call, adopt, str(error))
            return forward(module, *args, **kwargs)
        except (RuntimeError, IndexError) as error:
            said = advice(error, call.tensors, found.slots())
            if said is None:
                raise
            raise RuntimeError(f"{type(module).__name__}: {said} The error was: {error}") from error

    def trace_of(self, module: nn.Module, forward: Forward, adopt: Forward, x: Tensor) -> Lowered | None:
        """What module(x) runs if it is a program of one output and nothing else, for who runs the sweeps himself."""
        if not x.is_floating_point() or x.is_inference() or torch._C._is_any_autocast_enabled():
            return None
        if refusal([x]) is not None:
            return None
        found = self.find(module, forward, adopt, _Call([x], 1, _positional))
        return found if isinstance(found, Lowered) and found.is_one_value else None

    def find(self, module: nn.Module, forward: Forward, adopt: Forward, call: _Call) -> Lowered | Untraceable:
        """The trace for this call: the one that holds, or a new one."""
        key = call.key, self._state(module)
        if key == self._latest_key:
            return self.latest  # type: ignore[return-value]
        frozen = _frozen(key)
        found = self.traces.get(frozen)
        if found is None:
            if any(map(is_lazy, module.parameters())):
                return Untraceable("a lazy parameter has no shape yet")
            if len(self.traces) == _MOST_TRACES:
                del self.traces[next(iter(self.traces))]
            found = self.traces[frozen] = _build(module, forward, call)
            if type(found) is Untraceable:
                _adopt_children(module, adopt)
                self._watch = Watch(module)
        self._remember(found, key)
        return found

    def _state(self, module: nn.Module) -> tuple[Any, ...]:
        """What selects between traces; they are dropped if the module is not what they were made of."""
        state = None if self._watch is None else self._watch.look(module)
        if state is None:
            self.traces.clear()
            self._latest_key = None
            self._watch = Watch(module)
            state = self._watch.look(module)
            assert state is not None
        return state, self._watch.kind_of_parameters()  # type: ignore[union-attr]

    def _remember(self, found: Lowered | Untraceable, key: tuple[Any, Any]) -> None:
        self.latest, self._latest_key = found, key

    def _give_up(self, module: nn.Module, call: _Call, adopt: Forward, reason: str) -> None:
        """From now on this call goes to the module's own forward, with the parts below it accelerated."""
        _adopt_children(module, adopt)
        self._watch = Watch(module)
        key = call.key, self._state(module)
        found = self.traces[_frozen(key)] = Untraceable(reason)
        self._remember(found, key)

    def _run(self, lowered: Lowered, tensors: list[Tensor]) -> Any:
        slots = lowered.slots()
        params = lowered.parameters(slots)
        values = apply(lowered.program_of(tensors, params), tensors, params, self.warned)
        if type(lowered.structure) is Value:
            return values[0]
        rest = iter(values)
        results = {kind: slots[kind.index] if isinstance(kind, Parameter) else next(rest) for kind in lowered.outputs}
        parts = [lowered.structure] if isinstance(lowered.structure, Kinds) else lowered.structure
        leaves = [results[part] if isinstance(part, Kinds) else part for part in parts]
        assert lowered.spec is not None
        return pytree.tree_unflatten(leaves, lowered.spec)


class _Call:
    """Arguments of a call: its tensors, a key and a way back for everything else, and the autocast it is under."""

    __slots__ = ("key", "precision", "rebuild", "strange", "tensors")

    def __init__(self, tensors: list[Tensor], key: Any, rebuild: Callable[[Any], tuple[Any, Any]]) -> None:
        self.tensors, self.key, self.rebuild = tensors, key, rebuild
        self.precision: Precision | None = None
        self.strange = ""  # the type of an argument that is neither a tensor nor a plain value

    def enter(self, precision: Precision | None) -> None:
        """Take note of the autocast state: it selects the trace."""
        self.precision, self.key = precision, (self.key, precision)

    @classmethod
    def of(cls, args: tuple, kwargs: dict) -> _Call:
        if not kwargs and False not in [isinstance(a, Tensor) for a in args]:
            return cls(list(args), len(args), _positional)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        fixed = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def rebuild(tensors: Any) -> tuple[Any, Any]:
            rest = iter(tensors)
            return pytree.tree_unflatten([next(rest) if leaf is _TENSOR else leaf for leaf in fixed], spec)

        strange = [type(leaf).__name__ for leaf in fixed if leaf is not _TENSOR and not isinstance(leaf, PLAIN)]
        key = strange[0] if strange else (spec, tuple([(type(leaf), _told_apart(leaf)) for leaf in fixed]))
        call = cls([leaf for leaf in leaves if isinstance(leaf, Tensor)], key, rebuild)
        call.strange = strange[0] if strange else ""
        return call


def _told_apart(leaf: Any) -> Any:
    """A plain value in a key: 0.0 is not -0.0, and nan is nan."""
    return repr(leaf) if isinstance(leaf, (float, complex)) else leaf


class _State:
    """What a forward changes, and the way back: buffers (running statistics), and the CPU's random state."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [(b, b.clone()) for b in module.buffers()]
        self._random = torch.get_rng_state()

    def restore(self) -> None:
        for buffer, old in self._buffers:
            buffer.data.copy_(old)
        torch.set_rng_state(self._random)


def _positional(tensors: Any) -> tuple[Any, Any]:
    """Arguments that are all tensors, without names."""
    return tensors, {}


def refusal(active: list[Tensor]) -> str | None:
    """Why the two Functions cannot take this call, or None. `active`: the inputs that require a gradient."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace records the call"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    for t in active:
        if type(t) is not Tensor and type(t) is not nn.Parameter:
            return f"an input is a {type(t).__name__}, not a plain tensor"
        if torch._C._functorch.is_functorch_wrapped_tensor(t):
            return "an input comes out of a torch.func transform that has ended"
        if t.is_complex() or t.layout is not torch.strided:
            return f"an input is {t.dtype}, {t.layout}; layers take dense real ones (torch.view_as_real, to_dense)"
    return None


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP manages parameters of the module."""
    return any("_is_fsdp_managed_module" in m.__dict__ for m in module.modules())


def refuse_sharded(model: Any) -> None:
    """A RuntimeError if the model is a module that FSDP manages: for who is about to differentiate it twice."""
    if isinstance(model, nn.Module) and _is_sharded(model):
        raise RuntimeError(_SHARDED)


def _refusing_second_derivatives(value: Any) -> Any:
    """The result of a sharded module, whose backward raises under create_graph=True: a second one would go wrong."""
    for t in pytree.tree_leaves(value):
        if isinstance(t, Tensor) and t.grad_fn is not None:
            t.register_hook(_refuse_if_differentiable)
    return value


def _refuse_if_differentiable(cotangent: Tensor) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(_SHARDED)


def _build(module: nn.Module, forward: Forward, call: _Call) -> Lowered | Untraceable:
    """Trace and lower; a module inside that stands in the way becomes a leaf."""

    spec = None

    def run(root: nn.Module, *inputs: Any) -> Any:
        nonlocal spec
        args, kwargs = call.rebuild(inputs)
        value = expanded(root, args, kwargs)
        value = forward(root, *args, **kwargs) if value is NotImplemented else value
        leaves, spec = pytree.tree_flatten(value)
        strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (fx.Proxy, Tensor, *PLAIN))]
        if strange:
            raise TypeError(f"its result has a {strange[0]} in it")
        return value if spec.is_leaf() else leaves

    if _is_sharded(module):
        return _Sharded(_SHARDED)
    if call.strange:
        return Untraceable(f"an argument is a {call.strange}, which may change without a trace knowing of it")
    leaves: dict[nn.Module, str] = {}
    while True:
        try:
            lowered = lower(module, trace(module, run, len(call.tensors), leaves), leaves, call.precision)
            lowered.spec = spec
            return lowered
        except Untraceable as error:
            culprit = module.get_submodule(error.path)
            if culprit is module or culprit in leaves:
                return Untraceable(str(error))
            leaves[culprit] = str(error)


def _adopt_children(module: nn.Module, adopt: Forward) -> None:
    """Accelerate what is below a module that does not trace, each part as a network of its own."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            _adopt_children(child, adopt)
        elif not getattr(child, "inplace", False) and (
            _is_layer(child) or isinstance(child, nn.Sequential) or not is_library(child)
        ):
            adopt(child)


def _is_layer(module: nn.Module) -> bool:
    """Whether the module is worth a network of its own; not if it returns a view, which plain code may change."""
    rule = rule_of_module(module)
    found = None if rule is None else rule.build(module)
    return isinstance(found, Expansion) or (isinstance(found, Application) and not found.layer.aliases)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
