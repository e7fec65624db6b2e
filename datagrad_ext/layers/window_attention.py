"""Attention in shifted windows (torchvision's Swin transformer) in terms of linear layers, products and softmax.

Torchvision hides these functions from tracing, because how much is padded and shifted depends on the size of the image.
Here what depends on it is a host value. Letters: N batch, H, W positions, C channels, A heads, w window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .registry import as_one_call, expansion, traced_through

_SWIN = "torchvision.models.swin_transformer"
traced_through(f"{_SWIN}._patch_merging_pad", f"{_SWIN}._get_relative_position_bias")


@expansion(f"{_SWIN}.shifted_window_attention")
def _shifted_window_attention(
    input: Any,
    qkv_weight: Any,
    proj_weight: Any,
    relative_position_bias: Any,
    window_size: Sequence[int],
    num_heads: int,
    shift_size: Sequence[int],
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    qkv_bias: Any = None,
    proj_bias: Any = None,
    logit_scale: Any = None,
    training: bool = True,
) -> Any:
    if logit_scale is not None:
        return NotImplemented
    shape, window = input.shape, tuple(window_size)
    shifts = as_one_call(_shifts, shape, window, tuple(shift_size)) if any(shift_size) else None
    x = F.pad(input, as_one_call(_padding, shape, window))
    x = x if shifts is None else torch.roll(x, as_one_call(_negated, shifts), (1, 2))
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)  # (N H/w W/w, w w, C)

    heads = F.linear(x, qkv_weight, qkv_bias).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = heads[0], heads[1], heads[2]
    scores = torch.matmul(query * query.size(-1) ** -0.5, key.transpose(-2, -1)) + relative_position_bias
    if shifts is not None:
        mask = as_one_call(_mask, shape, window, shifts, input.dtype, input.device)
        scores = (scores.unflatten(0, (shape[0], -1)) + mask).flatten(0, 1)
    weights = F.dropout(torch.softmax(scores, -1), attention_dropout, training)
    x = torch.matmul(weights, value).transpose(1, 2).flatten(-2)
    x = F.dropout(F.linear(x, proj_weight, proj_bias), dropout, training)

    x = x.unflatten(1, window).unflatten(0, as_one_call(_grid, shape, window))
    x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    x = x if shifts is None else torch.roll(x, shifts, (1, 2))
    return x[:, : shape[1], : shape[2]]


def _grid(shape: torch.Size, window: tuple[int, int]) -> tuple[int, int, int]:
    """Samples, and windows down and across, of an image (N, H, W, C)."""
    return shape[0], -(-shape[1] // window[0]), -(-shape[2] // window[1])


def _padding(shape: torch.Size, window: tuple[int, int]) -> list[int]:
    """What F.pad adds to make whole windows."""
    return [0, 0, 0, -shape[2] % window[1], 0, -shape[1] % window[0]]


def _shifts(shape: torch.Size, window: tuple[int, int], shifts: tuple[int, int]) -> tuple[int, ...]:
    """The shifts down and across; none where one window covers the image."""
    return tuple(0 if shape[d + 1] <= window[d] else shifts[d] for d in range(2))


def _negated(shifts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-s for s in shifts)


def _mask(
    shape: torch.Size, window: tuple[int, int], shifts: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """−100 between positions that the shift brought into one window, else 0: (windows, 1, w w, w w)."""
    _, down, across = _grid(shape, window)
    rows, columns = (_region(n * w, w, s, device) for n, w, s in zip((down, across), window, shifts, strict=True))
    region = (3 * rows[:, None] + columns).unflatten(1, (across, window[1])).unflatten(0, (down, window[0]))
    region = region.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    apart = region[:, None, :] != region[:, :, None]
    return torch.where(apart, -100.0, 0.0).to(dtype)[:, None]


def _region(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """0 before the last window, 1 in it, 2 where the shift brought the start; all 0 without a shift."""
    places = torch.arange(size, device=device)
    if shift == 0:
        return torch.zeros_like(places)
    return (places >= size - window).long() + (places >= size - shift).long()
