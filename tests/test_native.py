"""What runs natively, and what is said where it does not.

With DATAGRAD_REQUIRE_NATIVE=1 a missing kernel is a failure, with DATAGRAD_CUDA=1 under a torch that has CUDA
also a CUDA one: a lost library must not pass for a skipped test.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fatbin import architectures

import datagrad_ext
from datagrad_ext import _native
from datagrad_ext.cli import info
from datagrad_ext.ops import is_native

PACKAGE = Path(_native.__file__).parent
ROOT = Path(__file__).parent.parent
# An editable install's finder would supply the very parts that a copy of the package leaves out.
REPORT = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import datagrad_ext
print(datagrad_ext.backends())
"""

needs_native = pytest.mark.skipif(
    not datagrad_ext.backends().devices[0].library and os.environ.get("DATAGRAD_REQUIRE_NATIVE") != "1",
    reason="built without compiled kernels",
)


def report(directory: Path, **environ: str) -> str:
    """What `backends()` says, warnings included, in a new interpreter; the package is in `directory`."""
    command = [sys.executable, "-c", REPORT]
    environ = {**os.environ, "PYTHONPATH": str(directory), **environ}
    done = subprocess.run(
        command, cwd=directory, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# Called on CUDA alone: what its library does together with a product, and transposed copies.
CUDA_ALONE = (
    *("product_gate", "product_relu", "product_reverse", "product_turned"),
    *("relu_reverse_turned", "smooth_reverse_turned", "turned_copy"),
)
# Called on the CPU alone: small products of convolutions and chains of them, and a step in one op, for which a GPU has
# other means, and folding, which is a few calls of PyTorch there.
CPU_ALONE = (
    "chain_penalty_step",
    "convolution_forward",
    "convolution_relu_forward",
    "convolution_relu_jvp",
    "convolution_relu_reverse",
    "convolution_relu_vjp",
    "convolution_reverse",
    "fold_norms",
    "folded_penalty_step",
    "image_chain_data_jvp",
    "image_chain_data_vjp",
    "image_chain_forward",
    "image_chain_reverse",
    "unfold_norms",
)
CUDNN = "fused_convolution"  # the ops whose kernels are cuDNN's plans: a library of its own, for CUDA alone


@needs_native
@pytest.mark.parametrize("name", [op.name for op in datagrad_ext.backends().ops])
def test_every_op_has_its_kernels(name: str) -> None:
    (op,) = [op for op in datagrad_ext.backends().ops if op.name == name]
    if name.startswith(CUDNN):
        assert op.native == (("CUDA",) if "cuDNN" in _native._compiled.loaded else ())
        return
    assert ("CPU" in op.native) == (name not in CUDA_ALONE)
    cuda = datagrad_ext.backends().devices[1]
    if cuda.library or (os.environ.get("DATAGRAD_CUDA") == "1" and torch.version.cuda):
        assert ("CUDA" in op.native) == (name not in CPU_ALONE), cuda.note


@pytest.mark.skipif(
    not datagrad_ext.backends().build.get("cuda_architectures") and os.environ.get("DATAGRAD_CUDA") != "1",
    reason="built without CUDA kernels",
)
def test_the_cuda_library_has_code_for_every_architecture_that_was_asked_for() -> None:
    """Of every source file, one container; a GPU of another architecture compiles the PTX."""
    wanted = set()
    for name in datagrad_ext.backends().build["cuda_architectures"]:
        major, minor = name.removesuffix("+PTX").rstrip("af").split(".")
        wanted.add(("elf", int(major + minor)))
        if name.endswith("+PTX"):
            wanted.add(("ptx", int(major + minor)))
    containers = architectures(PACKAGE / "lib" / "libdatagrad_cuda.so")
    assert containers
    assert wanted
    assert [wanted - found for found in containers] == [set()] * len(containers)


@pytest.mark.skipif(not torch.version.cuda, reason="this torch has no CUDA")
def test_torch_has_loaded_the_functions_of_cublaslt() -> None:
    """What csrc/cuda/cublas_lt.h looks up."""
    names = re.findall(r'"(cublasLt\w+)"\)', (ROOT / "csrc/cuda/cublas_lt.h").read_text())
    versions = [f"libcublasLt.so.{n}" for n in (13, 12)]
    found = [library for name in versions if (library := _loaded(name)) is not None]
    assert len(names) == 11
    assert found
    assert all(hasattr(found[0], name) for name in names)


def _loaded(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None


def test_cublaslt_is_declared_as_in_its_header(tmp_path: Path) -> None:
    """Wherever a package has brought the header: values of names, and sizes of what is passed by pointer."""
    plan, toolchain = (pytest.importorskip(f"build_support.{name}") for name in ("plan", "toolchain"))  # not installed
    headers = [Path(p) / "nvidia" for p in sys.path if (Path(p) / "nvidia").is_dir()]
    found = next((h for root in headers for h in sorted(root.glob("*/include/cublasLt.h"))), None)
    nvcc = toolchain.find_nvcc(os.environ)
    if found is None or nvcc is None:
        pytest.skip("no cublasLt.h, or no nvcc, whose headers it includes")
    includes = [f"-I{ROOT / 'csrc'}", f"-I{Path(torch.__file__).parent / 'include'}", f"-I{found.parent}"]
    source = ROOT / "tests" / "cublas_lt_header.cpp"
    command = [nvcc.path, "-std=c++17", "-c", *plan.STABLE_ABI, *includes, source, "-o", tmp_path / "header.o"]
    subprocess.run(command, check=True)


@needs_native
@pytest.mark.skipif(os.environ.get("DATAGRAD_CUDNN") != "1", reason="fused convolutions are not demanded")
def test_the_fused_convolutions_were_built_and_load() -> None:
    """Where they are demanded (DATAGRAD_CUDNN=1) and torch has CUDA; no GPU is needed."""
    assert datagrad_ext.backends().build["cudnn"]
    if torch.version.cuda:
        assert _native._compiled.loaded["cuDNN"] == "libdatagrad_cudnn.so", _native._compiled.not_loaded
        names = [op.name for op in datagrad_ext.backends().ops if op.name.startswith(CUDNN)]
        assert len(names) == 5
        assert all(is_native(name, "cuda") for name in names)


@needs_native
def test_a_build_without_fused_convolutions_says_why() -> None:
    build = datagrad_ext.backends().build
    assert build["cudnn"] != ("cudnn" in build["not_built"])


def test_every_family_of_ops_is_reported() -> None:
    names = {op.name for op in datagrad_ext.backends().ops}
    families = ("relu", "smooth", "penalty", "cross_entropy", "chain", "normalise")
    assert all(any(name.startswith(family) for name in names) for family in families), names


def test_a_device_without_kernels_has_a_reason() -> None:
    for device in datagrad_ext.backends().devices:
        assert device.note, f"{device.name} has no note"


def test_the_report_is_a_table() -> None:
    text = str(datagrad_ext.backends())
    assert text.splitlines()[0].split() == ["op", "CPU", "CUDA"]
    assert f"torch at run time: {torch.__version__}" in text


def test_info_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    assert info.run(parser.parse_args(["info"])) == 0
    assert capsys.readouterr().out.strip() == str(datagrad_ext.backends()).strip()


@needs_native
def test_the_instruction_set_follows_torch() -> None:
    assert "libdatagrad_cpu_default" in report(PACKAGE.parent, ATEN_CPU_CAPABILITY="default")


def copy_of_the_package(directory: Path, *patterns: str) -> Path:
    """A copy of the installed package without its libraries; files that match `patterns` are left out too."""
    target = directory / "datagrad_ext"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("lib", "__pycache__", *patterns))
    return target


def test_without_the_compiled_module_the_reference_runs_and_says_why(tmp_path: Path) -> None:
    copy = copy_of_the_package(tmp_path, "_C*")
    assert "CPU   reference: nothing was compiled" in report(tmp_path)
    record = {"not_built": {"native": "no C++ compiler was found"}}
    (copy / "_build_info.json").write_text(json.dumps(record))
    assert "CPU   reference: no C++ compiler was found" in report(tmp_path)


@needs_native
def test_a_lost_library_is_a_warning_and_a_reason(tmp_path: Path) -> None:
    copy_of_the_package(tmp_path)
    text = report(tmp_path)
    assert "RuntimeWarning: datagrad_ext runs its PyTorch reference on CPU: the library did not load" in text
    assert "CPU   reference: the library did not load" in text


def test_torch_still_answers_who_implements_an_op() -> None:
    """These calls are private to torch; the day they change, backends() has to ask otherwise."""
    assert "aten::add.Tensor" in torch._C._dispatch_get_all_op_names()
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::mm", "CPU")
