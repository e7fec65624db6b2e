"""Plans of fused convolutions without a GPU: the references of the ops, in the place of cuDNN."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datagrad_ext.choices import Choice, Choices
from datagrad_ext.fusion import convolution_chains
from datagrad_ext.layers import fused_passes
from datagrad_ext.layers.fused_passes import Call, Cudnn
from datagrad_ext.layers.image_chain import ImageChain


class HostPlans(Cudnn):
    """One plan for each call that it `takes`, faster than ATen: the op's reference on the CPU."""

    def __init__(self, takes: Callable[[Call], bool] = lambda call: True) -> None:
        self.takes, self.taken, self._local = takes, [], threading.local()

    def covers(self, a: Tensor) -> bool:
        return a.dim() == 4 and a.numel() > 0

    def flags(self, dtype: torch.dtype) -> tuple[bool, bool]:
        return False, False

    def may_choose(self) -> bool:
        self._local.seconds = 2.0  # what is timed first is ATen
        return True

    def open(self, call: Call, flags: tuple[bool, bool], select: bool) -> list[int]:
        if not self.takes(call):
            raise RuntimeError("no plan")
        self.taken.append(call)
        self._local.seconds = 1.0
        return [len(self.taken)]

    def close(self, call: Call, plan: int) -> None:
        raise AssertionError("the only plan is kept")

    def seconds(self, run: Callable[[], Any], device: torch.device) -> float:
        run()
        return self._local.seconds


def install(patch: pytest.MonkeyPatch, planner: Cudnn) -> Choices:
    """Let convolutions be collected and take their plans from `planner`; the table that is filled.

    The host is in a GPU's place, where no input is one of an image chain.
    """
    patch.setattr(ImageChain, "covers", lambda *_: False)
    patch.setattr(convolution_chains, "_has_plans", lambda: True)
    patch.setattr(fused_passes, "planner", planner)
    table = Choices("convolution with rectifier", Choice("any other", "ATen"))
    patch.setattr(fused_passes, "CHOICES", table)
    return table
