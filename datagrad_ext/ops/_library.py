"""The op namespace `datagrad`: how a kernel family declares an op, its PyTorch reference and its checks.

An op is a schema and a PyTorch function. The function is the definition: it runs on every device without a
native kernel, on meta and fake tensors, and is what the native kernels are tested against. A compiled kernel
registered for CPU or CUDA takes that op over on that device alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

NAMESPACE = "datagrad"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_DECLARED: list[str] = []
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Reference = TypeVar("Reference", bound=Callable[..., object])


def op(schema: str) -> Callable[[Reference], Reference]:
    """Declare `schema`; the decorated PyTorch function runs it on every backend without a kernel."""

    def register(reference: Reference) -> Reference:
        name = LIBRARY.define(schema)
        _DECLARED.append(name.removeprefix(f"{NAMESPACE}::"))
        LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        return reference

    return register


def op_names() -> list[str]:
    """The names of all ops declared so far, without the namespace, sorted."""
    return sorted(_DECLARED)


def is_native(name: str, device: str) -> bool:
    """Whether op `name` runs a compiled kernel on device type `device` ("cpu" or "cuda")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", device.upper())


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic runs in: float32 for the 16-bit formats, else `dtype` itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether results of an op on x are channels_last: what relu_gate and relu_reverse must be told."""
    return x.dim() in CHANNELS_LAST and not x.is_contiguous() and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])


def in_layout(t: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """t in channels_last, or in contiguous memory."""
    return t.contiguous(memory_format=CHANNELS_LAST[t.dim()] if channels_last else torch.contiguous_format)


def require(condition: bool, sentence: str) -> None:
    """Raise RuntimeError with `sentence` unless `condition` holds (the type native checks raise, too)."""
    if not condition:
        raise RuntimeError(sentence)


def require_floating(op_name: str, name: str, tensor: torch.Tensor) -> None:
    """`tensor` must be of one of the four floating dtypes."""
    require(
        tensor.dtype in FLOATING,
        f"{op_name}: {name} must be float32, float64, bfloat16 or float16, got {_text(tensor.dtype)}; convert it first",
    )


def require_alike(op_name: str, name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """`tensor` must have the dtype and device of `other`."""
    require(
        tensor.dtype == other.dtype,
        f"{op_name}: {name} must have {other_name}'s dtype {_text(other.dtype)}, got {_text(tensor.dtype)}",
    )
    require(
        tensor.device == other.device,
        f"{op_name}: {name} must be on {other_name}'s device {other.device}, got {tensor.device}",
    )


def require_shape(op_name: str, name: str, tensor: torch.Tensor, shape: Iterable[int]) -> None:
    """`tensor` must have exactly `shape`."""
    expected = tuple(shape)
    require(
        tuple(tensor.shape) == expected,
        f"{op_name}: {name} must have shape {list(expected)}, got {list(tensor.shape)}",
    )


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
