"""The table of scaling series: the cost of a step against batch or depth. A new series is one more row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from . import cases, networks
from .cases import CLASSES, Case, Subject
from .objectives import CROSS_ENTROPY_L2

BATCHES = (1, 4, 16, 64, 256, 1024)
DEPTHS = (2, 4, 8, 16, 32)
CONTESTANTS = ("plain", "eager", "ours", "objective")


@dataclass(frozen=True)
class Series:
    """A row: `case` makes a case from a value of the variable."""

    name: str
    title: str
    device: str
    variable: str
    values: tuple[int, ...]
    case: Callable[[int], Case]

    @property
    def contestants(self) -> tuple[str, ...]:
        """Those whose scaling is shown. A GPU shows them as graphs: else the host's launches are all one sees."""
        return tuple(f"{name}_graph" for name in CONTESTANTS) if self.device == "cuda" else CONTESTANTS

    def cases(self) -> Iterator[Case]:
        """One a value."""
        for value in self.values:
            yield replace(self.case(value), name=f"{self.name}_{value}")


def _case(subject: Subject, weight: float, device: str) -> Case:
    """CE + L2²; TF32 and channels_last on a GPU."""
    images = len(subject.input_shape) == 4
    layout = "channels_last" if device == "cuda" and images else "contiguous"
    precision = "tf32" if device == "cuda" else "float32"
    return Case("", subject, CROSS_ENTROPY_L2, weight, device, precision, layout)


def _batch(subject: Subject, weight: float, device: str, samples: int) -> Case:
    shape = (samples, *subject.input_shape[1:])
    return _case(replace(subject, input_shape=shape), weight, device)


def _deep_mlp(rows: int, width: int, device: str, depth: int) -> Case:
    network = partial(networks.even, width, depth, CLASSES)
    return _case(Subject(f"{depth} × {width}", network, (rows, width)), 1.0, device)


def _deep_convolutions(samples: int, width: int, device: str, depth: int) -> Case:
    network = partial(networks.even_convolutions, width, depth, 16, CLASSES)
    return _case(Subject(f"{depth} × {width}", network, (samples, 3, 16, 16)), 100.0, device)


_PANELS: dict[str, tuple[str, Callable[..., Case]]] = {
    "batch_mlp": ("batch", _batch),
    "batch_critic": ("batch", _batch),
    "depth_mlp": ("depth", _deep_mlp),
    "depth_conv": ("depth", _deep_convolutions),
}


def _row(name: str, title: str, device: str, values: tuple[int, ...], *fixed: object) -> Series:
    """A row of a panel; `fixed` are the first arguments of the function that makes its cases."""
    variable, make = _PANELS[name]
    return Series(name, title, device, variable, values, partial(make, *fixed, device))


SERIES = (
    _row("batch_mlp", "MLP 64-64-64-64-64-10", "cpu", BATCHES, cases.NARROW, 50.0),
    _row("batch_critic", "critic, 3 conv", "cpu", BATCHES[:4], cases.CRITIC, 100.0),
    _row("depth_mlp", "MLP of width 64, 32 rows", "cpu", DEPTHS, 32, 64),
    _row("depth_conv", "3×3 convolutions 16, 8×3×16×16", "cpu", DEPTHS, 8, 16),
    _row("batch_mlp", "MLP 784-784-784-10", "cuda", BATCHES, cases.PAPER, 50.0),
    _row("batch_critic", "critic 64…512", "cuda", BATCHES, cases.CRITIC64, 1000.0),
    _row("depth_mlp", "MLP of width 512, 1024 rows", "cuda", DEPTHS, 1024, 512),
    _row("depth_conv", "3×3 convolutions 64, 128×3×16×16", "cuda", DEPTHS, 128, 64),
)


def find(device: str, names: list[str] | None) -> tuple[Series, ...]:
    """The rows of a device with these names, all when None; ValueError names an unknown one."""
    rows = {series.name: series for series in SERIES if series.device == device}
    for name in names or ():
        if name not in rows:
            raise ValueError(f"no series {name!r} on {device}; the series are {', '.join(rows)}")
    return tuple(rows[name] for name in names or rows)
