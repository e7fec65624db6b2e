"""Attention in terms of products and softmax: y = softmax(q kᵀ / √E + mask) v, over any leading dimensions.

scaled_dot_product_attention by its formula (without grouped queries), and nn.MultiheadAttention with one
embedding size and no extra keys. Letters: N batch, L queries, S keys, H heads, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .masking import with_mask
from .registry import Expansion, as_one_call, expansion, module_rule
from .softmax import safe_softmax


@expansion(F.scaled_dot_product_attention)
def _scaled_dot_product(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa or (is_causal and attn_mask is not None):
        return NotImplemented
    scale = query.size(-1) ** -0.5 if scale is None else scale
    weights = _weights(query * scale, key, attn_mask, is_causal)
    return torch.matmul(F.dropout(weights, dropout_p) if dropout_p else weights, value)


def _weights(query: Any, key: Any, mask: Any, is_causal: bool) -> Any:
    """The weights of attention (…, L, S) from scaled queries (…, L, E) and keys (…, S, E)."""
    scores = torch.matmul(query, key.transpose(-2, -1))
    if is_causal:
        mask = scores.new_ones((scores.size(-2), scores.size(-1))).tril().bool()
    if mask is None:
        return torch.softmax(scores, -1)
    return as_one_call(safe_softmax, as_one_call(with_mask, scores, mask), -1)


@module_rule(
    nn.MultiheadAttention,
    config=("num_heads", "head_dim", "batch_first", "dropout", "add_zero_attn", "_qkv_same_embed_dim"),
)
def _module(m: nn.MultiheadAttention) -> Expansion | None:
    if not m._qkv_same_embed_dim or m.bias_k is not None or m.add_zero_attn:
        return None

    def call(
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        if is_causal:
            return NotImplemented
        return _multihead(m, (query, key, value), (attn_mask, key_padding_mask), need_weights, average_attn_weights)

    return Expansion(call)


def _multihead(m: Any, sources: tuple, masks: tuple, need_weights: bool, average: bool) -> tuple[Any, Any]:
    """(output, weights or None) of nn.MultiheadAttention. Heads (…, H, L, E / H), without N if the call has none."""
    query, key, value = [_to_heads(x, m) for x in _projected(m, *sources)]
    scores = torch.matmul(query * m.head_dim**-0.5, key.transpose(-2, -1))
    if all(mask is None for mask in masks):
        weights = torch.softmax(scores, -1)
    else:
        scores = scores + as_one_call(_as_bias, scores.shape, scores.dtype, *masks)
        # PyTorch's path without weights gives 0, and not NaN, to a query that sees nothing
        weights = torch.softmax(scores, -1) if need_weights else as_one_call(safe_softmax, scores, -1)
    weights = F.dropout(weights, m.dropout, m.training)
    mixed = torch.matmul(weights, value).movedim(-2, 0).flatten(-2)
    output = F.linear(mixed, m.out_proj.weight, m.out_proj.bias)
    if m.batch_first:
        output = output.movedim(0, -2)  # in memory (L, N, E), as PyTorch's: a dropout behind it draws in this order
    if not need_weights:
        return output, None
    return output, weights.mean(-3) if average else weights


def _as_bias(shape: torch.Size, dtype: torch.dtype, mask: Tensor | None, padding: Tensor | None) -> Tensor:
    """What masks of nn.MultiheadAttention add to scores (…, H, L, S): mask (L, S) or (N H, L, S), padding (…, S).

    Floats are added; bools are −∞ where they are set.
    """
    terms = []
    if mask is not None:
        terms.append(mask if mask.dim() == 2 else mask.view(shape))
    if padding is not None:
        terms.append(padding[..., None, None, :])
    return sum(_infinite(t, dtype) if t.dtype == torch.bool else t.to(dtype) for t in terms)  # type: ignore[return-value]


def _infinite(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _projected(m: Any, query: Any, key: Any, value: Any) -> tuple[Any, ...]:
    """Queries, keys and values: one product where they come from one tensor."""
    weight, bias = m.in_proj_weight, m.in_proj_bias
    if query is key and key is value:
        together = F.linear(query, weight, bias).chunk(3, -1)
        return together[0], together[1], together[2]
    parts = []
    for i, x in enumerate((query, key, value)):
        rows = slice(i * m.embed_dim, (i + 1) * m.embed_dim)
        parts.append(F.linear(x, weight[rows], None if bias is None else bias[rows]))
    return tuple(parts)


def _to_heads(x: Any, m: Any) -> Any:
    x = x.unflatten(-1, (m.num_heads, m.head_dim))
    return x.transpose(-3, -2) if m.batch_first else x.movedim(0, -2)
