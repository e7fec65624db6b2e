"""CUDA kernels on the host: the .cu files, compiled as they are against stand-ins for CUDA (`cuda_on_host/`).

In rows on the device "emulated" (`conftest.py`) they are in place of the CPU's: what a GPU would run, thread by thread,
without one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
STAND_INS = f"-I{ROOT / 'tests' / 'cuda_on_host'}"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-DDATAGRAD_MOST_BLOCKS=3"]


@contextmanager
def library_in(folder: Path) -> Iterator[list[str]]:
    """Names of the ops of `datagrad_emulated`, compiled in the folder by the first process that asks."""
    library = folder / "libdatagrad_emulated.so"
    with (folder / "emulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_library(library, sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
    with loaded("datagrad_emulated", library) as names:
        yield names


@contextmanager
def loaded(namespace: str, library: Path) -> Iterator[list[str]]:
    """Names of the ops that the library implements on the CPU in a namespace with the schemas of `datagrad`."""
    prefix = "datagrad::"
    names = [name.removeprefix(prefix) for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)]
    definitions = torch.library.Library(namespace, "DEF")
    for name in names:
        definitions.define(str(getattr(torch.ops.datagrad, name).default._schema).removeprefix(prefix))
    torch.ops.load_library(library)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    yield [name for name in names if has_kernel(f"{namespace}::{name}", "CPU")]
    definitions._destroy()


@contextmanager
def in_place_of_the_cpu(names: Sequence[str]) -> Iterator[None]:
    """Calls of these ops on the CPU run the kernels of CUDA."""
    override = torch.library.Library("datagrad", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in names:
            override.impl(name, getattr(torch.ops.datagrad_emulated, name).default)
    try:
        yield
    finally:
        override._destroy()


def compile_library(library: Path, sources: Sequence[Path]) -> None:
    """Every source as C++, whatever its name says."""
    from build_support.plan import STABLE_ABI  # it is not there where an installed package is tested

    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    package = Path(torch.__file__).parent
    includes = [STAND_INS, f"-I{ROOT / 'csrc'}", f"-isystem{package / 'include'}"]

    def compiled(source: Path) -> Path:
        target = library.with_name(f"{source.stem}.o")
        subprocess.run(["c++", *FLAGS, *STABLE_ABI, *includes, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run(["c++", "-shared", *objects, "-o", library, f"-L{package / 'lib'}", "-ltorch_cpu"], check=True)
