"""The choice of a plan for a fused convolution: what is tried and kept, and what a key holds. cuDNN is played."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from host_plans import install
from threads import run_threads
from torch import Tensor

import datagrad_ext
from datagrad_ext.choices import Choice, Choices
from datagrad_ext.layers import fused_passes
from datagrad_ext.layers.fused_passes import Call, Cudnn

NUMBERS = ((2, 2), (1, 1), (1, 1), False, (0, 0), 1)
X, W, Y = (3, 4, 6, 6), (5, 4, 4, 4), (3, 5, 3, 3)


@dataclass
class Played(Cudnn):
    """Plans with an answer and a time each; ATen takes 2 seconds."""

    plans: dict[int, tuple[Callable[[Tensor], Tensor], float]]
    relu: list[int] = field(default_factory=list)
    select: list[int] = field(default_factory=list)
    settings: tuple[bool, bool] = (False, False)
    capturing: bool = False
    closed: list[int] = field(default_factory=list)
    searches: int = 0
    running: int | None = None

    def covers(self, a: Tensor) -> bool:
        return a.dim() == 4

    def flags(self, dtype: torch.dtype) -> tuple[bool, bool]:
        return self.settings

    def may_choose(self) -> bool:
        self.searches += not self.capturing
        return not self.capturing

    def open(self, call: Call, flags: tuple[bool, bool], select: bool) -> list[int]:
        found = self.select if select else self.relu
        if not found:
            raise RuntimeError("cuDNN, looking for plans: none\nwith more lines")
        return found

    def close(self, call: Call, plan: int) -> None:
        self.closed.append(plan)

    def seconds(self, run: Callable[[], Any], device: torch.device) -> float:
        self.running = None
        run()
        return 2.0 if self.running is None else self.plans[self.running][1]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Played], Choices]:
    """Installs the plans: an op gives what its plan answers."""

    def start(played: Played) -> Choices:
        def at(self: Call, operands: Any, plan: int) -> Tensor:
            played.running = plan
            return played.plans[plan][0](self.right(operands))

        monkeypatch.setattr(Call, "at", at)
        return install(monkeypatch, played)

    return start


def right(y: Tensor) -> Tensor:
    return y


def wrong(y: Tensor) -> Tensor:
    return 1.01 * y


def broken(y: Tensor) -> Tensor:
    raise RuntimeError("an error of the device\nat some line")


def forward(dtype: torch.dtype = torch.float32, **other: Any) -> Tensor | None:
    given = dict(x=torch.ones(X, dtype=dtype), weight=torch.ones(W, dtype=dtype), bias=None, numbers=NUMBERS, slope=0.0)
    return fused_passes.forward(**(given | other))


def test_the_fastest_right_plan_is_kept_and_the_others_are_closed(play: Callable) -> None:
    played = Played({1: (right, 1.5), 2: (right, 0.5), 3: (right, 1.0)}, relu=[1, 2, 3], select=[9])
    table = play(played)
    for _ in range(3):
        y = forward()
        assert y is not None
        assert y.shape == Y
    (choice,) = table
    assert (choice.path, choice.value, sorted(played.closed), played.searches) == ("cuDNN (relu)", 2, [1, 3], 1)
    assert choice.note == "500.000 ms, ATen 2000.000 ms"
    sizes = "forward 3×4×6×6 by 5×4×4×4, stride (2, 2), padding (1, 1), dilation (1, 1), slope 0, float32"
    assert str(choice).startswith(sizes)


def test_a_wrong_plan_is_refused_for_good_and_named(play: Callable) -> None:
    played = Played({1: (wrong, 0.5), 2: (right, 1.0)}, relu=[1, 2])
    table = play(played)
    for _ in range(2):
        forward()
    (choice,) = table
    assert (choice.value, played.closed, played.searches) == (2, [1], 1)
    assert "relu: a plan is refused, it is 1.0e-02 from float64" in choice.note
    assert f"chosen for convolution with rectifier: {choice}" in str(datagrad_ext.backends()).splitlines()


def test_without_a_right_plan_aten_runs(play: Callable) -> None:
    played = Played({1: (wrong, 0.5), 2: (wrong, 0.6)}, relu=[1], select=[2])
    table = play(played)
    assert forward() is None
    assert forward() is None
    (choice,) = table
    assert (choice.path, choice.value, played.closed, played.searches) == ("ATen", None, [1, 2], 1)
    assert choice.note.count("refused") == 2


def test_a_selection_is_tried_where_a_plan_by_modes_is_refused(play: Callable) -> None:
    table = play(Played({1: (wrong, 0.5), 2: (right, 0.6)}, relu=[1], select=[2]))
    assert forward() is not None
    assert [(choice.path, choice.value) for choice in table] == [("cuDNN (select)", 2)]


def test_a_plan_that_saves_too_little_is_not_taken(play: Callable) -> None:
    table = play(Played({1: (right, 1.96), 2: (right, 0.5)}, relu=[1], select=[2]))
    assert forward() is None
    (choice,) = table
    assert choice.note == "2000.000 ms; relu: 1960.000 ms"


def test_a_plan_that_fails_is_not_taken(play: Callable) -> None:
    table = play(Played({1: (broken, 0.5), 2: (right, 1.0)}, relu=[1, 2]))
    assert forward() is not None
    (choice,) = table
    assert choice.value == 2
    assert "relu: an error of the device" in choice.note
    assert "some line" not in choice.note


def test_without_memory_for_a_comparison_aten_runs(play: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    table = play(Played({}))

    def examples(call: Call) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fused_passes, "examples", examples)
    assert forward() is None
    assert [choice.note for choice in table] == ["no memory for a comparison"]


def test_what_aten_refuses_is_left_to_it(play: Callable) -> None:
    """The plain passes raise PyTorch's own error."""
    table = play(Played({1: (right, 0.5)}, relu=[1]))
    assert forward(weight=torch.ones(5, 3, 4, 4)) is None
    assert forward(weight=torch.ones(W).double()) is None
    assert forward(bias=torch.ones(4)) is None
    assert len(table) == 0


def test_nothing_is_chosen_while_a_graph_records(play: Callable) -> None:
    """A new key takes ATen and stays new; a known one keeps its plan."""
    played = Played({1: (right, 0.5)}, relu=[1])
    table = play(played)
    assert forward() is not None
    played.capturing = True
    assert forward() is not None
    assert forward(slope=0.2) is None
    assert len(table) == 1
    played.capturing = False
    assert forward(slope=0.2) is not None
    assert len(table) == 2


def test_a_full_table_takes_aten(play: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    play(Played({1: (right, 0.5)}, relu=[1]))
    monkeypatch.setattr(fused_passes, "CHOICES", Choices("convolution", Choice("any other", "ATen"), limit=1))
    assert forward() is not None
    assert forward(slope=0.2) is None
    assert forward() is not None
    assert len(fused_passes.CHOICES) == 1


def _last(*shape: int) -> Tensor:
    return torch.ones(shape).contiguous(memory_format=torch.channels_last)


OTHERS: dict[str, dict[str, Any]] = {
    "slope": dict(slope=0.2),
    "bias": dict(bias=torch.ones(5)),
    "batch": dict(x=torch.ones(4, 4, 6, 6)),
    "image": dict(x=torch.ones(3, 4, 8, 6)),
    "kernel": dict(weight=torch.ones(5, 4, 3, 4)),
    "channels": dict(weight=torch.ones(6, 4, 4, 4)),
    "layout": dict(x=_last(*X)),
    "layout of the weight": dict(weight=_last(*W)),
    "stride": dict(numbers=((1, 2), *NUMBERS[1:])),
    "padding": dict(numbers=(NUMBERS[0], (1, 2), *NUMBERS[2:])),
    "dilation": dict(numbers=(*NUMBERS[:2], (1, 2), *NUMBERS[3:])),
    "dtype": dict(x=torch.ones(X).bfloat16(), weight=torch.ones(W).bfloat16()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_key_holds_what_a_plan_depends_on(name: str, play: Callable) -> None:
    table = play(Played({1: (right, 0.5)}, relu=[1]))
    for expected, other in ((1, {}), (2, OTHERS[name]), (2, OTHERS[name]), (2, {})):
        forward(**other)
        assert len(table) == expected


def test_a_key_holds_the_sweep_the_sums_and_the_settings(play: Callable) -> None:
    played = Played({1: (right, 0.5)}, relu=[1])
    table = play(played)
    same, weight = torch.ones(2, 4, 5, 5), torch.ones(4, 4, 3, 3)
    numbers = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    for expected in (4, 8, 12):
        fused_passes.forward(same, weight, None, numbers, 0.0)
        fused_passes.jvp(same, weight, same, numbers, 0.0)
        fused_passes.vjp(same, weight, same, numbers, 0.0)
        fused_passes.vjp(same, weight, same, numbers, 0.0, True)
        assert len(table) == expected
        played.settings = (expected == 4, expected == 8)


def test_threads_share_a_choice(play: Callable) -> None:
    played = Played({1: (right, 0.5)}, relu=[1])
    play(played)
    begin, found = threading.Barrier(4), []

    def run() -> None:
        begin.wait()
        found.append(forward())

    run_threads([run] * 4)
    assert played.searches == 1
    assert [y is not None for y in found] == [True] * 4


def test_flags_are_those_of_pytorch() -> None:
    cudnn = Cudnn()
    settings = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    deterministic = torch.backends.cudnn.deterministic
    try:
        for tf32 in (True, False):
            torch.backends.cudnn.allow_tf32 = tf32
            assert cudnn.flags(torch.float32)[0] is tf32
            assert cudnn.flags(torch.bfloat16)[0] is False
        for asked, own, expected in ((True, False, True), (False, True, True), (False, False, False)):
            torch.use_deterministic_algorithms(asked, warn_only=True)
            torch.backends.cudnn.deterministic = own
            assert cudnn.flags(torch.float32)[1] is expected
    finally:
        torch.backends.cudnn.allow_tf32 = settings[0]
        torch.use_deterministic_algorithms(settings[1], warn_only=True)
        torch.backends.cudnn.deterministic = deterministic


def test_torch_still_has_what_timing_needs() -> None:
    """A pause on the device is private to torch; the day it changes, plans must be timed otherwise."""
    assert callable(torch.cuda._sleep)
    assert callable(torch.cuda.is_current_stream_capturing)


def test_nothing_is_fused_on_the_cpu_by_itself() -> None:
    assert forward() is None
    assert len(list(fused_passes.CHOICES)) == 0 or torch.cuda.is_available()
