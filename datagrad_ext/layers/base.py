"""The Layer contract: five linear maps and the sweep that combines them.

A layer is y = f(x₁ … x_k, θ₁ … θ_p). Letters, here and in every layer:

    x  inputs        y  output         θ  parameters      saved  what `forward` keeps for the other maps
    v, t  tangents (pushed forward)    δ, g  cotangents of the data-gradient pass    ζ  cotangent of the final pass

    forward(x, θ) -> y, saved          sweep 1
    vjp(g) -> fₓᵀ g                    sweeps 2 and 4
    jvp(t) -> fₓ t                     sweep 3
    param_vjp(g, t) -> θ̄              gradient with respect to θ of ⟨g, f⟩ (sweep 4), or of ⟨δ, fₓ t⟩ (sweep 3)
    curvature(pairs) -> Σ (f″[t])ᵀ δ   sweep 4: gradient of Σ ⟨δ, fₓ t⟩ with respect to x

`data_vjp`, `data_jvp` and `reverse` are sweeps 2, 3 and 4 at one layer, composed of the maps; a layer that can do a
sweep in fewer passes overrides it. The record is what sweep 2 keeps at a paired layer (δ, unless the layer says
otherwise in `data_vjp`); tangents is one tangent per input, None for zero. Where f is linear in x, sweep 3 uses both
up: the parameter gradient of (δ, t) is taken there, and neither is kept. A curved layer leaves the pair (record,
tangents) to sweep 4, one for every data gradient of this forward.
`wanted` has one flag per input (or parameter); a map may return None wherever the flag is False, and None for zero.
`sums` are parameter gradients that the same layer returned before, None for none: it adds to them, in place if it
likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Any, ...]  # one Tensor or None for each input, or for each parameter
Pairs = Sequence[tuple[Any, Tensors]]

# Policies that differ between devices (`Layer.autocast_on`): torch.autocast has a list of operations for each.
FLOAT32_ON_CPU = {"cpu": "float32", "cuda": "same"}
FLOAT32_ON_CUDA = {"cpu": "same", "cuda": "float32"}


class UnsupportedOutput(Exception):
    """A value that the sweeps cannot carry: a layer's tuple that leaves the network, or what is no tensor."""


class Layer:
    """Base class of all layers. A subclass writes the maps it has; `reverse` is composed from them."""

    curved = False  # True if `curvature` is not zero
    paired = False  # True if sweep 3 reads the record: curved, or with parameters that multiply x
    opaque = False  # True if the maps come from autograd on the wrapped code
    aliases = False  # True if y may share memory with x
    follows_layout = False  # True if the maps keep channels_last: out of x into y, and so for tangents and cotangents
    wants_channels_last = False  # True if it follows the layout and two-dimensional images are faster in channels_last
    autocast: str | Mapping[str, str] | None = None  # what torch.autocast does to it, on every device or on each
    ops: tuple[str, ...] = ()  # the project's ops that the maps call; empty: vendor libraries only
    compiled: Any = None  # a `Compiled` if csrc/nodes can run the sweeps

    @property
    def name(self) -> str:
        """How the layer is called in the table of a program."""
        return type(self).__name__

    def acted(self, saved: Any) -> bool:
        """Whether the layer did something at this forward; the table of a program lists what did."""
        return True

    def autocast_on(self, device: str) -> str | None:
        """What torch.autocast does to the operation on a device type.

        "low", "float32": inputs and parameters are cast to the low dtype, to float32. "widest": inputs are promoted to
        the widest dtype among them. "same": it runs in its input's dtype. "own": so it does, and gives another. None:
        not said; the layer is opaque there.
        """
        return self.autocast if self.autocast is None or isinstance(self.autocast, str) else self.autocast.get(device)

    def link(self, n_params: int) -> str | None:
        """How the ops of chains spell the layer if it has so many parameters; None: it cannot be a link of a chain."""
        return None

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        """How the ops of chains of images spell it, with so many parameters and these host arguments."""
        return None if host else self.link(n_params)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Any, tuple[Any, ...]]:
        """Value y and what the other maps need (tensors, or plain Python values)."""
        raise NotImplementedError

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        """Cotangents of the inputs, fₓᵀ g."""
        raise NotImplementedError

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        """Tangent of the output, fₓ t; at least one tangent is not None."""
        raise NotImplementedError

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        """`sums` plus the gradient of ⟨g, f⟩ (tangents None) or of ⟨g, fₓ t⟩ with respect to each parameter."""
        raise NotImplementedError

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        """Gradient of Σ ⟨δ, fₓ t⟩ with respect to each input."""
        raise NotImplementedError

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Any:
        """The value again, as ordinary differentiable PyTorch, with the randomness of the forward that saved."""
        raise NotImplementedError

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        """Sweep 2 at this layer: `vjp`, and the record that sweep 3 will get."""
        return self.vjp(saved, params, g, wanted), g

    def data_jvp(
        self,
        saved: Any,
        params: Tensors,
        tangents: Tensors,
        record: Any,
        needed: bool,
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Any, Any, Tensors]:
        """Sweep 3 at this layer: the tangent of y if needed, the pair for sweep 4 or None, parameter gradients."""
        y_tangent = self.jvp(saved, params, tangents, record) if needed else None
        if self.curved:
            return y_tangent, (record, tangents), sums
        if self.paired and True in wanted_params:
            sums = self.param_vjp(saved, params, record, tangents, wanted_params, sums)
        return y_tangent, None, sums

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
        """Sweep 4 at this layer: cotangents of the inputs (curvature included) and all parameter gradients."""
        x_bars: Tensors = (None,) * len(wanted_inputs)
        if True in wanted_inputs:
            if zeta is not None:
                x_bars = self.vjp(saved, params, zeta, wanted_inputs)
            if self.curved and pairs:
                x_bars = add_each(x_bars, self.curvature(saved, params, pairs, wanted_inputs))
        if True in wanted_params:
            for record, tangents in pairs:
                sums = self.param_vjp(saved, params, record, tangents, wanted_params, sums)
            if zeta is not None:
                sums = self.param_vjp(saved, params, zeta, None, wanted_params, sums)
        return x_bars, sums


class Composition(Layer):
    """A run of layers, one behind the other, that overrides the sweeps whole; params are theirs, in order."""

    paired = True

    def __init__(self, layers: Sequence[Layer], n_params: Sequence[int]) -> None:
        self.layers, self.n_params = tuple(layers), tuple(n_params)

    @property
    def name(self) -> str:
        return " → ".join(layer.name for layer in self.layers)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self.data_vjp(saved, params, g, wanted)[0]

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self.data_jvp(saved, params, tangents, record, True, (), ())[0]

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        (x,), place = inputs, 0
        for layer, n in zip(self.layers, self.n_params, strict=True):
            x = layer.reference((), (x,), params[place : place + n])
            place += n
        return x


class PerCall(Layer):
    """A layer that each forward chooses another layer for, which runs the sweeps of that call. Saves it first."""

    paired = True

    def chosen(self, inputs: Tensors, params: Tensors) -> Layer:
        """The layer that runs a call."""
        raise NotImplementedError

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Any, tuple]:
        layer = self.chosen(inputs, params)
        y, kept = layer.forward(inputs, params, *host)
        return y, (layer, *kept)

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        return saved[0].vjp(saved[1:], params, g, wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Any:
        return saved[0].jvp(saved[1:], params, tangents, record)

    def data_vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> tuple[Tensors, Any]:
        return saved[0].data_vjp(saved[1:], params, g, wanted)

    def data_jvp(self, saved: Any, *arguments: Any) -> tuple[Any, Any, Tensors]:
        return saved[0].data_jvp(saved[1:], *arguments)

    def reverse(self, saved: Any, *arguments: Any) -> tuple[Tensors, Tensors]:
        return saved[0].reverse(saved[1:], *arguments)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Any:
        return saved[0].reference(saved[1:], inputs, params, *host)


def with_found(sums: Tensors, places: Sequence[int], found: Sequence[Tensor]) -> Tensors:
    """The sums with what was found in its places."""
    if len(places) == len(sums):
        return tuple(found)
    bars = list(sums)
    for place, bar in zip(places, found, strict=True):
        bars[place] = bar
    return tuple(bars)


class Parameterless(Layer):
    """Base class of layers without parameters whose reference is `apply(x, *host)`."""

    def apply(self, *inputs: Any) -> Any:
        """The value as one differentiable expression of the inputs (and host values)."""
        raise NotImplementedError

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Any:
        return self.apply(*inputs, *host)


def gradients(terms: Iterable[tuple[Any, Any]], targets: Sequence[Any], create_graph: bool = False) -> Tensors:
    """Gradients of Σ ⟨value, cotangent⟩ at each target by autograd; None where there is none, or nothing flows."""
    known = [(v, c) for v, c in terms if c is not None and isinstance(v, Tensor) and v.requires_grad]
    reachable = [t for t in targets if isinstance(t, Tensor) and t.requires_grad]
    if not known or not reachable:
        return (None,) * len(targets)
    values, cotangents = zip(*known, strict=True)
    found = iter(
        torch.autograd.grad(
            values, reachable, cotangents, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    )
    return tuple(next(found) if isinstance(t, Tensor) and t.requires_grad else None for t in targets)


def add(a: Any, b: Any) -> Any:
    """a + b where None is zero; tuples (values with several tensors) are added element by element."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, tuple):
        return add_each(a, b)
    return a + b


def add_each(a: Tensors, b: Tensors) -> Tensors:
    """Element-wise `add` of two tuples."""
    return tuple(map(add, a, b))


def reduce_to(g: Tensor, shape: torch.Size) -> Tensor:
    """Sum a cotangent over the dimensions that broadcasting added or stretched."""
    return g if g.shape == shape else g.sum_to_size(shape)


def blank(like: Any) -> Tensor:
    """A tensor of the input's shape and strides, whose values nobody reads."""
    element, shape, stride = like
    return torch.empty_strided(shape, stride, dtype=element.dtype, device=element.device)


def reader(places: Sequence[int]) -> Callable[[Sequence[Any]], Tensors]:
    """A function that takes the places out of a sequence, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    if places:
        return lambda values: (values[places[0]],)
    return lambda values: ()
