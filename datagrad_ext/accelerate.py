"""accelerate(model): the same object, with exact and fast second order behind ordinary autograd code.

The instance's class is replaced by a generated subclass whose `forward` runs the module's program (torch's own
`fully_shard` does the same). Parameters, buffers, state_dict keys, hooks on the module, isinstance, deepcopy and pickle
stay as they are.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .lower import Lowered
from .network import Network
from .trace import hooked

Module = TypeVar("Module", bound=nn.Module)


def accelerate(model: Module) -> Module:
    """Make every data gradient of `model` exact and fast to differentiate; returns the same object.

    After this, `torch.autograd.grad(loss, x, create_graph=True)` and a backward through what is computed from it run on
    the optimal schedule, for any loss and any penalty. Modules and calls without rules become opaque layers (PyTorch's
    autograd, confined to them); `datagrad_ext.program(model)` shows which.

    Args:
        model: any nn.Module. Accelerating it twice changes nothing.

    Raises:
        TypeError: not an nn.Module, or one that torch.jit or torch.compile has already taken over.
        ValueError: its forward was replaced on the instance, where the class cannot reach it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"accelerate() takes a torch.nn.Module, got {type(model).__name__}. "
            "For functions use datagrad_ext.functional, which has torch.nn.functional's signatures."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("accelerate() got a ScriptModule, whose code is fixed. Accelerate the module, then script it.")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise TypeError("accelerate() got torch.compile's wrapper. Accelerate the module itself, before compiling.")
    if "forward" in model.__dict__:
        raise ValueError(
            f"{type(model).__name__}.forward was replaced on the instance, so a forward of its class would never run. "
            "Put the new forward into a subclass and accelerate that."
        )
    return _adopt(model)


def network_of(model: nn.Module) -> Network:
    """The network behind an accelerated module."""
    if not is_accelerated(model):
        raise TypeError(f"expected an accelerated module, got {type(model).__name__}. Call accelerate(model) first.")
    network = model.__dict__.get("_datagrad")
    if network is None or network.owner is None or network.owner() is not model:
        network = model.__dict__["_datagrad"] = Network(weakref.ref(model))
    return network


def is_accelerated(module: nn.Module) -> bool:
    """Whether accelerate() has taken this module over."""
    return hasattr(type(module), "_datagrad_forward")


def traced(model: Any, x: Tensor) -> tuple[Network, Lowered] | None:
    """The network behind `model` and the trace that model(x) runs, for who runs its sweeps by himself.

    None where model(x) is anything else than a program of one input and one output: not accelerated, not traceable,
    hooks on the module, or where the module's own forward would run (autocast, transforms).
    """
    if not is_accelerated(model) or torch.compiler.is_compiling() or model._compiled_call_impl is not None:
        return None
    if True in hooked([model.__dict__]) or nn.modules.module._has_any_global_hook():
        return None
    network = network_of(model)
    found = network.trace_of(model, type(model)._datagrad_forward, _adopt, x)
    return None if found is None else (network, found)


def _adopt(module: Module) -> Module:
    if not is_accelerated(module):
        cls: Any = type(module)
        generated: Any = _accelerated_class(cls)
        module.__class__ = generated
    return module


@functools.cache
def _accelerated_class(cls: Any) -> type[nn.Module]:
    """The subclass of `cls` that runs programs; generated once for each class."""
    original = cls.forward

    @functools.partial(torch.compiler.disable, reason="a data gradient of it may be asked for: it runs as it is")
    def outside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return (original if _compiles(args, kwargs) else outside)(self, *args, **kwargs)
        network = self.__dict__.get("_datagrad")
        if network is None or network.owner is None or network.owner() is not self:
            network = network_of(self)
        return network.call(self, original, _adopt, args, kwargs)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        function, arguments, *rest = tuple(cls.__reduce_ex__(self, protocol))
        arguments = tuple(cls if a is type(self) else a for a in arguments)
        return (_rebuild, (function, arguments), *rest)

    body = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "_datagrad_forward": staticmethod(original),
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls.__name__, (cls,), body)


def _compiles(args: tuple, kwargs: dict) -> bool:
    """Whether torch.compile and torch.export may take the module's own forward into their graph.

    Not if an input requires a gradient: compiled code refuses double backward. Export and torch.func transforms have
    no autograd graph around it.
    """
    if torch.compiler.is_exporting() or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return True
    return not any(isinstance(t, torch.Tensor) and t.requires_grad for t in pytree.tree_leaves((args, kwargs)))


def _rebuild(function: Callable[..., Any], arguments: tuple[Any, ...]) -> nn.Module:
    """Undo `__reduce_ex__`: make the object of the original class, then accelerate it."""
    return _adopt(function(*arguments))
