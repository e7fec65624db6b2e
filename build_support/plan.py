"""What is compiled from what, as a ninja file.

    libdatagrad_cpu_<isa>   csrc/cpu/*.cpp, the same sources once per instruction set
    libdatagrad_cuda        csrc/cuda/*.cu
    libdatagrad_cudnn       csrc/cudnn/*.cpp, apart: what it includes is not ours, and it may be missing
    _nodes                  csrc/nodes/*.cpp, for the one torch whose headers it is compiled with
    _C                      csrc/*.cpp with the record of the build

Commands run in the project's root and name sources relative to it: no path of the machine gets into a file.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from .toolchain import Compiler, Nvcc, gencode_flags
from .torch_headers import Torch

LINUX = sys.platform == "linux"
LIBRARY_SUFFIX = ".so" if LINUX else ".dylib"
MODULE = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
NODES = "_nodes" + sysconfig.get_config_var("EXT_SUFFIX")

OLDEST_NODES = (2, 13)  # whose engine has the classes that csrc/nodes is written for

COMMON = ["-O3", "-DNDEBUG", "-std=c++17", "-Icsrc"]
# Kernels neither read errno nor trap; both promises let the compiler vectorise. IEEE semantics stay.
HOST = ["-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# Every declaration newer than torch 2.10 is hidden, whichever torch the headers are of.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The compiler's guesses about the flow of data stay warnings: they differ between its releases.
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-error=maybe-uninitialized"]
DEPENDENCIES = ["-MD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISA_FLAGS = {
    "default": [],
    "avx2": AVX2,
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2],
}


def cpu_isas(machine: str) -> list[str]:
    """The instruction sets to compile for on `machine` (platform.machine())."""
    return list(ISA_FLAGS) if machine in ("x86_64", "AMD64") and LINUX else ["default"]


@dataclass
class Plan:
    """A build.ninja, collected part by part; every part is built in `directory`, relative to the root.

    `strict` makes warnings of the project's own code errors.
    """

    directory: Path
    cxx: Compiler
    torch: Torch
    strict: bool
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join([f"builddir = {_path(self.directory)}", *self.lines, ""])

    def cpu_library(self, isa: str) -> Path:
        """Kernels for the CPU.

        libtorch_cpu is linked by name, without a search path: torch is imported first, and the name makes the
        loader take that copy although Python keeps its symbols private.
        """
        flags = [
            *COMMON,
            *self._host(),
            *STABLE_ABI,
            *ISA_FLAGS[isa],
            *self._torch_headers(),
            *self._warnings(),
        ]
        self._rule(f"cpu_{isa}", [*self.cxx.command, *flags, *DEPENDENCIES], f"C++ $in ({isa})")
        complete = ["-Wl,-z,defs"] if LINUX else []
        libraries = [f"-L{self.torch.lib}", "-ltorch_cpu"]
        self._rule(
            f"link_cpu_{isa}", [*self.cxx.command, "-shared", "$in", "-o", "$out", *complete, *libraries]
        )
        objects = self._objects(f"cpu_{isa}", sorted(Path("csrc/cpu").glob("*.cpp")))
        return self._build(f"lib/libdatagrad_cpu_{isa}{LIBRARY_SUFFIX}", f"link_cpu_{isa}", objects)

    def cuda_library(self, nvcc: Nvcc, architectures: list[str]) -> Path:
        """Kernels for CUDA.

        cudart is linked in: it shares torch's context and streams through the driver, clashes with no other
        copy, and asks for a driver at the first launch only. A CPU-only torch has no libtorch_cuda to link
        with, so an empty library of that name stands in: what counts is that the name is recorded, the real
        one is there at run time.
        """
        driver = [nvcc.path, "-ccbin", self.cxx.command[0]]
        flags = [
            *COMMON,
            *STABLE_ABI,
            "-DUSE_CUDA",
            *gencode_flags(architectures),
            "--expt-relaxed-constexpr",
        ]
        flags += ["-lineinfo", "-Xfatbin=-compress-all", "--threads=2", *self._torch_headers()]
        flags += ["-Xcompiler=" + ",".join([*self._host(), *self._warnings()])]
        # The log of an ordinary build names kernels that spill registers: for a strict one they would be errors.
        flags += ["-Werror=all-warnings"] if self.strict else ["-Xptxas=--warn-on-spills"]
        self._rule("cuda", [*driver, *flags, *DEPENDENCIES], "CUDA $in")
        stand_in = self._stand_in()
        link = [*driver, "-shared", "-nodlink", "-cudart", "static", "$in", "-o", "$out"]
        link += ["-Xlinker", "--no-as-needed", f"-L{stand_in.parent}", "-ltorch_cuda"]
        self._rule("link_cuda", [*link, f"-L{self.torch.lib}", "-ltorch_cpu"])
        objects = self._objects("cuda", sorted(Path("csrc/cuda").glob("*.cu")))
        return self._build("lib/libdatagrad_cuda.so", "link_cuda", objects, after=stand_in)

    def cudnn_library(self, nvcc: Nvcc, folders: list[Path]) -> Path:
        """Fused convolutions by cuDNN, whose functions are looked up in torch's copy: nothing of it is linked.

        nvcc hands C++ on to the host compiler and adds the toolkit's headers.
        """
        driver = [nvcc.path, "-ccbin", self.cxx.command[0]]
        flags = ["-O1", *COMMON[1:], *STABLE_ABI, "-DUSE_CUDA", *self._torch_headers()]
        flags += [word for folder in folders for word in ("-isystem", str(folder))]
        flags += ["-Xcompiler=" + ",".join([*self._host(), *self._warnings()])]
        self._rule("cudnn", [*driver, *flags, *DEPENDENCIES], "C++ $in")
        stand_in = self._stand_in()
        link = [*self.cxx.command, "-shared", "$in", "-o", "$out", "-Wl,--no-as-needed"]
        link += [f"-L{stand_in.parent}", "-ltorch_cuda", f"-L{self.torch.lib}", "-ltorch_cpu", "-ldl"]
        self._rule("link_cudnn", link)
        objects = self._objects("cudnn", sorted(Path("csrc/cudnn").glob("*.cpp")))
        return self._build("lib/libdatagrad_cudnn.so", "link_cudnn", objects, after=stand_in)

    def _stand_in(self) -> Path:
        """An empty libtorch_cuda to link with."""
        soname = "libtorch_cuda.so"
        if "rule stand_in" not in self.lines:
            empty = ["-shared", "-x", "c++", "/dev/null", f"-Wl,-soname,{soname}"]
            self._rule("stand_in", [*self.cxx.command, *empty, "-o", "$out"])
            self._build(f"stand_in/{soname}", "stand_in", [])
        return self.directory / "stand_in" / soname

    def module(self, pybind11: Path) -> Path:
        """The Python module _C; it includes build_info.h, which is written before ninja makes it."""
        includes = [f"-isystem{path}" for path in (pybind11, *_python_headers())]
        flags = [*COMMON, *HOST, f"-I{self.directory}", *includes, *self._warnings()]
        self._rule("module", [*self.cxx.command, *flags, *DEPENDENCIES], "C++ $in")
        symbols = ["-ldl"] if LINUX else ["-undefined", "dynamic_lookup"]
        self._rule("link_module", [*self.cxx.command, "-shared", "$in", "-o", "$out", *symbols])
        return self._build(MODULE, "link_module", self._objects("module", sorted(Path("csrc").glob("*.cpp"))))

    def nodes(self) -> Path:
        """Nodes of torch's autograd engine, a Python module with the classes and the pybind11 of this torch.

        Its libraries are linked by name, as libtorch_cpu is for the kernels.
        """
        headers = [self.torch.include, *map(Path, _python_headers())]
        includes = [word for path in headers for word in ("-isystem", str(path))]
        flags = [*COMMON, "-std=c++20", *self._host(), *includes, *self._warnings()]  # as torch's own headers
        self._rule("nodes", [*self.cxx.command, *flags, *DEPENDENCIES], "C++ $in")
        libraries = [f"-L{self.torch.lib}", "-ltorch_python", "-ltorch_cpu", "-lc10"]
        symbols = [] if LINUX else ["-undefined", "dynamic_lookup"]
        self._rule("link_nodes", [*self.cxx.command, "-shared", "$in", "-o", "$out", *libraries, *symbols])
        return self._build(NODES, "link_nodes", self._objects("nodes", sorted(Path("csrc/nodes").glob("*.cpp"))))

    def _host(self) -> list[str]:
        """Flags of the host compiler; where this machine keeps torch's headers stays out of the libraries."""
        return [*HOST, f"-ffile-prefix-map={self.torch.root}=torch"]

    def _torch_headers(self) -> list[str]:
        """torch's headers, whose warnings are not ours."""
        return ["-isystem", str(self.torch.include)]

    def _warnings(self) -> list[str]:
        return STRICT if self.strict else []

    def _objects(self, rule: str, sources: list[Path]) -> list[Path]:
        """Compile each source with `rule`; objects are rebuilt when a header that they read changes."""
        return [self._build(f"{rule}/{source.stem}.o", rule, [source]) for source in sources]

    def _rule(self, name: str, command: list[str], description: str = "link $out") -> None:
        """A rule; the words of `command` are quoted for the shell, but not ninja's variables."""
        words = " ".join(word if word.startswith("$") else _quoted(word) for word in command)
        self.lines += [f"rule {name}", f"  command = {words}", f"  description = {description}"]
        if "-MF" in command:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def _build(self, output: str, rule: str, inputs: list[Path], after: Path | None = None) -> Path:
        """One output; `after` is an input that the command names by itself."""
        path = self.directory / output
        needs = " ".join(map(_path, inputs)) + (f" | {_path(after)}" if after else "")
        self.lines.append(f"build {_path(path)}: {rule} {needs}")
        return path


def _python_headers() -> list[str]:
    return sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})


def _quoted(word: str) -> str:
    return shlex.quote(word).replace("$", "$$")


def _path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
