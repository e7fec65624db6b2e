"""Opaque layers: any code without rules of its own, differentiated by PyTorch's autograd, confined to that code.

    forward    keeps the local graph from detached (x, θ) to y
    data_vjp   gx = autograd.grad(y, x, δ, create_graph=True) with δ requiring grad; the record is (δ, gx)
    jvp        autograd.grad(gx, δ, t): gx is linear in δ, so this is fₓ t
    reverse    autograd.grad([y, gx …], [x, θ], [ζ, t …])

Right for everything that autograd itself can do to second order, at autograd's price. Fused attention has no second
derivative: code that is known to attend (`attends`) does it by the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Layer, Pairs, Tensors, UnsupportedOutput, gradients

# modules of torch whose forward always returns new memory
_FRESH = {
    f"torch.nn.modules.{name}" for name in ("batchnorm", "normalization", "instancenorm", "pooling", "upsampling")
}


Context = Callable[[], AbstractContextManager[Any]]


class Opaque(Layer):
    """`call(inputs, params, host)` differentiated by autograd; `clones` gives it copies that it may change in place.

    The call runs within `context()`: the autocast of the trace.
    """

    curved = paired = opaque = aliases = True

    attends = False

    def __init__(
        self, call: Callable[..., Any], title: str, why: str, clones: bool = False, context: Context = nullcontext
    ) -> None:
        self._call, self._title, self.why, self.clones, self._context = call, title, why, clones, context

    @property
    def name(self) -> str:
        return self._title

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Any, tuple]:
        random = _random_state(inputs)
        x, theta = _leaves(inputs), _leaves(params)
        for leaf in filter(_differentiable, _flat((*x, *theta))):
            leaf.register_post_accumulate_grad_hook(_refuse)
        with torch.enable_grad(), self._context(), self._kernels():
            y = _value(self._call(self._own(x), theta, host), self._title)
        return _detached(y), (_Graph(x, theta, y), random)

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        graph = saved[0]
        return _gradients(_outputs(graph.y, g), _select(graph.x, wanted))

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        graph = saved[0]
        with torch.enable_grad():
            delta = _leaf(g)
            pulled = _gradients(_outputs(graph.y, delta), _select(graph.x, wanted), create_graph=True)
        return _detached(pulled), _Record(delta, pulled)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        return _gradients(_outputs(record.pulled, tangents), (record.delta,))[0]

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Pairs,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        graph = saved[0]
        terms = [] if zeta is None else _outputs(graph.y, zeta)
        for record, tangents in pairs:
            terms += _outputs(record.pulled, tangents)
        leaves = _select(graph.x, wanted_inputs) + _select(graph.theta, wanted_params)
        found = _gradients(terms, leaves)
        return found[: len(wanted_inputs)], found[len(wanted_inputs) :]

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Any:
        with _replayed(saved[1]), self._context(), self._kernels():
            return self._call(self._own(inputs), params, host)

    def _kernels(self) -> AbstractContextManager:
        """Kernels that autograd differentiates twice."""
        return sdpa_kernel(SDPBackend.MATH) if self.attends else nullcontext()

    def _own(self, inputs: Tensors) -> Tensors:
        """The inputs, as copies if the code may change them in place."""
        return tuple(t.clone() if isinstance(t, Tensor) else t for t in inputs) if self.clones else inputs


class OpaqueModule(Opaque):
    """A module called with autograd; its parameters enter by name, its buffers change once, in `forward`."""

    def __init__(
        self,
        module: nn.Module,
        template: Callable[[Tensors, tuple], tuple],
        why: str,
        context: Context = nullcontext,
    ) -> None:
        self._module, self._template = module, template
        self.names = [name for name, _ in module.named_parameters()]
        clones = any(getattr(m, "inplace", False) for m in module.modules())
        super().__init__(self._run, type(module).__name__, why, clones, context)
        self.attends = any(isinstance(m, nn.MultiheadAttention) for m in module.modules())
        self.aliases = type(module).__module__ not in _FRESH

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Any, tuple]:
        buffers = {name: (b, b._version, b.clone()) for name, b in self._module.named_buffers()}
        y, (graph, random) = super().forward(inputs, params, *host)
        before = {name: copy if b._version != version else b for name, (b, version, copy) in buffers.items()}
        return y, (graph, random, before)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Any:
        buffers = {name: b.clone() for name, b in saved[2].items()}
        with _replayed(saved[1]), self._context(), self._kernels():
            return self._run(self._own(inputs), params, host, buffers)

    def _run(self, inputs: Tensors, params: Tensors, host: tuple, buffers: dict | None = None) -> Any:
        args, kwargs = self._template(inputs, host)
        state = dict(zip(self.names, params, strict=True)) | (buffers or {})
        return functional_call(self._module, state, args, kwargs)


def _refuse(leaf: Tensor) -> None:
    """Sweeps accumulate nothing in leaves of a local graph: a tensor of it got out, whose gradient would end here."""
    raise RuntimeError(
        "the loss contains a tensor that a hook or an attribute kept of the inside of an accelerated network. "
        "Gradients do not go back from there: let the network's forward return it, or do without accelerate()"
    )


class _Graph(NamedTuple):
    """The local graph of one forward: leaves x and θ, value y."""

    x: Tensors
    theta: Tensors
    y: Any


class _Record(NamedTuple):
    """What a data gradient keeps here: its cotangent δ, a leaf, and the cotangents of x as functions of δ."""

    delta: Any
    pulled: Tensors


def _outputs(y: Any, g: Any) -> list[tuple[Tensor, Tensor]]:
    """(value, cotangent) for the tensors of a nested value that have a cotangent."""
    if y is None or g is None:
        return []
    if isinstance(y, Tensor):
        return [(y, g)]
    return [pair for part, cotangent in zip(y, g, strict=True) for pair in _outputs(part, cotangent)]


def _gradients(terms: list[tuple[Tensor, Tensor]], targets: Tensors, create_graph: bool = False) -> Tensors:
    """Gradients at targets that may be tuples, nested as they are."""
    return _refill(targets, iter(gradients(terms, _flat(targets), create_graph)))


def _select(values: Tensors, wanted: Sequence[bool]) -> Tensors:
    return tuple(v if want else None for v, want in zip(values, wanted, strict=True))


def _flat(value: Any) -> list[Any]:
    """The tensors of a nested value, in order."""
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, tuple) else [value]


def _refill(value: Any, leaves: Iterator[Any]) -> Any:
    """A value nested like `value`, from its leaves in order."""
    return tuple(_refill(part, leaves) for part in value) if isinstance(value, tuple) else next(leaves)


def _differentiable(t: Any) -> bool:
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())


def _leaf(t: Any) -> Any:
    if isinstance(t, tuple):
        return _leaves(t)
    return t.detach().requires_grad_() if _differentiable(t) else t


def _leaves(values: Tensors) -> Tensors:
    return tuple(map(_leaf, values))


def _detached(t: Any) -> Any:
    if isinstance(t, tuple):
        return tuple(map(_detached, t))
    return t.detach() if isinstance(t, Tensor) else t


def _value(y: Any, title: str) -> Any:
    """y as a tensor or a tuple of tensors (or None), which is what the sweeps carry."""
    if isinstance(y, Tensor) or y is None:
        return y
    if isinstance(y, (tuple, list)):
        return tuple(_value(part, title) for part in y)
    raise UnsupportedOutput(f"{title} returned {type(y).__name__}, and layers return tensors or tuples of tensors")


class _Random(NamedTuple):
    """A random state: that of the CPU, and of the device of the inputs if that is a GPU."""

    cpu: Tensor
    device: torch.device | None
    cuda: Tensor | None


def _random_state(inputs: Tensors) -> _Random:
    """The random state before the forward, so that the reference path draws the same numbers.

    While a CUDA graph is recorded the GPU's state cannot be read; the reference path is an error of torch's there.
    """
    device = next((t.device for t in inputs if isinstance(t, Tensor) and t.is_cuda), None)
    if device is None or torch.cuda.is_current_stream_capturing():
        return _Random(torch.get_rng_state(), device, None)
    return _Random(torch.get_rng_state(), device, torch.cuda.get_rng_state(device))


@contextmanager
def _replayed(state: _Random) -> Iterator[None]:
    """Draw the numbers that follow `state`, and leave the random state of the process as it is."""
    with torch.random.fork_rng([] if state.device is None else [state.device]):
        torch.set_rng_state(state.cpu)
        if state.device is not None and state.cuda is not None:
            torch.cuda.set_rng_state(state.cuda, state.device)
        yield
