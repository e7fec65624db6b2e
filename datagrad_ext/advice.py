"""What to do about an input that does not fit: the sentence for an error of the fast path's forward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def advice(inputs: Sequence[Tensor], params: Sequence[Tensor]) -> str | None:
    """What came, what fits, and what to do, if it is to be seen from the tensors alone."""
    x = next((t for t in inputs if t.requires_grad), None)
    theta = [p for p in params if p.is_floating_point() or p.is_complex()]
    if x is None:
        return None
    if x.is_nested:
        return "the input is a nested tensor, and the layers take plain ones. Pad it (x.to_padded_tensor(0.0))."
    other = next((p for p in theta if p.device != x.device), None)
    if other is not None:
        return f"the input is on {x.device}, a parameter on {other.device}. Move one: x.to(device) or model.to(device)."
    other = next((p for p in theta if p.dtype != x.dtype), None)
    if other is not None:
        return (
            f"the input is {x.dtype}, a parameter {other.dtype}. Convert one, x.to(dtype) or model.to(dtype), or run "
            "the model under torch.autocast."
        )
    if x.dim() == 0:
        return "the input is a number without dimensions. Give it the batch dimension (x.reshape(1, -1))."
    return None
