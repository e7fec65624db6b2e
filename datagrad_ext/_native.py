"""The compiled kernels: loads them; `backends()` tells what runs natively, where, built how, and why not.

Importing `datagrad_ext._C` loads the kernel libraries beside it, and each library registers its kernels with
the ops of the namespace "datagrad". Without `_C` every op runs its PyTorch reference. Nothing compiles here.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .choices import listing

DEVICES = ("CPU", "CUDA")
APART = "fused_convolution"  # plans of cuDNN, in a library of their own: the build's lines tell whether there is one
PURE_RECORD = Path(__file__).with_name("_build_info.json")  # written by a build that made no _C


def _load() -> tuple[ModuleType | None, str]:
    """The module _C, or None and a sentence that says why there is none."""
    try:
        import datagrad_ext._C as compiled
    except ModuleNotFoundError as error:
        if error.name != "datagrad_ext._C":
            raise
        return None, _why_pure()
    except ImportError as error:
        reason = f"the compiled module did not load ({error}): install datagrad_ext again, with this torch"
        warnings.warn(f"datagrad_ext runs its PyTorch reference, slowly: {reason}", RuntimeWarning, stacklevel=2)
        return None, reason
    for device, reason in compiled.not_loaded.items():
        if reason.startswith("the library did not load"):
            warnings.warn(
                f"datagrad_ext runs its PyTorch reference on {device}: {reason}", RuntimeWarning, stacklevel=2
            )
    return compiled, ""


def _why_pure() -> str:
    if PURE_RECORD.is_file():
        return str(json.loads(PURE_RECORD.read_text())["not_built"]["native"])
    return f"nothing was compiled for Python {platform.python_version()}: run 'pip install .' in the sources"


_compiled, _reason = _load()


def direct(name: str, given: tuple[int, ...] = ()) -> Callable[..., Any]:
    """The op, called past torch's dispatcher where the CPU library and this torch can and nobody could tell.

    The arguments are those of `torch.ops.datagrad.<name>.default`, by position. `given` are the places of lists that
    the caller gives away: they may come back empty, as the op lets go of each tensor when it is done with it.
    """
    op = getattr(torch.ops.datagrad, name).default
    return op if _why_dispatched else _compiled.direct(name, op, given)  # type: ignore[union-attr]


def _same_objects(tables: list[dict], known: list[tuple]) -> bool:
    """Whether the values of each table are, in order, those in its tuple; there `...` stands for anything but None."""
    return _hold(tables, known, lambda value, kept: value is not None if kept is ... else value is kept)


def _same_gradients(tables: list[dict], known: list[tuple]) -> bool:
    """Whether the tensors of each table require gradients as its tuple says; None is none."""
    return _hold(tables, known, lambda t, kept: (None if t is None else t.requires_grad) is kept)


def _hold(tables: list[dict], known: list[tuple], is_same: Callable[[Any, Any], bool]) -> bool:
    return all(
        len(table) == len(values) and all(map(is_same, table.values(), values))
        for table, values in zip(tables, known, strict=True)
    )


def _packed(items: list[Sequence[Any]], tensors: list[Any], tensor: type) -> list[list[Any]]:
    """The items with every tensor moved to the end of `tensors`, unless it is there: what `unpacked` reads.

    A tensor becomes its place, a tuple a list, anything else a tuple of one.
    """
    places = {id(each): place for place, each in enumerate(tensors)}
    return [_layout(item, tensors, tensor, places) for item in items]


def _layout(item: Sequence[Any], tensors: list[Any], tensor: type, places: dict[int, int]) -> list[Any]:
    found: list[Any] = []
    for value in item:
        if isinstance(value, tensor):
            place = places.setdefault(id(value), len(tensors))
            if place == len(tensors):
                tensors.append(value)
            found.append(place)
        else:
            found.append(_layout(value, tensors, tensor, places) if type(value) is tuple else (value,))
    return found


def _unpacked(layouts: list[list[Any]], tensors: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The items as they were packed, as tuples."""
    return [_item(layout, tensors) for layout in layouts]


def _item(layout: list[Any], tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        [
            tensors[place] if type(place) is int else place[0] if type(place) is tuple else _item(place, tensors)
            for place in layout
        ]
    )


packed: Callable[[list, list, type], list] = _compiled.packed if _compiled else _packed
unpacked: Callable[[list, tuple], list] = _compiled.unpacked if _compiled else _unpacked
same_objects: Callable[[list[dict], list[tuple]], bool] = _compiled.same_objects if _compiled else _same_objects
same_gradients: Callable[[list[dict], list[tuple]], bool] = _compiled.same_gradients if _compiled else _same_gradients


def _find_direct() -> str:
    """Why no op can be called directly, or nothing."""
    if not _compiled or "CPU" not in _compiled.loaded:
        return "there are no kernels for the CPU"
    try:
        _compiled.find_torch()
    except AttributeError as error:
        return str(error)
    return ""


_why_dispatched = _find_direct()


def direct_ops() -> Any:
    """The table of what can be called directly, for C++."""
    return _compiled.direct_ops  # type: ignore[union-attr]


def _find_nodes() -> tuple[ModuleType | None, str]:
    """The module _nodes, or None and why it is not used: it was compiled for one torch."""
    if _why_dispatched:
        return None, _why_dispatched
    built = _compiled.build_info()  # type: ignore[union-attr]
    if not built["nodes"]:
        return None, built["not_built"]["nodes"]
    if built["torch"] != torch.__version__:
        return None, f"they were compiled for torch {built['torch']}: install datagrad_ext again, with this one"
    try:
        import datagrad_ext._nodes as found
    except ImportError as error:
        reason = f"the module did not load ({error}): install datagrad_ext again, with this torch"
        warnings.warn(f"datagrad_ext has no nodes in C++ for small networks: {reason}", RuntimeWarning, stacklevel=2)
        return None, reason
    return found, ""


nodes, _why_functions = _find_nodes()


@dataclass(frozen=True)
class Device:
    """A device of torch's dispatcher; the note tells of library and hardware, or says why there is none."""

    name: str
    library: str | None
    note: str


@dataclass(frozen=True)
class Op:
    """An op of the namespace "datagrad", and where it has a kernel; elsewhere its PyTorch reference runs."""

    name: str
    native: tuple[str, ...]

    def on(self, device: str) -> str:
        """'native' or 'reference'."""
        return "native" if device in self.native else "reference"


@dataclass(frozen=True)
class Backends:
    """What `backends()` returns; printed, it is a table."""

    torch: str
    isa: str | None
    devices: tuple[Device, ...]
    ops: tuple[Op, ...]
    build: dict[str, Any]
    choices: tuple[str, ...]

    def __str__(self) -> str:
        chosen = ["", *self.choices] if self.choices else []
        return "\n".join([*self._ops(), "", *self._devices(), "", *self._build(), *chosen])

    def _ops(self) -> list[str]:
        width = max([len("op"), *(len(op.name) for op in self.ops)])
        rows = [("op", *DEVICES), *((op.name, *map(op.on, DEVICES)) for op in self.ops)]
        return [f"{name:<{width}}  {cpu:<9}  {cuda:<9}".rstrip() for name, cpu, cuda in rows]

    def _devices(self) -> list[str]:
        return [f"{device.name:<5} {self._device(device)}" for device in self.devices]

    def _device(self, device: Device) -> str:
        named = [op.name for op in self.ops if device.name not in op.native and not op.name.startswith(APART)]
        missing = ", ".join(named)
        if not device.library:
            return f"reference: {device.note}"
        return f"native: {device.note}" + (f"; the library has no kernel for {missing}" if missing else "")

    def _build(self) -> list[str]:
        """How the libraries were built, a line for each thing known."""
        listed = {key: ", ".join(value) if isinstance(value, list) else value for key, value in self.build.items()}
        names = {
            "torch": "torch headers",
            "compiler": "C++ compiler",
            "nvcc": "nvcc",
            "cpu_isas": "instruction sets",
            "cuda_architectures": "CUDA architectures",
        }
        lines = [f"torch at run time: {self.torch}"]
        lines += [f"built with {title}: {listed[key]}" for key, title in names.items() if listed.get(key)]
        return lines + [f"not built: {part}: {reason}" for part, reason in self.build.get("not_built", {}).items()]


def backends() -> Backends:
    """Which ops run natively on which device, and why not otherwise; ask after `import datagrad_ext`."""
    return Backends(
        torch=str(torch.__version__),
        isa=_compiled.isa if _compiled else None,
        devices=(_cpu(), _cuda()),
        ops=tuple(_ops()),
        build=_compiled.build_info() if _compiled else {"not_built": {"native": _reason}},
        choices=tuple(listing()),
    )


def _ops() -> list[Op]:
    """The defined ops by name. torch has no public way to ask who implements an op."""
    prefix = "datagrad::"
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        Op(name.removeprefix(prefix), tuple(device for device in DEVICES if has_kernel(name, device))) for name in names
    ]


def _library(device: str) -> tuple[str | None, str]:
    """The loaded library of a device, or None and the reason."""
    if not _compiled:
        return None, _reason
    return _compiled.loaded.get(device), _compiled.not_loaded.get(device, "")


def _cpu() -> Device:
    library, reason = _library("CPU")
    if not library:
        return Device("CPU", None, reason)
    calls = f"; all calls go through torch's dispatcher: {_why_dispatched}" if _why_dispatched else ""
    functions = f"; no nodes in C++: {_why_functions}" if _why_functions and not calls else ""
    return Device("CPU", library, f"{library}, {torch.get_num_threads()} threads{calls}{functions}")


def _cuda() -> Device:
    library, reason = _library("CUDA")
    if not library:
        return Device("CUDA", None, reason)
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return Device("CUDA", library, f"{library}, {names if count else 'no GPU is visible'}")
