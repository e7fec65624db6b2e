"""What to do about an input that does not fit: the sentence for an error of the fast path's forward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_FROM_TENSORS = (RuntimeError, NotImplementedError, IndexError)  # not their subclasses: out of memory, a user's own


def advice(error: Exception, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> str | None:
    """What came, what fits, and what to do, if the tensors and the error's text agree on it."""
    x = next((t for t in inputs if t.requires_grad), None)
    if x is None or type(error) not in _FROM_TENSORS:
        return None
    theta = [p for p in params if p.is_floating_point() or p.is_complex()]
    said = str(error)
    if x.is_nested:
        return "the input is a nested tensor, and the layers take plain ones. Pad it (x.to_padded_tensor(0.0))."
    other = next((p for p in theta if p.device != x.device), None)
    if other is not None and "device" in said:
        return f"the input is on {x.device}, a parameter on {other.device}. Move one: x.to(device) or model.to(device)."
    other = next((p for p in theta if p.dtype != x.dtype), None)
    if other is not None and "type" in said:
        return (
            f"the input is {x.dtype}, a parameter {other.dtype}. Convert one, x.to(dtype) or model.to(dtype), or run "
            "the model under torch.autocast."
        )
    if x.dim() == 0:
        return "the input is a number without dimensions. Give it the batch dimension (x.reshape(1, -1))."
    return None
