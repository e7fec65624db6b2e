"""Normalisation by running statistics, which are constants: y = w (x − μ) r + b, r = (var + ε)^(−½).

    vjp  w r g      jvp  w r t      w̄ = Σ ζ (x − μ) r + Σ δ r t      b̄ = Σ ζ

Linear in x, so without curvature. μ and var are copied: the module may update them before the backward comes.
`BatchNormState` and `InstanceNormState` are what the modules do at a call besides: checks and counting.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Tensors
from .normalisation import Affine, batch_of_one, running

_backward = torch.ops.aten.native_batch_norm_backward.default


class RunningNorm(Affine):
    """Running statistics in place of the input's; host: (running mean, running variance, …), or what gives them.

    `batched` is how many dimensions a batch has, None if x is never anything else. `folds`: channels are dimension 1,
    and what gives the statistics looks at the number of x's dimensions alone.
    """

    follows_layout = True
    autocast = "same"

    def __init__(
        self, weight: bool, bias: bool, eps: float, title: str, batched: int | None = None, folds: bool = False
    ) -> None:
        super().__init__(weight, bias, eps)
        self.folds = folds
        self.paired = weight
        self._title, self._batched = title, batched

    @property
    def name(self) -> str:
        return self._title

    def statistics(self, x: Tensor, host: tuple) -> tuple[Tensor, Tensor]:
        """Running mean and variance."""
        mean, var, _ = running(x, host)
        if mean is None or var is None:
            raise RuntimeError(f"{self._title}: running_mean and running_var must be defined in evaluation mode")
        return mean, var

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        mean, var = self.statistics(inputs[0], host)
        shape = batch_of_one(inputs[0], self._batched)
        x = inputs[0].reshape(shape) if shape else inputs[0]
        y = self._value(x, params, mean, var)
        mean, var = mean.clone(), var.clone()
        scale = (var.to(torch.promote_types(var.dtype, torch.float32)) + self.eps).rsqrt()
        saved = (x, mean, var, scale.view(-1, *[1] * (x.dim() - 2)), shape is not None)
        return y.squeeze(0) if shape else y, saved

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._scaled(saved, params, g),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._scaled(saved, params, tangents[0])

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        if tangents is None:
            return self._both(saved, params, g, (False, True, True), sums)[1]
        r, t = saved[3], tangents[0]
        product = (g.to(r.dtype) * t).unsqueeze(0) if saved[4] else g.to(r.dtype) * t
        over = [d for d in range(product.dim()) if d != 1]
        return self.collect(params, sums, product.sum(over) * r.view(-1), None)

    def reverse(
        self,
        saved: Any,
        params: Tensors,
        zeta: Any,
        pairs: Any,
        wanted_inputs: Sequence[bool],
        wanted_params: Sequence[bool],
        sums: Tensors,
    ) -> tuple[Tensors, Tensors]:
        """As composed, with x̄ and the gradients of parameters from one call."""
        if zeta is None or True not in wanted_params:
            return super().reverse(saved, params, zeta, pairs, wanted_inputs, wanted_params, sums)
        return self._both(saved, params, zeta, (wanted_inputs[0], True, True), sums)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        x = inputs[0].unsqueeze(0) if saved[4] else inputs[0]
        y = self._value(x, params, saved[1], saved[2])
        return y.squeeze(0) if saved[4] else y

    def _value(self, x: Tensor, params: Tensors, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, *self.split(params), False, 0.0, self.eps)

    def _scaled(self, saved: Any, params: Tensors, u: Tensor) -> Tensor:
        """w r u."""
        scale, weight = saved[3], self.split(params)[0]
        if weight is not None:
            scale = scale * weight.view(scale.shape)
        return (u * scale).to(u.dtype)

    def _both(
        self, saved: Any, params: Tensors, zeta: Tensor, wanted: Sequence[bool], sums: Tensors
    ) -> tuple[Tensors, Tensors]:
        """x̄ and parameter gradients of ζ."""
        x, mean, var, _, unbatched = saved
        weight = self.split(params)[0]
        if x.numel() == 0:  # aten divides by the number of values
            nothing = torch.zeros_like(mean), torch.zeros_like(mean)
            return (self._scaled(saved, params, zeta),), self.collect(params, sums, *nothing)
        zeta = zeta.unsqueeze(0) if unbatched else zeta
        weight = None if weight is None else weight.contiguous()  # aten takes that of a matrix for dense
        x_bar, *bars = _backward(zeta, x, weight, mean, var, None, None, False, self.eps, wanted)
        if x_bar is not None and unbatched:
            x_bar = x_bar.squeeze(0)
        return (x_bar,), self.collect(params, sums, *bars)


class BatchNormState:
    """What nn.BatchNorm does at a call besides normalising: check, count, name the running statistics.

    Holds the module's buffers, not the module, which may hold the network that holds this.
    """

    def __init__(self, module: Any) -> None:
        self._buffers, self._check = module._buffers, weakref.WeakMethod(module._check_input_dim)
        self._momentum = module.momentum
        self._updates = module.training and module.track_running_stats
        self._reads = not module.training or module.track_running_stats

    @property
    def has_statistics(self) -> bool:
        """Whether it names some."""
        return self._reads and self._buffers["running_mean"] is not None

    def __call__(self, x: Tensor) -> tuple[Any, Any, float]:
        self.check(x)
        return self.counted()

    def check(self, x: Tensor) -> None:
        """Raise the module's error for an input of other dimensions."""
        self._check()(x)  # type: ignore[misc]

    def counted(self) -> tuple[Any, Any, float]:
        """The same for an input that was checked."""
        momentum = 0.0 if self._momentum is None else float(self._momentum)
        count = self._buffers["num_batches_tracked"]
        if self._updates and count is not None:
            count.add_(1)
            momentum = 1.0 / float(count) if self._momentum is None else momentum
        if not self._reads:
            return None, None, 0.0
        return self._buffers["running_mean"], self._buffers["running_var"], momentum


class InstanceNormState:
    """What nn.InstanceNorm does at a call besides normalising: check, name the running statistics."""

    def __init__(self, module: Any) -> None:
        self._buffers, self._check = module._buffers, weakref.WeakMethod(module._check_input_dim)
        self._momentum = 0.0 if module.momentum is None else float(module.momentum)
        self._channels, self._affine = module.num_features, module.affine
        self._unbatched = module._get_no_batch_dim()

    def __call__(self, x: Tensor) -> tuple[Any, Any, float]:
        self._check()(x)  # type: ignore[misc]
        dim = x.dim() - self._unbatched
        if x.size(dim) != self._channels:
            self._complain(dim, x.size(dim))
        return self._buffers["running_mean"], self._buffers["running_var"], self._momentum

    def _complain(self, dim: int, size: int) -> None:
        """The module's own error, or warning where the number is not used."""
        if self._affine:
            raise ValueError(
                f"expected input's size at dim={dim} to match num_features ({self._channels}), but got: {size}."
            )
        warnings.warn(
            f"input's size at dim={dim} does not match num_features. You can silence this warning by not passing in "
            "num_features, which is not used because affine=False",
            stacklevel=2,
        )


class SyncBatchNormState(BatchNormState):
    """The same for nn.SyncBatchNorm, which is batch norm as long as there is nobody to synchronise with."""

    def __init__(self, module: nn.SyncBatchNorm) -> None:
        super().__init__(module)
        self._training, self._group = module.training, module.process_group

    def counted(self) -> tuple[Any, Any, float]:
        if self._training and _n_processes(self._group) > 1:
            raise RuntimeError(
                "SyncBatchNorm: its statistics span processes, and PyTorch cannot differentiate its backward again, so "
                "a data gradient has no second derivative. Use BatchNorm (statistics of each process) or GroupNorm, or "
                "leave the module out of accelerate()."
            )
        return super().counted()


def _n_processes(group: Any) -> int:
    """How many processes a group has (None: all)."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size(group or distributed.group.WORLD)
