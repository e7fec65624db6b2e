"""torch.nn's transformer encoder in terms of attention, linear layers and normalisation."""

from __future__ import annotations

from typing import Any

from torch import nn

from .registry import Expansion, module_rule


@module_rule(nn.TransformerEncoderLayer, config=("norm_first", "activation"))
def _layer(m: nn.TransformerEncoderLayer) -> Expansion:
    def call(src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False) -> Any:
        if is_causal:
            return NotImplemented
        if m.norm_first:
            x = src + m._sa_block(m.norm1(src), src_mask, src_key_padding_mask)
            return x + m._ff_block(m.norm2(x))
        x = m.norm1(src + m._sa_block(src, src_mask, src_key_padding_mask))
        return m.norm2(x + m._ff_block(x))

    return Expansion(call)


@module_rule(nn.TransformerEncoder)
def _encoder(m: nn.TransformerEncoder) -> Expansion | None:
    if any(type(layer).forward is not nn.TransformerEncoderLayer.forward for layer in m.layers):
        return None

    def call(src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Any:
        if is_causal:
            return NotImplemented
        for layer in m.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if m.norm is None else m.norm(src)

    return Expansion(call)
