"""Choices that are made at run time: which of several paths that compute the same a call takes, and why.

A family of calls has one table. A key says all that a choice may depend on (what is computed, device, dtype, shapes,
strides, flags); its choice is made once, at the first call, and kept for good: what was refused is not tried again.
Tables are bounded and hold nothing of a user's tensors. `backends()` lists them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

LIMIT = 1024


@dataclass(frozen=True)
class Choice:
    """What a key takes: `path` for the reader, `value` for the code that runs it; the note says why."""

    what: str
    path: str
    value: Any = None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.path}" + (f" ({self.note})" if self.note else "")


class Choices:
    """key -> Choice of one family. Any thread may ask; the first to ask chooses, and others wait for it.

    Nothing is thrown out, because a CUDA graph may have recorded what was chosen: a full table gives `otherwise` to
    every new key.
    """

    def __init__(self, family: str, otherwise: Choice, limit: int = LIMIT) -> None:
        self.family, self._otherwise, self._limit = family, otherwise, limit
        self._made: dict[Hashable, Choice] = {}
        self._lock = threading.RLock()
        _TABLES.append(self)

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Choice]:
        return iter(list(self._made.values()))

    def find(self, key: Hashable, choose: Callable[[], Choice | None]) -> Choice:
        """The choice of the key. `choose` makes it, or returns None where it cannot be made now."""
        found = self._made.get(key)
        return self._new(key, choose) if found is None else found

    def _new(self, key: Hashable, choose: Callable[[], Choice | None]) -> Choice:
        with self._lock:
            found = self._made.get(key)
            if found is None and len(self._made) < self._limit:
                found = choose()
                if found is not None:
                    self._made[key] = found
            return self._otherwise if found is None else found


_TABLES: list[Choices] = []


def listing() -> list[str]:
    """A line for each choice made so far, by family."""
    return [f"chosen for {table.family}: {choice}" for table in _TABLES for choice in table]


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call on the device, in the fastest of three series; the launches queue up behind a pause."""
    calls, found = 8, []
    run()
    with torch.cuda.device(device):
        for _ in range(3):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)
            start.record()
            for _ in range(calls):
                run()
            stop.record()
            stop.synchronize()
            found.append(start.elapsed_time(stop) / 1000 / calls)
    return min(found)
