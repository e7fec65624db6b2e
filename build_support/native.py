"""The native build as a whole: find the tools, run ninja, copy the libraries, write the record.

A part that cannot be built is left out and the reason recorded; where it is required
(DATAGRAD_REQUIRE_NATIVE=1, DATAGRAD_CUDA=1) it is an error. The record is compiled into _C; a package without
_C has it as _build_info.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import plan, toolchain
from .cudnn_headers import find_cudnn
from .options import Options, Unavailable
from .torch_headers import find_torch

PURE_RECORD = "_build_info.json"
NO_NVCC = "no nvcc was found in CUDA_HOME, CUDA_PATH, on PATH or in /usr/local/cuda"
ERROR_LINE = re.compile(r"\b(error|fatal) *:|undefined reference|cannot find")


@dataclass
class Record:
    """What a build used and made; `not_built` maps a part to the sentence that says why it is missing."""

    torch: str | None = None
    compiler: str | None = None
    nvcc: str | None = None
    cpu_isas: list[str] = field(default_factory=list)
    cuda_architectures: list[str] = field(default_factory=list)
    cudnn: bool = False
    nodes: bool = False
    not_built: dict[str, str] = field(default_factory=dict)

    def json(self) -> str:
        return json.dumps(vars(self), indent=1, sort_keys=True)


def build(package: Path, environ: Mapping[str, str]) -> bool:
    """Build what can be built into the directory `package`; True if native, False if it stays pure Python.

    Runs in the project's root. Raises Unavailable where something required cannot be built.
    """
    options = Options.from_environ(environ)
    record = Record()
    try:
        libraries, module = _Native(options, environ, record).run()
    except Unavailable as reason:
        if options.require_native or options.cuda or options.cudnn:
            raise
        print(f"datagrad_ext is built without compiled kernels: {reason}", file=sys.stderr)
        record.not_built["native"] = str(reason)
        _clear(package)
        (package / PURE_RECORD).write_text(record.json() + "\n")
        return False
    _clear(package)
    (package / "lib").mkdir()
    for library in libraries:
        shutil.copy(library, package if library.name == plan.NODES else package / "lib")
    shutil.copy(module, package)
    return True


def _clear(package: Path) -> None:
    """Remove what an earlier build left: a library that was not built again must not be found."""
    package.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(package / "lib", ignore_errors=True)
    for stale in [package / plan.MODULE, package / plan.NODES, package / PURE_RECORD]:
        stale.unlink(missing_ok=True)


class _Native:
    """One run of the native build; what it used and made goes into `record`."""

    def __init__(self, options: Options, environ: Mapping[str, str], record: Record) -> None:
        if os.name != "posix":
            raise Unavailable(f"the kernels are built on Linux and macOS only, not on {sys.platform}")
        self.options, self.environ, self.record = options, environ, record
        torch = find_torch(environ)
        cxx = toolchain.find_compiler(environ)
        self.ninja = toolchain.find_ninja(environ)
        self.pybind11 = toolchain.pybind11_include()
        self.directory = Path("build") / f"{sys.implementation.cache_tag}-torch-{torch.version}"
        self.plan = plan.Plan(self.directory, cxx, torch, options.require_native)
        record.torch, record.compiler = torch.version, cxx.version

    def run(self) -> tuple[list[Path], Path]:
        """The kernel libraries that were built, and _C."""
        parts = {f"cpu_{isa}": self.plan.cpu_library(isa) for isa in plan.cpu_isas(platform.machine())}
        nvcc = self._nvcc()
        if nvcc:
            architectures = toolchain.architectures(self.environ, nvcc.version)
            parts["cuda"] = self.plan.cuda_library(nvcc, architectures)
        folders = self._cudnn(nvcc)
        if nvcc and folders is not None:
            parts["cudnn"] = self.plan.cudnn_library(nvcc, folders)
        if self._nodes():
            parts["nodes"] = self.plan.nodes()
        module = self.plan.module(self.pybind11)
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(self.directory / "build.ninja", self.plan.text())
        built = self._make_parts(parts)
        self.record.cpu_isas = [part.removeprefix("cpu_") for part in built if part.startswith("cpu_")]
        self.record.cudnn, self.record.nodes = "cudnn" in built, "nodes" in built
        if nvcc and "cuda" in built:
            self.record.nvcc = ".".join(map(str, nvcc.version))
            self.record.cuda_architectures = architectures
        self._write_build_info()
        self._make(module)
        return list(built.values()), module

    def _nvcc(self) -> toolchain.Nvcc | None:
        """The nvcc to use; None, with the reason recorded, where there is none or CUDA is not wanted."""
        if self.options.cuda is False:
            self.record.not_built["cuda"] = "the build was told to leave it out (DATAGRAD_CUDA=0)"
            return None
        try:
            nvcc = toolchain.find_nvcc(self.environ)
        except Unavailable as reason:
            if self.options.cuda or self.options.require_native:
                raise
            self.record.not_built["cuda"] = str(reason)
            return None
        if not nvcc:
            self.record.not_built["cuda"] = NO_NVCC
            if self.options.cuda:
                raise Unavailable(NO_NVCC)
        return nvcc

    def _cudnn(self, nvcc: toolchain.Nvcc | None) -> list[Path] | None:
        """Folders with the headers of the fused convolutions; None, with the reason recorded, where one is missing."""
        try:
            if self.options.cudnn is False:
                raise Unavailable("the build was told to leave it out (DATAGRAD_CUDNN=0)")
            if nvcc is None:
                raise Unavailable("it comes with the CUDA kernels")
            return find_cudnn(self.environ, self.plan.torch, nvcc)
        except Unavailable as reason:
            if self.options.cudnn:
                raise
            self.record.not_built["cudnn"] = str(reason)
            return None

    def _nodes(self) -> bool:
        """Whether this torch has the classes that the nodes are written for; if not, the reason is recorded."""
        if self.plan.torch.release < plan.OLDEST_NODES:
            wanted = ".".join(map(str, plan.OLDEST_NODES))
            self.record.not_built["nodes"] = f"they need torch {wanted} or newer, and this is {self.plan.torch.version}"
            return False
        return True

    def _make_parts(self, parts: dict[str, Path]) -> dict[str, Path]:
        """Make all parts at once; if that fails and may, one by one, to tell which failed and why."""
        try:
            self._make(*parts.values())
            return parts
        except Unavailable:
            if self.options.require_native:
                raise
        built = {}
        for part, library in parts.items():
            try:
                self._make(library)
                built[part] = library
            except Unavailable as reason:
                if getattr(self.options, part, False):
                    raise
                self.record.not_built[part] = str(reason)
        if not built:
            raise Unavailable(next(iter(self.record.not_built.values())))
        return built

    def _make(self, *targets: Path) -> None:
        """Run ninja and pass its output on as it comes; the first line with an error becomes the reason."""
        command = [self.ninja, "-f", str(self.directory / "build.ninja"), "-k", "0", *map(str, targets)]
        error = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ninja:
            assert ninja.stdout is not None
            for line in ninja.stdout:
                print(line, end="", flush=True)
                if not error and ERROR_LINE.search(line):
                    error = line.strip()
        if ninja.returncode:
            raise Unavailable(f"making {', '.join(path.name for path in targets)} failed: {error}")

    def _write_build_info(self) -> None:
        """The header that module.cpp includes."""
        text = f'static const char* const BUILD_INFO = R"json({self.record.json()})json";\n'
        text += f'static const char* const LIBRARY_SUFFIX = "{plan.LIBRARY_SUFFIX}";\n'
        _write(self.directory / "build_info.h", text)


def _write(path: Path, text: str) -> None:
    """Write a file if its content is new: ninja goes by the time."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
