"""What csrc/module.cpp binds."""

from typing import Any

isa: str | None
loaded: dict[str, str]
not_loaded: dict[str, str]

def build_info() -> dict[str, Any]: ...
