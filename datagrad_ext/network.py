"""What stands behind an accelerated module: its traces, when they hold, and when ordinary autograd must do the work.

A call takes the fast path if gradients are on and an input requires one. Without such an input there is no data
gradient to speak of, and the module's own forward runs. The reference path (the module's own forward under ordinary
autograd, with one warning) is for what the two Functions cannot see through: torch.func, torch.compile, forward-mode
differentiation, tensor subclasses.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from .advice import advice
from .autograd import UnsupportedOutput, apply, warn_once
from .layers import expanded, rule_of_module
from .lower import Lowered, Parameter, Value, lower
from .precision import Precision
from .trace import Untraceable, attributes, hooked, same, trace

Forward = Callable[..., Any]
_TENSOR = object()
_training = itemgetter("training")
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
        self._watch: _Watch | None = None

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
        except UnsupportedOutput as error:
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
            found = self.traces[frozen] = _build(module, forward, call)
            if type(found) is Untraceable:
                _adopt_children(module, adopt)
                self._watch = _Watch(module)
        self._remember(found, key)
        return found

    def _state(self, module: nn.Module) -> tuple[Any, ...]:
        """What selects between traces; they are dropped if the module is not what they were made of."""
        state = None if self._watch is None else self._watch.look(module)
        if state is None:
            self.traces.clear()
            self._latest_key = None
            self._watch = _Watch(module)
            state = self._watch.look(module)
            assert state is not None
        return state

    def _remember(self, found: Lowered | Untraceable, key: tuple[Any, Any]) -> None:
        """The latest trace; the state in its key is copied, because hyper-parameters may be lists."""
        self.latest, self._latest_key = found, (key[0], copy.deepcopy(key[1]))

    def _give_up(self, module: nn.Module, call: _Call, adopt: Forward, reason: str) -> None:
        """From now on this call goes to the module's own forward, with the parts below it accelerated."""
        key = call.key, self._state(module)
        found = self.traces[_frozen(key)] = Untraceable(reason)
        self._remember(found, key)
        _adopt_children(module, adopt)

    def _run(self, lowered: Lowered, tensors: list[Tensor]) -> Any:
        slots = lowered.slots()
        params = lowered.parameters(slots)
        values = apply(lowered.program_of(tensors, params), tensors, params, self.warned)
        if type(lowered.structure) is Value:
            return values[0]
        rest = iter(values)
        results = {kind: slots[kind.index] if isinstance(kind, Parameter) else next(rest) for kind in lowered.outputs}
        return _rebuilt(lowered.structure, results)


class _Call:
    """Arguments of a call: its tensors, a key and a way back for everything else, and the autocast it is under."""

    __slots__ = ("key", "precision", "rebuild", "tensors")

    def __init__(self, tensors: list[Tensor], key: Any, rebuild: Callable[[Any], tuple[Any, Any]]) -> None:
        self.tensors, self.key, self.rebuild = tensors, key, rebuild
        self.precision: Precision | None = None

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

        key = (spec, tuple((type(leaf), leaf) if _hashable(leaf) else (type(leaf), id(leaf)) for leaf in fixed))
        return cls([leaf for leaf in leaves if isinstance(leaf, Tensor)], key, rebuild)


class _State:
    """What a forward changes, and the way back: buffers (running statistics), and the CPU's random state."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [(b, b.clone()) for b in module.buffers()]
        self._random = torch.get_rng_state()

    def restore(self) -> None:
        for buffer, old in self._buffers:
            buffer.data.copy_(old)
        torch.set_rng_state(self._random)


class _Watch:
    """What a trace has built in, and whether it is still so. Holds no reference to the outermost module."""

    def __init__(self, root: nn.Module) -> None:
        self._type = type(root)
        self._inner = [m for m in root.modules() if m is not root]
        self._tables = [m.__dict__ for m in self._inner]
        modules = [root, *self._inner]
        self._children = [(i, tuple(m._modules.values())) for i, m in enumerate(modules) if m._modules]
        self._attributes = [(i, attributes(m)) for i, m in enumerate(modules) if not _is_library(m)]
        self._parameters = [(m._parameters, name) for m in modules for name in m._parameters]
        rules = [(i, rule_of_module(m)) for i, m in enumerate(modules)]
        self._configs = [(i, rule.config) for i, rule in rules if rule is not None and rule.config is not None]

    def look(self, root: nn.Module) -> tuple[Any, ...] | None:
        """Flags, hooks, missing parameters and hyper-parameters, which select between traces.

        None if modules are not where they were, or their attributes are not what they were.
        """
        if type(root) is not self._type:
            return None
        modules = [root, *self._inner]
        for i, children in self._children:
            if tuple(modules[i]._modules.values()) != children:
                return None
        for i, state in self._attributes:
            if not same(attributes(modules[i]), state):
                return None
        training = list(map(_training, self._tables))
        missing = [table.get(name) is None for table, name in self._parameters]
        configs = [config(modules[i]) for i, config in self._configs]
        return root.training, training, hooked(self._tables), missing, configs


def _positional(tensors: Any) -> tuple[Any, Any]:
    """Arguments that are all tensors, without names."""
    return tensors, {}


def refusal(active: list[Tensor]) -> str | None:
    """Why the two Functions cannot take this call, or None. `active`: the inputs that require a gradient."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
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

    def run(root: nn.Module, *inputs: Any) -> Any:
        args, kwargs = call.rebuild(inputs)
        value = expanded(root, args, kwargs)
        return forward(root, *args, **kwargs) if value is NotImplemented else value

    if _is_sharded(module):
        return _Sharded(_SHARDED)
    leaves: dict[nn.Module, str] = {}
    while True:
        try:
            return lower(module, trace(module, run, len(call.tensors), leaves), leaves, call.precision)
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
            rule_of_module(child) is not None or isinstance(child, nn.Sequential) or not _is_library(child)
        ):
            adopt(child)


def _is_library(module: nn.Module) -> bool:
    """Whether the module's code is torch's own, so that its rule or autograd reads its attributes when it runs."""
    return type(module).forward.__module__.startswith("torch.nn.")


def _rebuilt(structure: Any, results: dict) -> Any:
    """The forward's result with the program's outputs in their places, in plain containers."""
    if isinstance(structure, dict):
        return {key: _rebuilt(part, results) for key, part in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*[_rebuilt(part, results) for part in structure])
    if isinstance(structure, (list, tuple)):
        parts = [_rebuilt(part, results) for part in structure]
        return parts if isinstance(structure, list) else tuple(parts)
    return results[structure] if _hashable(structure) and structure in results else structure


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
