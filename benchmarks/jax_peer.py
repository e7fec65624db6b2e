"""The parent's side of the JAX peer: describes a case, starts jax_worker.py, asks it for gradients and times.

JAX_PYTHON is the interpreter that has JAX; by default it is this one. Where there is no JAX the peer is listed as
absent with the reason.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .cases import Case
from .networks import Residual

WORKER = Path(__file__).with_name("jax_worker.py")
PLATFORMS = {"cpu": "cpu", "cuda": "cuda"}


class Absent(RuntimeError):
    """What a contestant needs is not installed."""


def describe(module: nn.Module, numbers: dict[Tensor, int]) -> list[Any]:
    """The module as jax_worker.py reads it; ValueError names a module that has no form there."""

    def number(parameter: Tensor | None) -> int | None:
        return None if parameter is None else numbers[parameter]

    match module:
        case nn.Sequential():
            return [layer for child in module for layer in describe(child, numbers)]
        case Residual():
            stages = zip((module.first, module.second), module.norms, strict=True)
            first, second = ([*describe(stage, numbers), *describe(norm, numbers)] for stage, norm in stages)
            return [["residual", [*first, ["leaky_relu", 0.0], *second], describe(module.shortcut, numbers)]]
        case nn.Linear():
            return [["linear", number(module.weight), number(module.bias)]]
        case nn.Conv2d(groups=1, dilation=(1, 1)):
            return [["convolution", number(module.weight), number(module.bias), module.stride, module.padding]]
        case nn.BatchNorm2d():
            return [["batch_norm", number(module.weight), number(module.bias), module.eps]]
        case nn.BatchNorm1d(training=False):
            return [["running_norm", number(module.weight), number(module.bias), module.eps]]
        case nn.ReLU():
            return [["leaky_relu", 0.0]]
        case nn.LeakyReLU():
            return [["leaky_relu", module.negative_slope]]
        case nn.Softplus():
            return [["softplus", module.beta]]
        case nn.MaxPool2d():
            return [["max_pool", module.kernel_size]]
        case nn.AdaptiveAvgPool2d(output_size=1):
            return [["average"]]
        case nn.Flatten():
            return [["flatten"]]
    raise ValueError(f"jax_peer.describe has no row for {type(module).__name__}")


class Worker:
    """A running jax_worker.py; Absent where it finds no JAX for the device."""

    def __init__(self, device: str, command: tuple[str, ...] = ()) -> None:
        command = command or (os.environ.get("JAX_PYTHON") or sys.executable, str(WORKER))
        self._process = subprocess.Popen(
            [*command, PLATFORMS[device]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        found = self._answer()
        if "absent" in found:
            self.close()
            raise Absent(f"no JAX for {device}: {found['absent']}")
        self.title = f"JAX {found['version']} on {found['device']}"

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request; RuntimeError with what went wrong there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"JAX: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the JAX process ended with {self._process.returncode} and without an answer")
        return json.loads(line)


@functools.cache
def running(device: str) -> Worker:
    """One worker a device for all cases: importing JAX takes longer than most steps. It ends with this process."""
    worker = Worker(device)
    atexit.register(worker.close)
    return worker


def load(worker: Worker, case: Case) -> None:
    """Send the case: the same model, x and t that every contestant builds."""
    model, x, t = case.build()
    parameters = list(model.parameters())
    arrays = {"x": x, "t": t, **{f"p{i}": p for i, p in enumerate(parameters)}}
    network = describe(model, {p: i for i, p in enumerate(parameters)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.npz")
        numpy.savez(path, **{name: _array(tensor) for name, tensor in arrays.items()})
        worker.ask(
            "load",
            arrays=str(path),
            network=network,
            objective=case.objective.formula,
            weight=case.weight,
            precision=case.precision,
        )


def gradients(worker: Worker, device: str) -> tuple[Tensor, ...]:
    """The loaded step's parameter gradients as float32 tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gradients.npz")
        worker.ask("gradients", to=str(path))
        with numpy.load(path) as data:
            return tuple(torch.from_numpy(data[f"g{i}"]).to(device) for i in range(len(data)))


def seconds(worker: Worker, calls: int) -> float:
    """What so many calls took there."""
    return float(worker.ask("run", calls=calls)["seconds"])


def peak_bytes(worker: Worker) -> int:
    """What the compiled step needs beyond its arguments, by XLA's own account."""
    return int(worker.ask("peak")["bytes"])


def _array(tensor: Tensor) -> numpy.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
