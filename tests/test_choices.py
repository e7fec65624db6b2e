"""Choices made at run time: once for each key, whoever asks; bounded; listed."""

from __future__ import annotations

import threading
import time

import pytest
from threads import run_threads

import datagrad_ext
from datagrad_ext import choices
from datagrad_ext.choices import Choice, Choices

PLAIN = Choice("anything", "plain")


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "_TABLES", [])


def test_a_choice_is_made_once_for_each_key() -> None:
    table, made = Choices("sums", PLAIN), []

    def choose(key: int) -> Choice:
        made.append(key)
        return Choice(f"row {key}", "fast", key)

    found = [table.find(key, lambda key=key: choose(key)).value for key in (1, 2, 1, 2, 1)]
    assert (found, made, len(table)) == ([1, 2, 1, 2, 1], [1, 2], 2)


def test_a_full_table_gives_the_plain_path_and_keeps_what_it_has() -> None:
    table = Choices("sums", PLAIN, limit=2)
    found = [table.find(key, lambda key=key: Choice("row", "fast", key)) for key in (1, 2, 3, 1)]
    assert [choice.value for choice in found] == [1, 2, None, 1]
    assert found[2] is PLAIN
    assert len(table) == 2


def test_what_cannot_be_chosen_now_is_chosen_later() -> None:
    table = Choices("sums", PLAIN)
    assert table.find(1, lambda: None) is PLAIN
    assert table.find(1, lambda: Choice("row", "fast")).path == "fast"


def test_an_error_leaves_no_choice() -> None:
    table = Choices("sums", PLAIN)
    with pytest.raises(ZeroDivisionError):
        table.find(1, lambda: Choice("row", "fast", 1 / 0))
    assert len(table) == 0
    assert table.find(1, lambda: Choice("row", "fast")).path == "fast"


def test_threads_that_ask_at_once_wait_for_one_choice() -> None:
    table, made = Choices("sums", PLAIN), []
    begin = threading.Barrier(8)
    found: list[Choice] = []

    def choose() -> Choice:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return Choice("row", "fast")

    def ask() -> None:
        begin.wait()
        found.append(table.find("key", choose))

    run_threads([ask] * 8)
    assert len(made) == 1
    assert len(found) == 8
    assert all(choice is found[0] for choice in found)


def test_backends_lists_what_was_chosen() -> None:
    table = Choices("sums", PLAIN)
    table.find(1, lambda: Choice("float32, 2 × 3", "library", note="1.0 ms, plain 2.0 ms"))
    table.find(2, lambda: Choice("float32, 4 × 3", "plain"))
    lines = str(datagrad_ext.backends()).splitlines()
    assert "chosen for sums: float32, 2 × 3: library (1.0 ms, plain 2.0 ms)" in lines
    assert lines[-1] == "chosen for sums: float32, 4 × 3: plain"
