"""What the tests of every kernel family ask alike."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import datagrad_ext
from datagrad_ext._native import direct
from datagrad_ext.ops import chain, is_native


def assert_native(name: str, device: str) -> None:
    """Op `name` runs a compiled kernel on `device`; skipped where kernels were not built and need not be."""
    libraries = {d.name.lower(): d.library for d in datagrad_ext.backends().devices}
    if not libraries[device] and os.environ.get("DATAGRAD_REQUIRE_NATIVE") != "1":
        pytest.skip(f"built without compiled kernels for {device}")
    assert is_native(name, device), f"{name} has no compiled kernel for {device}; rebuild the package"


def directly(name: str) -> Callable[..., list[Tensor]]:
    """The op called past torch's dispatcher (`test_direct.py`), which takes arguments by position alone."""
    names = [argument.name for argument in getattr(torch.ops.datagrad, name).default._schema.arguments]
    call = torch.no_grad()(direct(name))
    return lambda *values, **named: call(*values, *[named[each] for each in names[len(values) :]])


def same_layout(actual: Tensor, expected: Tensor) -> None:
    """Equal shape, dtype and, where there is a choice, strides."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    for size, stride, wanted in zip(actual.shape, actual.stride(), expected.stride(), strict=True):
        assert size <= 1 or expected.numel() == 0 or stride == wanted, (actual.stride(), expected.stride())


def chain_parameters(links: str, widths: Sequence[int], random: Callable[..., Tensor]) -> tuple[list[Tensor], int]:
    """Parameters of a chain whose linear layers have these widths, the input's first, and the width of y."""
    rest, params, width = iter(widths[1:]), [], widths[0]
    for link in chain.parse(links):
        if link.weight is not None:
            before, width = width, next(rest)
            params.append(random(width, before) / math.sqrt(before))
        if link.bias is not None:
            params.append(random(width) / 4)
    return params, width
