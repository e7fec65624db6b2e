"""How far accelerated gradients may be from PyTorch's: the settings and tolerances of `check`, and its table.

float64: a relative error of at most 1e-9 from PyTorch's float64 gradients. float32: from those same float64
gradients, at most three times the error of PyTorch's own float32 gradients, or at most 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datagrad_ext._format import format_table
from datagrad_ext.cli.gradients import relative_error, total_norm
from datagrad_ext.cli.probe import Answer

TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 1e-4
FLOAT32_FACTOR = 3.0


@dataclass(frozen=True)
class Setting:
    """One of the four ways in which a model is compared."""

    dtype: torch.dtype
    training: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {'train' if self.training else 'eval'}"


SETTINGS = tuple(
    Setting(dtype, training) for dtype in (torch.float64, torch.float32) for training in (True, False)
)


@dataclass(frozen=True)
class Row:
    """Errors of one gradient or buffer from the float64 reference: accelerated, and PyTorch's own."""

    name: str
    accelerated: float
    pytorch: float
    tolerance: float

    @property
    def equal(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.accelerated <= self.tolerance


@dataclass(frozen=True)
class Outcome:
    """What one probe gave in one setting: a row a gradient or buffer, or how the accelerated model failed."""

    setting: Setting
    probe: str
    rows: list[Row]
    failure: str = ""

    def differences(self) -> list[str]:
        """A line for everything outside its tolerance."""
        place = f"{self.setting}, {self.probe}"
        if self.failure:
            return [f"{place}: only the accelerated model fails: {self.failure}"]
        return [
            f"{place}, {row.name}: error {row.accelerated:.1e}, allowed {row.tolerance:.1e}"
            for row in self.rows
            if not row.equal
        ]


def judge(accelerated: Answer, pytorch: Answer, reference: Answer, dtype: torch.dtype) -> list[Row]:
    """One row for each gradient and each buffer; `reference` is PyTorch's answer in float64."""
    floor = total_norm(reference.gradients) * torch.finfo(dtype).eps ** (1 / 3)
    return [
        *_rows(accelerated.gradients, pytorch.gradients, reference.gradients, dtype, floor),
        *_rows(accelerated.buffers, pytorch.buffers, reference.buffers, dtype, 0.0),
    ]


def _rows(
    accelerated: Mapping[str, Tensor | None],
    pytorch: Mapping[str, Tensor | None],
    reference: Mapping[str, Tensor | None],
    dtype: torch.dtype,
    floor: float,
) -> list[Row]:
    rows = []
    for name in dict.fromkeys([*reference, *accelerated]):
        found, expected = accelerated.get(name), reference.get(name)
        if found is None and expected is None:
            continue
        own = relative_error(pytorch.get(name), expected, floor)
        tolerance = TOLERANCE if dtype == torch.float64 else max(FLOAT32_TOLERANCE, FLOAT32_FACTOR * own)
        rows.append(Row(name, relative_error(found, expected, floor), own, tolerance))
    return rows


def error_table(outcomes: Sequence[Outcome]) -> str:
    """A row a gradient or buffer: its largest error in each setting, PyTorch's own in brackets."""
    names = dict.fromkeys(row.name for outcome in outcomes for row in outcome.rows)
    rows = [[name, *(_cell(name, setting, outcomes) for setting in SETTINGS)] for name in names]
    header = [f"{s} (PyTorch)" if s.dtype == torch.float32 else str(s) for s in SETTINGS]
    return format_table(["relative error", *header], rows)


def _cell(name: str, setting: Setting, outcomes: Sequence[Outcome]) -> str:
    rows = [row for o in outcomes if o.setting == setting for row in o.rows if row.name == name]
    if not rows:
        return "failed"
    largest, own = max(row.accelerated for row in rows), max(row.pytorch for row in rows)
    mark = "" if all(row.equal for row in rows) else "! "
    return f"{mark}{largest:.1e}" + (f" ({own:.1e})" if setting.dtype == torch.float32 else "")
