"""Interpolation and pixel shuffling: linear maps of images.

    interpolate      vjp  the backward of the same kernel, which is its transpose
    pixel shuffle    vjp  the inverse, pixel unshuffle, and the other way round

In each jvp is the map itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FLOAT32_ON_CUDA
from .linear_map import LinearMap
from .registry import Application, function_rule, module_rule

_aten = torch.ops.aten
_DIMS = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}


def _transposed_interpolate(
    g: Tensor, shape: torch.Size, size: Any, scale: Any, mode: str, align_corners: bool | None
) -> Tensor:
    """The transpose of F.interpolate: g (N, C, …) of the output's size to `shape`."""
    dims = len(shape) - 2
    if mode in _DIMS:
        backward, flags = getattr(_aten, f"upsample_{mode}{dims}d_backward"), [bool(align_corners)]
    else:
        kernel = "upsample_nearest" if mode == "nearest" else "_upsample_nearest_exact"
        backward, flags = getattr(_aten, f"{kernel}{dims}d_backward"), []
    scales = list(scale) if isinstance(scale, (tuple, list)) else [scale] * dims
    return backward.default(g.contiguous(), list(g.shape[2:]), list(shape), *flags, *scales)


_INTERPOLATE = LinearMap(
    "Interpolate", F.interpolate, _transposed_interpolate, follows_layout=True, autocast=FLOAT32_ON_CUDA
)


@module_rule(nn.Upsample, config=("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"))
def _upsample(m: nn.Upsample) -> Application | None:
    return _interpolate(None, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor)


@function_rule(F.interpolate)
def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Application | None:
    if recompute_scale_factor or antialias or mode not in {*_DIMS, "nearest", "nearest-exact"}:
        return None
    return Application(_INTERPOLATE, inputs=(input,), host=(size, scale_factor, mode, align_corners))


_SHUFFLE = LinearMap("PixelShuffle", F.pixel_shuffle, lambda g, shape, n: F.pixel_unshuffle(g, n))
_UNSHUFFLE = LinearMap("PixelUnshuffle", F.pixel_unshuffle, lambda g, shape, n: F.pixel_shuffle(g, n))


@module_rule(nn.PixelShuffle, config=("upscale_factor",))
def _shuffle_module(module: nn.PixelShuffle) -> Application:
    return Application(_SHUFFLE, host=(module.upscale_factor,))


@function_rule(F.pixel_shuffle)
def _shuffle(input: Any, upscale_factor: int) -> Application:
    return Application(_SHUFFLE, inputs=(input,), host=(upscale_factor,))


@module_rule(nn.PixelUnshuffle, config=("downscale_factor",))
def _unshuffle_module(module: nn.PixelUnshuffle) -> Application:
    return Application(_UNSHUFFLE, host=(module.downscale_factor,))


@function_rule(F.pixel_unshuffle)
def _unshuffle(input: Any, downscale_factor: int) -> Application:
    return Application(_UNSHUFFLE, inputs=(input,), host=(downscale_factor,))
