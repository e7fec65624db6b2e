"""Where the project's own convolution products replace the vendor library's, on the CPU.

oneDNN reorders the weight at every call, and a weight gradient back. With few output pixels that is most of the work;
own products (`ops/convolution.py`) read the weight as it lies. Its gradient of a strided convolution's input is slow
where there are few input channels, as in the first layer.
"""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..ops import is_native

_FEW_CHANNELS = 4


class Few(Enum):
    """PIXELS: own products throughout. CHANNELS: only x̄ where w̄ is not wanted with it."""

    PIXELS = 1
    CHANNELS = 2


@functools.cache
def _has_kernels() -> bool:
    return is_native("convolution_forward", "cpu")


def few_of(x: Tensor, weight: Tensor, numbers: Any) -> Few | None:
    """Which own products the two-dimensional convolution of x (N, C, H, W) is for; None: the vendor's are faster.

    `numbers` are those that aten::convolution takes.
    """
    stride, padding, dilation, transposed, _, groups = numbers
    if not _has_kernels() or transposed or groups != 1 or x.device.type != "cpu" or weight.dtype != x.dtype:
        return None
    if x.dtype not in (torch.float32, torch.float64) or x.dim() != 4 or weight.dim() != 4:
        return None
    (batch, channels, *size), (out_channels, expected, *kernel) = x.shape, weight.shape
    pixels = batch
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        free = n + 2 * p - d * (k - 1) - 1
        if free < 0 or k == 0 or s <= 0:
            return None
        pixels *= free // s + 1
    if channels != expected or not channels or not out_channels or not pixels or min(padding) < 0 or min(dilation) < 1:
        return None
    if pixels <= out_channels:
        return Few.PIXELS
    return Few.CHANNELS if channels <= _FEW_CHANNELS and max(stride) > 1 else None
