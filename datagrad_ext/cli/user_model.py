"""A user's own model from the command line: `module:callable`, its arguments, inputs drawn from sizes."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datagrad_ext.cli.errors import UserError

SHAPE = re.compile(r"(?P<sizes>\d+(,\d+)*)(:int(?P<high>\d+))?")


@dataclass(frozen=True)
class InputSpec:
    """Sizes of one input; standard normal, or, with `high`, whole numbers from 0 to high − 1."""

    sizes: tuple[int, ...]
    high: int | None

    def draw(self, generator: torch.Generator) -> Tensor:
        """A float32 or int64 tensor on the CPU."""
        if self.high is None:
            return torch.randn(self.sizes, generator=generator)
        return torch.randint(self.high, self.sizes, generator=generator)


def parse_input(text: str) -> InputSpec:
    """'8,3,32,32' or '8,12:int100'."""
    match = SHAPE.fullmatch(text)
    if match is None:
        raise UserError(
            f"--input {text}: sizes separated by commas expected, such as 8,3,32,32, "
            "or 8,12:int100 for whole numbers from 0 to 99"
        )
    sizes = tuple(int(size) for size in match["sizes"].split(","))
    high = int(match["high"]) if match["high"] else None
    if 0 in sizes or high == 0:
        raise UserError(f"--input {text}: sizes and the range of whole numbers must be at least 1")
    return InputSpec(sizes, high)


def build_model(spec: str, kwargs_text: str | None) -> nn.Module:
    """The model named by 'module:callable': an nn.Module, or what the callable returns when called."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UserError(f"--model {spec}: module:callable expected, such as mynet:Net")
    kwargs = _parse_kwargs(kwargs_text)
    with _current_folder_importable():
        found = _attribute(_import(module_name, spec), attribute, spec)
        model = found if isinstance(found, nn.Module) else _call(found, kwargs, spec)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model {spec}: a torch.nn.Module expected, {attribute} gives {type(model).__name__}"
        )
    return model


def _parse_kwargs(text: str | None) -> dict[str, object]:
    try:
        kwargs = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"--kwargs {text}: JSON expected, such as '{{\"depth\": 2}}' ({error})") from error
    if not isinstance(kwargs, dict):
        raise UserError(f"--kwargs {text}: a JSON object expected, such as '{{\"depth\": 2}}'")
    return kwargs


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _import(name: str, spec: str) -> object:
    try:
        return importlib.import_module(name)
    except Exception as error:  # user code runs here: anything may come
        raise UserError(
            f"--model {spec}: module {name} cannot be imported "
            f"({type(error).__name__}: {error}); this folder and the installed packages were searched"
        ) from error


def _attribute(module: object, path: str, spec: str) -> object:
    try:
        return functools.reduce(getattr, path.split("."), module)
    except AttributeError as error:
        raise UserError(f"--model {spec}: {error}") from error


def _call(found: object, kwargs: dict[str, object], spec: str) -> object:
    if not callable(found):
        raise UserError(
            f"--model {spec}: a callable or a torch.nn.Module expected, found {type(found).__name__}"
        )
    try:
        return found(**kwargs)
    except Exception as error:  # user code runs here: anything may come
        raise UserError(
            f"--model {spec}: calling it with {kwargs} failed "
            f"({type(error).__name__}: {error}); give its arguments with --kwargs"
        ) from error
