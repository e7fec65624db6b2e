"""The tools of the build: C++ compiler, nvcc, ninja, pybind11; and the CUDA architectures to compile for."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .options import Unavailable

OLDEST_NVCC = (12, 0)
# (first nvcc release, architectures): each data-centre generation, and the newest as PTX for those to come.
DEFAULT_ARCHITECTURES = (((12, 8), "8.0 9.0 10.0 12.0+PTX"), ((12, 0), "8.0 9.0+PTX"))


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command's words and the first line of its --version."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Nvcc:
    """An nvcc, perhaps a wrapper script: it links too, so nothing needs the toolkit's root behind it."""

    path: str
    version: tuple[int, int]


def find_compiler(environ: Mapping[str, str]) -> Compiler:
    """CXX if it is set, else the first of g++, c++, clang++ on PATH."""
    chosen = shlex.split(environ.get("CXX", ""))
    for command in [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0], path=environ.get("PATH")):
            return Compiler(tuple(command), _output([*command, "--version"]).partition("\n")[0])
    if chosen:
        raise Unavailable(f"the C++ compiler CXX={environ['CXX']} was not found")
    raise Unavailable("no C++ compiler was found: install g++ or clang++, or name one in CXX")


def find_nvcc(environ: Mapping[str, str]) -> Nvcc | None:
    """The nvcc of CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda, in this order; no GPU is asked for.

    None where there is no nvcc; Unavailable is raised for one that does not work or is too old.
    """
    homes = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    candidates = [f"{home}/bin/nvcc" for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        path = shutil.which(candidate, path=environ.get("PATH"))
        if path:
            return _checked_nvcc(path)
    return None


def _checked_nvcc(path: str) -> Nvcc:
    release = re.search(r"release (\d+)\.(\d+)", _output([path, "--version"]))
    if not release:
        raise Unavailable(f"{path} --version names no release: it is no working nvcc")
    version = int(release[1]), int(release[2])
    if version < OLDEST_NVCC:
        raise Unavailable(
            f"nvcc {release[1]}.{release[2]} is too old: the CUDA kernels need nvcc 12.0 or newer"
        )
    return Nvcc(path, version)


def find_ninja(environ: Mapping[str, str]) -> str:
    """The ninja of the Python package of that name, else the one on PATH."""
    if importlib.util.find_spec("ninja"):
        import ninja

        inside = shutil.which("ninja", path=ninja.BIN_DIR)
        if inside:
            return inside
    found = shutil.which("ninja", path=environ.get("PATH"))
    if not found:
        raise Unavailable("ninja was not found: pip install ninja")
    return found


def pybind11_include() -> Path:
    """The directory of pybind11's headers."""
    if not importlib.util.find_spec("pybind11"):
        raise Unavailable("pybind11 was not found: pip install pybind11")
    import pybind11

    return Path(pybind11.get_include())


def architectures(environ: Mapping[str, str], nvcc: tuple[int, int]) -> list[str]:
    """TORCH_CUDA_ARCH_LIST ('8.0;9.0+PTX', blanks or semicolons), or a list for this release of nvcc."""
    given = environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    return given or next(names for first, names in DEFAULT_ARCHITECTURES if nvcc >= first).split()


def gencode_flags(names: list[str]) -> list[str]:
    """nvcc's flags for architectures as TORCH_CUDA_ARCH_LIST writes them."""
    flags = []
    for name in names:
        parts = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if not parts:
            raise Unavailable(
                f"TORCH_CUDA_ARCH_LIST names {name!r}, which is not understood: "
                "write numbers such as '8.0;9.0+PTX'"
            )
        number = parts[1] + parts[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parts[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{shlex.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
