"""Errors a user can act on: a sentence on standard error and exit status 2, without a traceback."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


class UserError(Exception):
    """What was given, what is accepted, what to do; `main` prints it and exits with status 2."""


def require_extra(module: str, purpose: str) -> ModuleType:
    """Import a module of the `demo` extra; UserError naming the extra when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{purpose} needs {package}, which cannot be imported ({error}): "
            f'run pip install "datagrad_ext[demo]"'
        ) from error


def parse_device(name: str) -> torch.device:
    """'cpu', 'cuda' or 'cuda:INDEX' as a device that exists on this machine."""
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise UserError(f"unknown device {name!r}: give cpu, cuda or cuda:INDEX, such as cuda:0")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "sees no GPU" if torch.version.cuda else "was built without CUDA"
        raise UserError(
            f"device {name!r} was asked for, but this PyTorch ({torch.__version__}) {reason}: "
            "give --device cpu, or run where torch.cuda.is_available() is true"
        )
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        raise UserError(
            f"device {name!r} was asked for, but it does not exist (GPUs seen: {count}): give a lower index"
        )
    return torch.device(name)
