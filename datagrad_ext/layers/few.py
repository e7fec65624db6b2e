"""Where the project's own convolution products replace the vendor library's, on the CPU.

oneDNN reorders the weight at every call, and a weight gradient back. With few output pixels that is most of the work;
own products (`ops/convolution.py`) read the weight as it lies. In small convolutions it is the start of a product, and
in those with a rectifier behind them, which own products take in, the passes that this saves. Its gradient of a strided
convolution's input is slow where there are few input channels, as in the first layer. Kernels of 3×3, and of 4×4 with
stride 2, have fewer products in minimal filtering (`csrc/cpu/winograd_convolution.h`, whose limits are these).
"""

from __future__ import annotations

import functools
import math
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..ops import is_native

_FEW_CHANNELS = 4
_FEW_PRODUCTS, _FEW_PRODUCTS_RECTIFIED = 1 << 25, 1 << 27
_FILTERED = (((3, 3), (1, 1)), ((4, 4), (2, 2)))  # kernel and stride
_CHANNELS, _LEAST_TILES, _IMAGE = 16, 32, 1 << 18


class Few(Enum):
    """PIXELS: own products throughout. CHANNELS: only x̄ where w̄ is not wanted with it."""

    PIXELS = 1
    CHANNELS = 2


@functools.cache
def _has_kernels() -> bool:
    return is_native("convolution_forward", "cpu")


def few_of(x: Tensor, weight: Tensor, numbers: Any, rectified: bool) -> Few | None:
    """Which own products the two-dimensional convolution of x (N, C, H, W) is for; None: the vendor's are faster.

    `numbers` are those that aten::convolution takes, as tuples; `rectified`: with a rectifier in one op.
    """
    stride, padding, dilation, transposed, _, groups = numbers
    if transposed or groups != 1 or x.device.type != "cpu" or weight.dtype != x.dtype or not _has_kernels():
        return None
    if x.dtype not in (torch.float32, torch.float64):
        return None
    limit = _FEW_PRODUCTS_RECTIFIED if rectified else _FEW_PRODUCTS
    return _few_of_shapes(x.shape, weight.shape, stride, padding, dilation, limit)


@functools.lru_cache(maxsize=4096)
def _few_of_shapes(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    limit: int,
) -> Few | None:
    if len(shape) != 4 or len(weight_shape) != 4 or 0 in shape or 0 in weight_shape or shape[1] != weight_shape[1]:
        return None
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1:
        return None
    sides = [
        max(0, n + 2 * p - d * (k - 1) - 1 + s) // s
        for n, k, s, p, d in zip(shape[2:], weight_shape[2:], stride, padding, dilation, strict=True)
    ]
    pixels = shape[0] * math.prod(sides)
    if not pixels:
        return None
    out_channels, channels, *kernel = weight_shape
    is_small = math.prod(weight_shape) * pixels <= limit and max(*kernel, *stride) > 1
    if pixels <= out_channels or is_small:
        return Few.PIXELS
    padded = math.prod(n + 2 * p + 4 for n, p in zip(shape[2:], padding, strict=True))
    if (
        (tuple(kernel), tuple(stride)) in _FILTERED
        and max(dilation) == 1
        and channels % _CHANNELS == out_channels % _CHANNELS == 0
        and shape[0] * math.prod((n + 1) // 2 for n in sides) >= _LEAST_TILES
        and padded * max(channels, out_channels) <= _IMAGE
    ):
        return Few.PIXELS
    return Few.CHANNELS if channels <= _FEW_CHANNELS and max(stride) > 1 else None
