"""When only plain PyTorch may run: what an autograd Function around a raw op cannot see or serve.

Tracing (torch.compile, export), torch.func transforms, forward-mode tangents and autocast act on ordinary
operations. A Function over the project's ops would be dropped, refused or computed in another dtype there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_plain(*tensors: Tensor) -> bool:
    """Whether an expression of `tensors` must be written in plain PyTorch here and now."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_any_autocast_enabled()
        or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )
