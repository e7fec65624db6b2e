"""The headers of the fused convolutions: cuDNN's, the header-only frontend's, and NVRTC's, which the frontend includes.

None of them is installed for the build. They are looked for beside the torch that the package will run with, where pip
puts nvidia-cudnn-frontend and the nvidia packages of a CUDA torch, and where compilers and CUDA toolkits keep headers.
CUDNN_FRONTEND_PATH and CUDNN_PATH name a folder before these: with the headers in it, or in its include/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .options import Unavailable
from .toolchain import Nvcc
from .torch_headers import Torch

SYSTEM = ("/usr/include", "/usr/local/include", "/usr/local/cuda/include")


@dataclass(frozen=True)
class Header:
    """A header, the variable that names its folder, where pip puts it beside torch, and what to do if it is missing."""

    name: str
    variable: str
    beside_torch: tuple[str, ...]
    remedy: str


HEADERS = (
    Header(
        "cudnn_frontend.h",
        "CUDNN_FRONTEND_PATH",
        ("include",),
        "pip install nvidia-cudnn-frontend, or name its folder in CUDNN_FRONTEND_PATH",
    ),
    Header(
        "cudnn.h",
        "CUDNN_PATH",
        ("nvidia/cudnn/include",),
        "install a torch with CUDA from pip, or name cuDNN's folder in CUDNN_PATH",
    ),
    Header(
        "nvrtc.h",
        "CUDA_HOME",
        ("nvidia/cu13/include", "nvidia/cuda_nvrtc/include"),
        "install a torch with CUDA from pip, or a CUDA toolkit with NVRTC",
    ),
)


def find_cudnn(environ: Mapping[str, str], torch: Torch, nvcc: Nvcc) -> list[Path]:
    """Folders to include, those of the compiler left out; raises Unavailable for the first header that is missing."""
    found = [_folder_of(header, environ, torch, nvcc) for header in HEADERS]
    return [folder for folder in dict.fromkeys(found) if str(folder) not in SYSTEM]


def _folder_of(header: Header, environ: Mapping[str, str], torch: Torch, nvcc: Nvcc) -> Path:
    named = environ.get(header.variable, "")
    folders = [Path(named), Path(named) / "include"] if named else []
    folders += [torch.root.parent / folder for folder in header.beside_torch]
    folders += [Path(nvcc.path).resolve().parent.parent / "include", *map(Path, SYSTEM)]
    for folder in folders:
        if (folder / header.name).is_file():
            return folder
    raise Unavailable(f"the header {header.name} was not found: {header.remedy}")
