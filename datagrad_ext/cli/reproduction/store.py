"""Results as JSON lines: a header (settings, data, device, versions), then a record a run, as soon as it is there.

A line that an interrupt cut short is dropped when the file is opened again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datagrad_ext.cli.errors import UserError

START = b'{"comparison": {'


class Store:
    """The records of one comparison, in a file.

    Raises:
        UserError: the file cannot be read or written, is not of this kind, or holds another comparison.
    """

    def __init__(self, path: Path, comparison: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        lines = _complete_lines(path)
        if not lines:
            self.header: dict[str, Any] = {"comparison": dict(comparison), "environment": dict(environment)}
            self._write(self.header)
            return
        self.header = lines[0]
        _check_same(path, self.header["comparison"], comparison)
        self.records = {record["key"]: record for record in lines[1:]}

    def holds(self, key: str, values: Mapping[str, float]) -> bool:
        """Whether the record of a training is there; a UserError if it is, with other values (of other ranges)."""
        record = self.records.get(key)
        if record is not None and record["values"] != values:
            raise UserError(
                f"--out {self.path} holds {key} with other values ({record['values']}, now {dict(values)}); "
                "give another file"
            )
        return record is not None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record and append its line."""
        self.records[record["key"]] = record
        self._write(record)

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error})") from error


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; an unfinished last one is cut off. A file of another kind is left as it is."""
    try:
        content = path.read_bytes() if path.exists() else b""
        if not START.startswith(content[: len(START)]):
            raise UserError(f"--out {path}: not a results file of this command; give another file")
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)
        return [json.loads(line) for line in whole.splitlines()]
    except OSError as error:
        raise UserError(f"--out {path}: cannot be read ({error})") from error
    except ValueError as error:
        raise UserError(f"--out {path}: a line is not JSON ({error}); give another file") from error


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        there = ", ".join(f"{name} {found.get(name)!r}, now {wanted[name]!r}" for name in differing)
        raise UserError(f"--out {path} holds another comparison ({there}); give another file, or those settings")
