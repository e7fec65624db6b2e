"""The build: what setup.py finds, decides and writes down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import cudnn_headers, plan, toolchain
from build_support.options import Options, Unavailable
from build_support.torch_headers import find_torch

ROOT = Path(__file__).resolve().parent.parent


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def nvcc_of_release(path: Path, release: str) -> Path:
    return script(path, f"echo 'Cuda compilation tools, release {release}, V{release}.1'")


def fake_torch(site: Path, version: str) -> Path:
    """The files of an installed torch that the build looks at."""
    root = site / "torch"
    header = root / "include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (root / "version.py").write_text(f"__version__ = '{version}'\n")
    (root / "__init__.py").write_text("raise ImportError('the build must not import torch')\n")
    return root


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Options(False, None)),
        ({"DATAGRAD_CUDNN": "1"}, Options(False, None, True)),
        ({"DATAGRAD_CUDNN": "0"}, Options(False, None, False)),
        ({"DATAGRAD_CUDA": ""}, Options(False, None)),
        ({"DATAGRAD_CUDA": "0", "DATAGRAD_REQUIRE_NATIVE": "0"}, Options(False, False)),
        ({"DATAGRAD_CUDA": "1", "DATAGRAD_REQUIRE_NATIVE": "1"}, Options(True, True)),
    ],
)
def test_options_come_from_the_environment(environ: dict[str, str], expected: Options) -> None:
    assert Options.from_environ(environ) == expected


def test_an_unknown_value_is_refused_in_a_sentence() -> None:
    with pytest.raises(Unavailable, match="DATAGRAD_CUDA='yes' is not understood: set it to 1 or 0"):
        Options.from_environ({"DATAGRAD_CUDA": "yes"})


@pytest.mark.parametrize("given", ["8.0;9.0a+PTX", "8.0 9.0a+PTX", " 8.0 ; 9.0a+PTX "])
def test_architectures_are_taken_from_the_environment(given: str) -> None:
    names = toolchain.architectures({"TORCH_CUDA_ARCH_LIST": given}, (13, 0))
    assert toolchain.gencode_flags(names) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


@pytest.mark.parametrize(
    ("nvcc", "expected"),
    [((12, 0), "8.0 9.0+PTX"), ((12, 8), "8.0 9.0 10.0 12.0+PTX"), ((13, 0), "8.0 9.0 10.0 12.0+PTX")],
)
def test_architectures_have_a_default_by_the_release_of_nvcc(nvcc: tuple[int, int], expected: str) -> None:
    for environ in ({}, {"TORCH_CUDA_ARCH_LIST": ""}):
        assert toolchain.architectures(environ, nvcc) == expected.split()


@pytest.mark.parametrize("name", ["Hopper", "90", "native", "8.0+ptx"])
def test_an_unknown_architecture_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(Unavailable, match="write numbers such as"):
        toolchain.gencode_flags([name])


def test_nvcc_is_looked_for_in_cuda_home_first(tmp_path: Path) -> None:
    home = nvcc_of_release(tmp_path / "home/bin/nvcc", "12.9")
    nvcc_of_release(tmp_path / "path/nvcc", "13.0")
    path = f"{tmp_path}/path:/usr/bin:/bin"
    found = toolchain.find_nvcc({"CUDA_HOME": str(tmp_path / "home"), "PATH": path})
    assert found == toolchain.Nvcc(str(home), (12, 9))
    found = toolchain.find_nvcc({"CUDA_HOME": str(tmp_path / "none"), "PATH": path})
    assert found == toolchain.Nvcc(f"{tmp_path}/path/nvcc", (13, 0))


def test_nvcc_may_be_a_wrapper(tmp_path: Path) -> None:
    real = nvcc_of_release(tmp_path / "toolkit/bin/nvcc", "12.4")
    wrapper = script(tmp_path / "bin/nvcc", f'exec {real} "$@"')
    assert toolchain.find_nvcc({"PATH": f"{tmp_path}/bin"}) == toolchain.Nvcc(str(wrapper), (12, 4))


def test_an_old_nvcc_is_refused(tmp_path: Path) -> None:
    nvcc_of_release(tmp_path / "bin/nvcc", "11.5")
    with pytest.raises(Unavailable, match=r"nvcc 11\.5 is too old"):
        toolchain.find_nvcc({"PATH": f"{tmp_path}/bin"})


def test_the_compiler_is_taken_from_cxx() -> None:
    with pytest.raises(Unavailable, match="CXX=/nonexistent was not found"):
        toolchain.find_compiler({"CXX": "/nonexistent", "PATH": os.environ["PATH"]})
    with pytest.raises(Unavailable, match="no C\\+\\+ compiler was found"):
        toolchain.find_compiler({"PATH": "/nonexistent"})


def test_torch_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_torch(tmp_path, "2.11.0+cu130")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_torch({})
    assert (found.root, found.version) == (root, "2.11.0+cu130")


def test_torch_may_be_named(tmp_path: Path) -> None:
    root = fake_torch(tmp_path, "2.10.1")
    assert find_torch({"DATAGRAD_TORCH": str(root)}).include == root / "include"
    with pytest.raises(Unavailable, match="no installed torch was found"):
        find_torch({"DATAGRAD_TORCH": str(tmp_path / "none")})


def test_an_old_torch_is_refused(tmp_path: Path) -> None:
    root = fake_torch(tmp_path, "2.9.1")
    with pytest.raises(Unavailable, match=r"torch 2\.9\.1 was found, but the kernels need torch 2\.10"):
        find_torch({"DATAGRAD_TORCH": str(root)})


@pytest.fixture
def no_system_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_headers, "SYSTEM", ())


def headers(*folders: Path) -> None:
    """Empty headers, in order: the frontend's, cuDNN's, NVRTC's."""
    for folder, header in zip(folders, cudnn_headers.HEADERS, strict=False):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / header.name).touch()


@pytest.mark.usefixtures("no_system_headers")
def test_headers_of_cudnn_are_found_beside_torch(tmp_path: Path) -> None:
    torch = find_torch({"DATAGRAD_TORCH": str(fake_torch(tmp_path, "2.14.1"))})
    folders = [tmp_path / "include", tmp_path / "nvidia/cudnn/include", tmp_path / "nvidia/cu13/include"]
    nvcc = toolchain.Nvcc(str(tmp_path / "toolkit/bin/nvcc"), (13, 0))
    for i, (header, missing) in enumerate(zip(cudnn_headers.HEADERS, folders, strict=True)):
        sentence = f"the header {header.name} was not found: {header.remedy}"
        with pytest.raises(Unavailable, match=re.escape(sentence)):
            cudnn_headers.find_cudnn({}, torch, nvcc)
        headers(*folders[: i + 1])
        assert missing.is_dir()
    assert cudnn_headers.find_cudnn({}, torch, nvcc) == folders


@pytest.mark.usefixtures("no_system_headers")
def test_headers_of_cudnn_may_be_named(tmp_path: Path) -> None:
    torch = find_torch({"DATAGRAD_TORCH": str(fake_torch(tmp_path, "2.14.1"))})
    folders = [tmp_path / "frontend", tmp_path / "cudnn/include", tmp_path / "toolkit/include"]
    headers(*folders)
    environ = {"CUDNN_FRONTEND_PATH": str(folders[0]), "CUDNN_PATH": str(tmp_path / "cudnn")}
    nvcc = toolchain.Nvcc(str(tmp_path / "toolkit/bin/nvcc"), (13, 0))
    assert cudnn_headers.find_cudnn(environ, torch, nvcc) == folders


def test_instruction_sets_are_those_of_the_machine() -> None:
    assert plan.cpu_isas("aarch64") == ["default"]
    if plan.LINUX:
        assert plan.cpu_isas("x86_64") == ["default", "avx2", "avx512"]


def build_in_place(directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext --inplace` on a copy of what the build reads, without a C++ compiler."""
    for name in ("build_support", "csrc"):
        shutil.copytree(ROOT / name, directory / name)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    (directory / "README.md").touch()
    (directory / "datagrad_ext").mkdir()
    (directory / "datagrad_ext/__init__.py").touch()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    cleared = dict.fromkeys(("DATAGRAD_REQUIRE_NATIVE", "DATAGRAD_CUDA", "DATAGRAD_CUDNN"), "")
    environ = {**os.environ, **cleared, "CXX": "/nonexistent", **environ}
    return subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True)


def test_without_a_compiler_the_package_is_pure_and_the_reason_recorded(tmp_path: Path) -> None:
    done = build_in_place(tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "datagrad_ext/_build_info.json").read_text())
    assert record["not_built"] == {"native": "the C++ compiler CXX=/nonexistent was not found"}


@pytest.mark.parametrize("variable", ["DATAGRAD_REQUIRE_NATIVE", "DATAGRAD_CUDA", "DATAGRAD_CUDNN"])
def test_a_demand_turns_the_fallback_into_an_error(tmp_path: Path, variable: str) -> None:
    done = build_in_place(tmp_path, **{variable: "1"})
    assert done.returncode != 0
    assert "datagrad_ext was not built: the C++ compiler CXX=/nonexistent was not found" in done.stderr
