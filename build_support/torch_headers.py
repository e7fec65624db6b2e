"""The torch that the package will run with, found without importing it.

torch is no build requirement, so an isolated build cannot import the environment's torch. Its directory is
looked for, in this order, in
  1. DATAGRAD_TORCH, the directory of the torch package;
  2. the running interpreter's import path (a build without isolation);
  3. the same interpreter with PYTHON* variables ignored (pip isolates by PYTHONPATH: this is the environment
     that it installs into);
  4. the interpreters on PATH, and .venv here (uv builds in an environment of its own, and tells no more of
     the one that it installs into).
The kernels use the stable ABI alone, so the headers of any torch >= 2.10 give a library for all of them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .options import Unavailable

OLDEST = (2, 10)
LOCATE = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package directory, its version string, for example '2.13.0+cpu', and (2, 13)."""

    root: Path
    version: str
    release: tuple[int, int]

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def find_torch(environ: Mapping[str, str]) -> Torch:
    """The first torch found; raises Unavailable where there is none or it is too old."""
    for root in _candidates(environ):
        if (root / "version.py").is_file():
            return _checked(root)
    raise Unavailable(
        "no installed torch was found, and the kernels need its headers: install torch first, into the same "
        "environment (activate it, or name the directory of the torch package in DATAGRAD_TORCH)"
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    if environ.get("DATAGRAD_TORCH"):
        yield Path(environ["DATAGRAD_TORCH"])
        return
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        yield Path(spec.origin).parent
    for interpreter in _interpreters(environ):
        origin = _torch_of(interpreter)
        if origin:
            yield Path(origin).parent


def _interpreters(environ: Mapping[str, str]) -> Iterator[str]:
    yield sys.executable
    for directory in [*environ.get("PATH", "").split(os.pathsep), str(Path.cwd() / ".venv/bin")]:
        interpreter = shutil.which("python3", path=directory or ".")
        if interpreter and Path(interpreter).parent != Path(sys.executable).parent:
            yield interpreter


def _torch_of(interpreter: str) -> str:
    """Where `interpreter` would import torch from, '' where it cannot."""
    command = [interpreter, "-E", "-c", LOCATE]
    try:
        done = subprocess.run(
            command, cwd=Path(interpreter).parent, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _checked(root: Path) -> Torch:
    """The torch in `root`, if it is new enough and has headers."""
    found = re.search(r"^__version__ = '([^']+)'", (root / "version.py").read_text(), re.MULTILINE)
    version = found.group(1) if found else "unknown"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if release < OLDEST:
        raise Unavailable(
            f"torch {version} was found, but the kernels need torch 2.10 or newer: upgrade torch"
        )
    if not (root / "include/torch/csrc/stable/library.h").is_file():
        raise Unavailable(f"torch {version} was found, but without its C++ headers: install it from a wheel")
    return Torch(root, version, release)
