"""The table of cases: network, batch, objective, precision, layout. A new case is one more row.

`weight` makes the penalty's share of the gradient large enough for the correctness gate to see it missing.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from . import networks
from .objectives import CROSS_ENTROPY_L1, CROSS_ENTROPY_L2, EIKONAL, R1, Objective

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = 10


@dataclass(frozen=True)
class Subject:
    """A network and the shape of its input, N first."""

    title: str
    network: Callable[[], nn.Module]
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A row. `precision` is a key of DTYPES (tf32: float32 with TF32 products).

    `seed` of the data: one at which no unit is so close to a kink that rounding decides on which side it is.
    """

    name: str
    subject: Subject
    objective: Objective
    weight: float
    device: str = "cpu"
    precision: str = "float32"
    layout: str = "contiguous"
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def has_convolutions(self) -> bool:
        return len(self.subject.input_shape) == 4

    def build(self) -> tuple[nn.Module, Tensor, Tensor]:
        """The same model, x and class indices t on every call, made on the case's device, in its dtype and layout."""
        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(0)
            model = self.subject.network()
            if self.seed:
                torch.manual_seed(self.seed)
            x = torch.randn(self.subject.input_shape)
            t = torch.randint(CLASSES, (self.subject.input_shape[0],))
        model, x = model.to(self.dtype), x.to(self.dtype)
        if self.has_convolutions:
            model = model.to(memory_format=LAYOUTS[self.layout])  # type: ignore[call-overload]
            x = x.contiguous(memory_format=LAYOUTS[self.layout])
        return model, x, t

    def on_few(self, samples: int) -> "Case":
        """The same row on the CPU with so many samples: enough to try it out."""
        shape = (samples, *self.subject.input_shape[1:])
        return replace(self, device="cpu", subject=replace(self.subject, input_shape=shape))

    def settings(self) -> AbstractContextManager[None]:
        """The best settings a baseline can have on this row; restored afterwards."""
        return settings_of(self.precision)


@contextmanager
def settings_of(precision: str) -> Iterator[None]:
    """cuDNN's search, and TF32 products if the precision says so; restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


_paper = partial(networks.mlp, 784, 784, 784, CLASSES)
_narrow = partial(networks.mlp, 64, 64, 64, 64, 64, CLASSES)
_narrow_normalised = partial(networks.normalised_mlp, 64, 64, 64, CLASSES)
_critic = partial(networks.critic, (32, 64, 128), 32)
_vgg = partial(networks.vgg, ((16, 16), (32, 32)), 32, CLASSES)
_normalised = partial(networks.normalised, (32, 64, 128), 32, CLASSES)
_resnet = partial(networks.resnet, (16, 32, 64), 1, CLASSES)
_resnet18 = partial(networks.resnet, (64, 128, 256, 512), 2, CLASSES)
_surface = partial(networks.signed_distance, 256, 4)

PAPER = Subject("MLP 784-784-784-10, 128 rows", _paper, (128, 784))
NARROW = Subject("MLP 64-64-64-64-64-10, 4096 rows", _narrow, (4096, 64))
MIDDLE = Subject("MLP 64-64-64-64-64-10, 256 rows", _narrow, (256, 64))
SMALL = Subject("MLP 64-64-64-64-64-10, 32 rows", _narrow, (32, 64))
ONE = Subject("MLP 64-64-64-64-64-10, 1 row", _narrow, (1, 64))
EVALUATED = Subject("MLP 64-64-64-10 with BN in evaluation, 32 rows", _narrow_normalised, (32, 64))
CRITIC = Subject("critic, 3 conv, 32×3×32×32", partial(_critic, CLASSES), (32, 3, 32, 32))
CRITIC_LINEAR = Subject("critic, 3 conv, 32×3×32×32", partial(_critic, 1), (32, 3, 32, 32))
VGG = Subject("vgg, 4 conv, 32×3×32×32", _vgg, (32, 3, 32, 32))
CONVBN = Subject("conv + BN, 3 conv, 32×3×32×32", _normalised, (32, 3, 32, 32))
RESNET = Subject("resnet 16-32-64, 9 conv, 16×3×32×32", _resnet, (16, 3, 32, 32))
CRITIC_ONE = Subject("critic, 3 conv, 1×3×32×32", partial(_critic, CLASSES), (1, 3, 32, 32))
RESNET18_ONE = Subject("resnet 64…512, 20 conv, 1×3×32×32", _resnet18, (1, 3, 32, 32))
SURFACE = Subject("SDF 3-256×4-1 softplus, 4096 points", _surface, (4096, 3))

CPU_CASES = (
    Case("mlp_paper", PAPER, CROSS_ENTROPY_L1, 0.5),
    Case("mlp_narrow", NARROW, CROSS_ENTROPY_L2, 50.0),
    Case("mlp_middle", MIDDLE, CROSS_ENTROPY_L2, 50.0),
    Case("mlp_small", SMALL, CROSS_ENTROPY_L2, 50.0),
    Case("mlp_one", ONE, CROSS_ENTROPY_L2, 50.0),
    Case("mlp_bn_evaluated", EVALUATED, CROSS_ENTROPY_L2, 50.0),
    Case("critic", CRITIC, CROSS_ENTROPY_L2, 100.0),
    Case("critic_one", CRITIC_ONE, CROSS_ENTROPY_L2, 100.0),
    Case("critic_r1", CRITIC_LINEAR, R1, 5.0),
    Case("vgg", VGG, CROSS_ENTROPY_L2, 500.0),
    Case("vgg_channels_last", VGG, CROSS_ENTROPY_L2, 500.0, layout="channels_last"),
    Case("convbn", CONVBN, CROSS_ENTROPY_L2, 100.0),
    Case("convbn_channels_last", CONVBN, CROSS_ENTROPY_L2, 100.0, layout="channels_last"),
    Case("resnet", RESNET, CROSS_ENTROPY_L2, 100.0),
    Case("resnet_channels_last", RESNET, CROSS_ENTROPY_L2, 100.0, layout="channels_last"),
    Case("resnet18_one", RESNET18_ONE, CROSS_ENTROPY_L2, 100.0, seed=1),
    Case("sdf", SURFACE, EIKONAL, 5.0),
)

_critic64 = partial(networks.critic, (64, 128, 256, 512), 64)
_vgg32 = partial(networks.vgg, ((64, 64), (128, 128), (256, 256), (512, 512)), 32)

CRITIC64 = Subject("critic 64…512, 128×3×64×64", partial(_critic64, CLASSES), (128, 3, 64, 64))
CRITIC64_LINEAR = Subject("critic 64…512, 128×3×64×64", partial(_critic64, 1), (128, 3, 64, 64))
VGG32 = Subject("vgg 64…512, 8 conv, 256×3×32×32", partial(_vgg32, CLASSES), (256, 3, 32, 32))
VGG32_LINEAR = Subject("vgg 64…512, 8 conv, 256×3×32×32", partial(_vgg32, 1), (256, 3, 32, 32))
NARROW_LONG = Subject("MLP 64-64-64-64-64-10, 65536 rows", _narrow, (65536, 64))
WIDE = Subject("MLP 4096×4-10, 8192 rows", partial(networks.mlp, *[4096] * 5, CLASSES), (8192, 4096))
CONVBN64 = Subject(
    "conv + BN, 4 conv of 64, 128×3×32×32",
    partial(networks.normalised, (64, 64, 64, 64), 32, CLASSES, stride=1),
    (128, 3, 32, 32),
)
RESNET18 = Subject(
    "ResNet-18, 128×3×32×32",
    _resnet18,
    (128, 3, 32, 32),
)
SURFACE_DEEP = Subject(
    "SDF 3-256×7-1 softplus, 65536 points", partial(networks.signed_distance, 256, 7), (65536, 3)
)


# Name, subject, objective, weight; each in every precision, convolutions in channels_last
_ON_CUDA = (
    ("critic64", CRITIC64, CROSS_ENTROPY_L2, 1000.0),
    ("critic64_r1", CRITIC64_LINEAR, R1, 30.0),
    ("vgg32", VGG32, CROSS_ENTROPY_L2, 3e5),
    ("vgg32_r1", VGG32_LINEAR, R1, 3e4),
    ("convbn", CONVBN64, CROSS_ENTROPY_L2, 100.0),
    ("resnet18", RESNET18, CROSS_ENTROPY_L2, 1000.0),
    ("mlp_paper", PAPER, CROSS_ENTROPY_L1, 0.5),
    ("mlp_narrow", NARROW_LONG, CROSS_ENTROPY_L2, 50.0),
    ("mlp_wide", WIDE, CROSS_ENTROPY_L2, 500.0),
    ("sdf", SURFACE_DEEP, EIKONAL, 50.0),
)


def _on_cuda(precision: str) -> Iterator[Case]:
    for name, subject, objective, weight in _ON_CUDA:
        layout = "channels_last" if len(subject.input_shape) == 4 else "contiguous"
        yield Case(f"{name}_{precision}", subject, objective, weight, "cuda", precision, layout)


CUDA_CASES = (*_on_cuda("bf16"), *_on_cuda("tf32"))

CASES = CPU_CASES + CUDA_CASES


def cases_of(device: str) -> tuple[Case, ...]:
    """The rows of one device type, "cpu" or "cuda"."""
    return tuple(case for case in CASES if case.device == device)


def find(device: str, names: list[str] | None) -> tuple[Case, ...]:
    """The rows with these names, all of the device when None; ValueError names an unknown one."""
    rows = {case.name: case for case in cases_of(device)}
    for name in names or ():
        if name not in rows:
            raise ValueError(f"no case {name!r} on {device}; the cases are {', '.join(rows)}")
    return tuple(rows.values()) if names is None else tuple(rows[name] for name in names)
