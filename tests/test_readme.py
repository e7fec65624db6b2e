"""README and docs are true: their Python blocks run, in order, one session a page; make commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md") if "```python" in page.read_text()),
]


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of the page in these languages."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    found = blocks(page, "python")
    assert found
    for number, block in enumerate(found, start=1):
        exec(compile(block, f"{page}, Python block {number}", "exec"), session)


def test_make_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\s*make ([a-z]+)", "\n".join(blocks("README.md", "bash", "sh", "console")), re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets
