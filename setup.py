"""Packaging; the settings are in pyproject.toml, the native build in build_support/.

Environment variables:
    DATAGRAD_REQUIRE_NATIVE=1   a missing tool or a failing compilation is an error, and so is a warning
    DATAGRAD_CUDA=1|0           demand or forbid the CUDA kernels; unset: build them where there is an nvcc
    DATAGRAD_CUDNN=1|0          demand or forbid the fused convolutions; unset: build them where their headers are found
    TORCH_CUDA_ARCH_LIST        their architectures, for example '8.0;9.0+PTX'
    CUDA_HOME, CXX              where to find nvcc, and the C++ compiler to use
    CUDNN_FRONTEND_PATH, CUDNN_PATH   folders of the headers of cuDNN's frontend and of cuDNN, where they are not found
                                by themselves
    DATAGRAD_TORCH              the directory of the torch package, where it is not found by itself
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build front end does not put the project on the path

from build_support import native  # noqa: E402
from build_support.options import Unavailable  # noqa: E402


class BuildNative(build_ext):
    """Build everything with ninja instead of compiling `ext_modules` one by one."""

    built_native = False

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        package = (ROOT if in_place else Path(self.build_lib)) / "datagrad_ext"
        try:
            self.built_native = native.build(package, os.environ)
        except Unavailable as reason:
            raise CompileError(f"datagrad_ext was not built: {reason}") from None

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildWheel(bdist_wheel):
    """A wheel for this platform if there is something compiled in it, one for every platform if not."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.get_finalized_command("build_ext").built_native
        super().run()


setup(
    ext_modules=[Extension("datagrad_ext._C", sources=["csrc/module.cpp"])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": BuildWheel},
)
