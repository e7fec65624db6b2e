"""Which modules and functions become which normalisation."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from .normalisation import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from .registry import Application, function_rule, module_rule
from .running_statistics import BatchNormState, InstanceNormState, RunningNorm, SyncBatchNormState

_PARAMS = ("weight", "bias")
# Classes tell statistics from none; their values are read at each call.
_STATISTICS = ("eps", "momentum", "track_running_stats", "running_mean.__class__", "running_var.__class__")


def _given(owner: Any) -> tuple[bool, bool]:
    """Whether a module has a weight and a bias."""
    return owner.weight is not None, owner.bias is not None


@module_rule(nn.BatchNorm1d, config=_STATISTICS)
def _batch_norm_module(module: Any) -> Application:
    return _batch_norm_of(module, BatchNormState(module))


@module_rule(nn.SyncBatchNorm, config=(*_STATISTICS, "process_group"))
def _sync_batch_norm_module(module: nn.SyncBatchNorm) -> Application:
    return _batch_norm_of(module, SyncBatchNormState(module))


def _batch_norm_of(module: Any, state: BatchNormState) -> Application:
    """Batch norm by statistics of the batch in training, and where there are no others."""
    constants = (*_given(module), module.eps)
    by_batch = module.training or (module.running_mean is None and module.running_var is None)
    if by_batch:
        return Application(BatchNorm(*constants), params=_PARAMS, host=(state,))
    layer = RunningNorm(*constants, "BatchNorm (running)", folds=True)
    return Application(layer, params=_PARAMS, host=(state,))


@function_rule(F.batch_norm)
def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Application | None:
    if not isinstance(training, bool) or not _are_numbers(momentum, eps):
        return None
    constants = (weight is not None, bias is not None, eps)
    layer = BatchNorm(*constants) if training else RunningNorm(*constants, "BatchNorm (running)", folds=True)
    return Application(layer, (input,), (weight, bias), (running_mean, running_var, momentum))


@module_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, config=(*_STATISTICS, "num_features", "affine"))
def _instance_norm_module(module: Any) -> Application:
    constants = (*_given(module), module.eps)
    batched = module._get_no_batch_dim() + 1
    if module.training or not module.track_running_stats:
        layer: Any = InstanceNorm(*constants, batched)
    else:
        layer = RunningNorm(*constants, "InstanceNorm (running)", batched)
    return Application(layer, params=_PARAMS, host=(InstanceNormState(module),))


@function_rule(F.instance_norm)
def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Application | None:
    if not isinstance(use_input_stats, bool) or not _are_numbers(momentum, eps):
        return None
    constants = (weight is not None, bias is not None, eps)
    layer = InstanceNorm(*constants) if use_input_stats else RunningNorm(*constants, "InstanceNorm (running)")
    return Application(layer, (input,), (weight, bias), (running_mean, running_var, momentum))


@module_rule(nn.GroupNorm, config=("num_groups", "eps"))
def _group_norm_module(module: nn.GroupNorm) -> Application:
    return Application(GroupNorm(*_given(module), module.eps, module.num_groups), params=_PARAMS)


@function_rule(F.group_norm)
def _group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Application | None:
    if not _are_numbers(num_groups, eps):
        return None
    layer = GroupNorm(weight is not None, bias is not None, eps, num_groups)
    return Application(layer, (input,), (weight, bias))


@module_rule(nn.LayerNorm, config=("normalized_shape", "eps"))
def _layer_norm_module(module: nn.LayerNorm) -> Application:
    return Application(LayerNorm(*_given(module), module.eps, module.normalized_shape), params=_PARAMS)


@function_rule(F.layer_norm)
def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Application | None:
    if not isinstance(normalized_shape, (list, tuple)) or not _are_numbers(*normalized_shape, eps):
        return None
    layer = LayerNorm(weight is not None, bias is not None, eps, normalized_shape)
    return Application(layer, (input,), (weight, bias))


def _are_numbers(*values: Any) -> bool:
    """Whether the values are known when the network is traced."""
    return all(isinstance(value, (int, float)) for value in values)
