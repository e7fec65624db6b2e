"""What GPU code a library carries: reads the containers that nvcc puts into it, as `cuobjdump -lelf -lptx` does.

A container is a header (magic, version, size of the header, size of what follows) and entries, each with a header of
its own: kind, size of the header, size of the code, and at offset 28 the architecture. Code may be compressed, headers
are not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = struct.pack("<IH", 0xBA55ED50, 1)
CONTAINER, ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQIIHHI")
KINDS = {1: "ptx", 2: "elf"}


def architectures(library: Path) -> list[set[tuple[str, int]]]:
    """For each container (one a source file): ("elf" or "ptx", architecture such as 80) of its entries."""
    data = library.read_bytes()
    found = []
    start = data.find(MAGIC)
    while start >= 0:
        _, _, header, size = CONTAINER.unpack_from(data, start)
        found.append(set(_entries(data[start + header : start + header + size])))
        start = data.find(MAGIC, start + header + size)
    return found


def _entries(container: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    while at + ENTRY.size <= len(container):
        kind, _, header, size, *_, architecture = ENTRY.unpack_from(container, at)
        yield KINDS.get(kind, str(kind)), architecture
        at += header + size
