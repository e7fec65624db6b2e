"""Tables of layers, networks, losses, penalties and objectives: the rows over which the test bodies run.

A row is data. To test a new layer, activation, network or penalty add one row here; no test body changes.
Letters: x input, y output, J = dL/dx data gradient, N batch. Everything is built in float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations


def data(*shape: int, seed: int = 1) -> Tensor:
    """Normal float64 numbers that do not touch the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A module and the shapes of its inputs.

    `opaque` says whether program() must list an opaque layer: False where the project has rules for all
    of the module, None where both are fine.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((4, 6),)
    train: bool = True
    opaque: bool | None = False

    def build(self) -> nn.Module:
        """The module in float64, the same numbers at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().double().train(self.train)

    def inputs(self, seed: int = 1) -> list[Tensor]:
        return [data(*shape, seed=seed + k) for k, shape in enumerate(self.shapes)]


def ids(row: object) -> str:
    return str(getattr(row, "name", getattr(row, "__name__", row)))


class Body(nn.Module):
    """A user's module with one input: forward is body(self, x), submodules and parameters are attributes."""

    def __init__(self, body: Callable[..., object], **attributes: object) -> None:
        super().__init__()
        self.body = body
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.body(self, x)


class Body2(Body):
    """The same with two inputs."""

    def forward(self, x, z):
        return self.body(self, x, z)


# --------------------------------------------------------------------------------------------- activations

# name, module, opaque (see Case)
ACTIVATIONS: list[tuple[str, Callable[[], nn.Module], bool | None]] = [
    ("relu", nn.ReLU, False),
    ("relu_inplace", lambda: nn.ReLU(inplace=True), False),
    ("leaky_relu", nn.LeakyReLU, False),
    ("leaky_relu_0.3", lambda: nn.LeakyReLU(0.3), False),
    ("leaky_relu_0", lambda: nn.LeakyReLU(0.0), None),
    ("leaky_relu_1", lambda: nn.LeakyReLU(1.0), False),
    ("leaky_relu_negative", lambda: nn.LeakyReLU(-0.5), False),
    ("leaky_relu_inplace", lambda: nn.LeakyReLU(0.1, inplace=True), False),
    ("softplus", nn.Softplus, False),
    ("softplus_beta", lambda: nn.Softplus(beta=3.0), False),
    ("softplus_threshold", lambda: nn.Softplus(beta=2.0, threshold=1.0), False),
    ("tanh", nn.Tanh, False),
    ("sigmoid", nn.Sigmoid, False),
    ("elu", nn.ELU, False),
    ("elu_alpha", lambda: nn.ELU(alpha=0.4), False),
    ("elu_inplace", lambda: nn.ELU(inplace=True), False),
    ("silu", nn.SiLU, False),
    ("gelu", nn.GELU, False),
    ("gelu_tanh", lambda: nn.GELU(approximate="tanh"), False),
    ("relu6", nn.ReLU6, False),
    ("hardtanh", nn.Hardtanh, False),
    ("prelu", nn.PReLU, False),
    ("selu", nn.SELU, False),
    ("celu", nn.CELU, False),
    ("mish", nn.Mish, False),
    ("softmax", lambda: nn.Softmax(dim=1), False),
    ("log_softmax", lambda: nn.LogSoftmax(dim=1), False),
    ("glu", lambda: nn.GLU(dim=1), False),
    ("hardtanh_bounds", lambda: nn.Hardtanh(-0.4, 0.7), False),
    ("hardswish", nn.Hardswish, False),
    ("celu_alpha", lambda: nn.CELU(0.3), False),
    ("log_sigmoid", nn.LogSigmoid, False),
    ("softsign", nn.Softsign, False),
    ("rrelu", nn.RReLU, True),
]

# -------------------------------------------------------------------------------------------------- layers

_CONV_OPTIONS: dict[str, dict] = {
    "plain": dict(kernel_size=3),
    "no_bias": dict(kernel_size=2, bias=False),
    "one_by_one": dict(kernel_size=1),
    "stride": dict(kernel_size=3, stride=2, padding=1),
    "stride_remainder": dict(kernel_size=2, stride=3),
    "wide_padding": dict(kernel_size=2, padding=3),
    "dilation": dict(kernel_size=2, dilation=2, padding=1),
    "groups": dict(kernel_size=3, groups=2, padding=1),
    "depthwise": dict(kernel_size=3, groups=4, padding=1, out_channels=8),
    "valid": dict(kernel_size=3, padding="valid", stride=2),
    "same": dict(kernel_size=3, padding="same"),
    "same_even": dict(kernel_size=4, padding="same"),
    "same_even_dilation": dict(kernel_size=2, padding="same", dilation=3),
    "same_groups": dict(kernel_size=2, padding="same", groups=2, bias=False),
}
_TRANSPOSED_OPTIONS: dict[str, dict] = {
    "plain": dict(kernel_size=3),
    "no_bias": dict(kernel_size=2, bias=False),
    "stride": dict(kernel_size=3, stride=2, padding=1),
    "output_padding": dict(kernel_size=3, stride=2, padding=1, output_padding=1),
    "dilation": dict(kernel_size=2, dilation=2, stride=2, output_padding=1),
    "groups": dict(kernel_size=2, stride=2, groups=2),
    "depthwise": dict(kernel_size=2, groups=4, out_channels=4),
}
_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_SIZES = {1: (7,), 2: (6, 5), 3: (4, 3, 5)}


def _conv_rows() -> Iterator[Case]:
    for kinds, table, stem in (
        (_CONVS, _CONV_OPTIONS, "conv"),
        (_TRANSPOSED, _TRANSPOSED_OPTIONS, "conv_transpose"),
    ):
        for rank, kind in kinds.items():
            for name, options in table.items():
                options = {"in_channels": 4, "out_channels": 6, **options}
                yield Case(
                    f"{stem}{rank}d_{name}", lambda k=kind, o=options: k(**o), ((2, 4, *_SIZES[rank]),)
                )


def _pool_rows() -> Iterator[Case]:
    maxima = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
    means = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
    adaptive = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
    sizes = {1: (9,), 2: (7, 6), 3: (5, 4, 5)}
    both = {
        "plain": dict(kernel_size=2),
        "overlapping": dict(kernel_size=3, stride=1),
        "padding": dict(kernel_size=3, stride=2, padding=1),
        "ceil_mode": dict(kernel_size=3, stride=2, ceil_mode=True),
        "ceil_mode_padding": dict(kernel_size=2, stride=2, padding=1, ceil_mode=True),
    }
    tables = [
        ("max_pool", maxima, {**both, "dilation": dict(kernel_size=2, stride=1, dilation=2)}),
        (
            "avg_pool",
            means,
            {**both, "exclude_pad": dict(kernel_size=3, stride=2, padding=1, count_include_pad=False)},
        ),
        ("adaptive_avg_pool", adaptive, {"one": dict(output_size=1), "uneven": dict(output_size=3)}),
    ]
    for stem, kinds, table in tables:
        for rank, kind in kinds.items():
            for name, options in table.items():
                yield Case(f"{stem}{rank}d_{name}", lambda k=kind, o=options: k(**o), ((2, 3, *sizes[rank]),))


# name, module, shape of x
_NORMS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("batch_norm1d", lambda: nn.BatchNorm1d(6), (4, 6)),
    ("batch_norm1d_sequence", lambda: nn.BatchNorm1d(3, eps=0.1), (2, 3, 5)),
    ("batch_norm2d", lambda: nn.BatchNorm2d(4), (2, 4, 5, 6)),
    ("batch_norm3d", lambda: nn.BatchNorm3d(2, momentum=0.7), (2, 2, 3, 2, 4)),
    ("batch_norm2d_cumulative", lambda: nn.BatchNorm2d(4, momentum=None), (2, 4, 5, 6)),
    ("batch_norm2d_no_affine", lambda: nn.BatchNorm2d(4, affine=False), (2, 4, 5, 6)),
    ("batch_norm2d_no_bias", lambda: nn.BatchNorm2d(4, bias=False), (2, 4, 3, 2)),
    ("batch_norm2d_no_stats", lambda: nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 5, 6)),
    ("group_norm", lambda: nn.GroupNorm(2, 4), (2, 4, 5, 6)),
    ("group_norm_2d", lambda: nn.GroupNorm(2, 6, eps=0.02), (3, 6)),
    ("group_norm_one_group", lambda: nn.GroupNorm(1, 4), (2, 4, 3, 3)),
    ("group_norm_no_affine", lambda: nn.GroupNorm(3, 6, affine=False), (2, 6, 5)),
    ("group_norm_5d", lambda: nn.GroupNorm(2, 4), (2, 4, 2, 3, 2)),
    ("layer_norm", lambda: nn.LayerNorm(6), (4, 6)),
    ("layer_norm_eps", lambda: nn.LayerNorm(6, eps=0.3), (1, 6)),
    ("layer_norm_sequence", lambda: nn.LayerNorm(6), (2, 3, 6)),
    ("layer_norm_images", lambda: nn.LayerNorm((4, 3, 2)), (2, 4, 3, 2)),
    ("layer_norm_two_dims", lambda: nn.LayerNorm([3, 6], bias=False), (2, 4, 3, 6)),
    ("layer_norm_no_affine", lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    ("layer_norm_vector", lambda: nn.LayerNorm(6), (6,)),
    ("instance_norm1d", lambda: nn.InstanceNorm1d(3), (2, 3, 5)),
    ("instance_norm2d", lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 5, 6)),
    ("instance_norm3d", lambda: nn.InstanceNorm3d(2, affine=True, bias=False), (2, 2, 3, 2, 4)),
    (
        "instance_norm2d_stats",
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (2, 4, 5, 6),
    ),
]


def random_numbers(module: nn.Module) -> nn.Module:
    """Random weights, biases and statistics in place of the ones and zeros that normalisations begin with."""
    with torch.no_grad():
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape) + 0.5 if "var" in name else torch.randn(t.shape))
    return module


def _norm_rows() -> Iterator[Case]:
    for name, make, shape in _NORMS:
        yield Case(name, lambda make=make: random_numbers(make()), (shape,))
        if "batch_norm" in name or "stats" in name:
            yield Case(f"{name}_eval", lambda make=make: random_numbers(make()), (shape,), train=False)


def _upsample_rows() -> Iterator[Case]:
    modes = {1: ("nearest", "nearest-exact", "linear"), 3: ("nearest", "nearest-exact", "trilinear")}
    modes[2] = ("nearest", "nearest-exact", "bilinear", "bicubic")
    for rank, names in modes.items():
        for mode in names:
            aligned = [None] if "nearest" in mode else [False, True]
            for corners in aligned:
                for size in ({"scale_factor": 1.7}, {"size": (3, 7, 2)[:rank]}):
                    options = dict(mode=mode, align_corners=corners, **size)
                    name = f"upsample{rank}d_{mode}_{'_'.join(size)}{'_aligned' if corners else ''}"
                    yield Case(name, lambda o=options: nn.Upsample(**o), ((2, 3, *_SIZES[rank]),))


def _padding_rows() -> Iterator[Case]:
    kinds = {
        "zero": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        "reflection": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
        "replication": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
        "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    }
    for stem, modules in kinds.items():
        for rank, kind in enumerate(modules, start=1):
            sides = (2, 1, 0, 2, 1, 1)[: 2 * rank]
            yield Case(f"{stem}_pad{rank}d", lambda k=kind, p=sides: k(p), ((2, 3, *_SIZES[rank]),))


_IMAGE = ((2, 4, 5, 6),)
# Shapes for which the CPU has own products (layers/few.py): few output pixels, few products, few input channels.
_FEW: list[Case] = [
    Case("conv2d_few_pixels", lambda: nn.Conv2d(3, 20, 3), ((1, 3, 5, 4),)),
    Case("conv2d_few_pixels_no_bias", lambda: nn.Conv2d(5, 16, 2, stride=2, bias=False), ((2, 5, 6, 4),)),
    Case("conv2d_few_products", lambda: nn.Conv2d(6, 8, 3, padding=1), ((2, 6, 6, 5),)),
    Case("conv2d_few_channels", lambda: nn.Conv2d(1, 3, 4, stride=2, padding=1), ((3, 1, 8, 6),)),
]

LAYERS: list[Case] = [
    *_FEW,
    Case("linear", lambda: nn.Linear(6, 5)),
    Case("linear_no_bias", lambda: nn.Linear(6, 5, bias=False)),
    Case("linear_sequence", lambda: nn.Linear(6, 5), ((2, 3, 6),)),
    Case("linear_4d", lambda: nn.Linear(6, 5), ((2, 3, 2, 6),)),
    Case("linear_one_output", lambda: nn.Linear(6, 1)),
    *_conv_rows(),
    Case("conv2d_mixed", lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (0, 1), (1, 3)), _IMAGE),
    *(
        Case(
            f"conv{rank}d_{mode}",
            lambda k=kind, m=mode: k(4, 6, 3, padding=2, padding_mode=m),
            ((2, 4, *_SIZES[rank]),),
        )
        for mode in ("circular", "reflect", "replicate")
        for rank, kind in _CONVS.items()
    ),
    Case(
        "conv2d_same_circular",
        lambda: nn.Conv2d(4, 6, 2, padding="same", padding_mode="circular", groups=2),
        _IMAGE,
    ),
    Case("prelu_channels", lambda: nn.PReLU(4), _IMAGE),
    Case("prelu_matrix", lambda: nn.PReLU(6)),
    *(
        Case(f"{name}_{len(shape)}d", make, (shape,), opaque=opaque)
        for name, make, opaque in ACTIVATIONS
        for shape in ((3, 6), (2, 4, 3, 3))
        if "inplace" not in name
    ),
    *_pool_rows(),
    Case("avg_pool2d_divisor", lambda: nn.AvgPool2d(2, divisor_override=3), _IMAGE),
    Case("adaptive_avg_pool2d_none", lambda: nn.AdaptiveAvgPool2d((None, 2)), _IMAGE),
    Case("adaptive_avg_pool2d_grow", lambda: nn.AdaptiveAvgPool2d((7, 9)), _IMAGE),
    Case("adaptive_max_pool2d", lambda: nn.AdaptiveMaxPool2d(2), _IMAGE, opaque=True),
    Case("lp_pool2d", lambda: nn.LPPool2d(2, 2), _IMAGE, opaque=True),
    Case("flatten", nn.Flatten, _IMAGE),
    Case("flatten_part", lambda: nn.Flatten(2), _IMAGE),
    Case("flatten_2d", nn.Flatten),
    Case("unflatten", lambda: nn.Unflatten(1, (2, 3))),
    Case("identity", nn.Identity),
    Case("dropout", lambda: nn.Dropout(0.4)),
    Case("dropout_0", lambda: nn.Dropout(0.0)),
    Case("dropout_1", lambda: nn.Dropout(1.0)),
    Case("dropout_eval", lambda: nn.Dropout(0.4), train=False),
    Case("dropout2d", lambda: nn.Dropout2d(0.4), _IMAGE),
    Case("dropout2d_1", lambda: nn.Dropout2d(1.0), _IMAGE),
    Case("dropout3d", lambda: nn.Dropout3d(0.4), ((2, 3, 2, 2, 2),), opaque=True),
    Case("alpha_dropout", lambda: nn.AlphaDropout(0.4), opaque=True),
    *_norm_rows(),
    Case("local_response_norm", lambda: nn.LocalResponseNorm(2), _IMAGE, opaque=True),
    *_upsample_rows(),
    Case(
        "upsample_recomputed",
        lambda: nn.Upsample(scale_factor=1.3, recompute_scale_factor=True),
        _IMAGE,
        opaque=True,
    ),
    Case("pixel_shuffle", lambda: nn.PixelShuffle(2), _IMAGE),
    Case("pixel_unshuffle", lambda: nn.PixelUnshuffle(2), ((2, 3, 4, 6),)),
    Case("channel_shuffle", lambda: nn.ChannelShuffle(2), _IMAGE),
    *_padding_rows(),
    Case("unfold", lambda: nn.Unfold(2), _IMAGE, opaque=True),
]

# ------------------------------------------------------------------------------------------------ networks


def mlp(
    activation: Callable[[], nn.Module] = nn.ReLU, width: int = 8, outputs: int = 5, bias: bool = True
) -> nn.Module:
    """6 - width - width - outputs with a linear head."""
    return nn.Sequential(
        nn.Linear(6, width, bias=bias),
        activation(),
        nn.Linear(width, width, bias=bias),
        activation(),
        nn.Linear(width, outputs, bias=bias),
    )


def glu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GLU(dim=1), nn.Linear(4, 5))


def conv_net() -> nn.Module:
    """Strided critic with a linear head, for (N, 3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 6, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def norm_conv_net(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Convolution, normalisation, ReLU, and the same with LeakyReLU at half the size, for (N, 3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=2, padding=1, bias=False),
        norm(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, padding=1),
        norm(5),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(80, 5),
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(24, 5),
    )


class BasicBlock(nn.Module):
    """Residual block as in torchvision: the second ReLU is the first one again, in place."""

    def __init__(self, channels: int, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, 2, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(channels, outputs, 1, 2, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.down(x)
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += shortcut
        return self.relu(out)


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        BasicBlock(4, 6, norm),
        BasicBlock(6, 8, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(8, 5),
    )


class ConvNeXt(nn.Module):
    """A stem and a block with a depthwise convolution, normalised over channels, scaled, for (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.block = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + (self.scale * self.block(self.norm(self.depthwise(h).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.head(F.layer_norm(h.mean((2, 3)), (4,)))


class MobileNet(nn.Module):
    """Batch norm, Hardswish and a squeeze-excitation gate around a depthwise convolution, for (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Conv2d(3, 6, 1))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + F.hardswish(self.depthwise(h))
        h *= F.relu6(self.gate(h) + 3) / 6
        return self.head(h.mean((2, 3)))


class Branching(nn.Module):
    """Control flow that depends on data: does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(nn.Softplus, outputs=6), mlp(nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if float(h.detach().sum()) > -1e9:
            h = h * 2
        for _ in range(int(h.shape[0] > 1) + 1):
            h = h + self.first(h)
        return self.second(h)


class Scaled(nn.Module):
    """Parameters used directly: scaled weights, a gain, a learned offset, an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6) / 2)
        self.scale = nn.Parameter(torch.randn(8, 1))
        self.offset = nn.Parameter(torch.randn(8))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(8, 5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.weight * self.scale, self.offset)
        return self.head(F.softplus(h) * self.gain + self.offset)


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.again(F.relu(self.encoder(x))))
        return F.linear(h, self.encoder.weight.t())


def frozen(model: nn.Module, *names: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(prefix) for prefix in names))
    return model


def _l(inputs: int = 6, outputs: int = 6) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def _p(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape) / 2)


_PAIR = ((4, 6), (4, 6))
_PHOTO = ((3, 3, 8, 8),)

MLPS: list[Case] = [
    *(
        Case(f"mlp_{name}", (lambda make=make: mlp(make)) if name != "glu" else glu_mlp, opaque=opaque)
        for name, make, opaque in ACTIVATIONS
    ),
    Case("mlp_no_bias", lambda: mlp(bias=False)),
    Case("mlp_smooth_no_bias", lambda: mlp(nn.SiLU, bias=False)),
    Case("mlp_linear", lambda: nn.Linear(6, 5)),
    Case("mlp_deep_linear", lambda: nn.Sequential(_l(), _l(), _l(6, 5))),
    Case("mlp_activation_at_end", lambda: nn.Sequential(mlp(), nn.ReLU())),
    Case("mlp_smooth_at_end", lambda: nn.Sequential(mlp(nn.Tanh), nn.Softplus())),
    Case("mlp_activation_first", lambda: nn.Sequential(nn.SiLU(), mlp(nn.ReLU))),
    Case("mlp_two_activations", lambda: nn.Sequential(_l(), nn.ReLU(), nn.Tanh(), nn.LeakyReLU(), _l(6, 5))),
    Case(
        "mlp_nested",
        lambda: nn.Sequential(nn.Sequential(nn.Sequential(_l(), nn.GELU())), nn.Sequential(_l(6, 5))),
    ),
    Case("mlp_dropout", lambda: nn.Sequential(_l(), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2), _l(6, 5))),
    Case(
        "mlp_dropout_inplace", lambda: nn.Sequential(_l(), nn.Dropout(0.5, inplace=True), nn.Tanh(), _l(6, 5))
    ),
    Case("mlp_dropout_eval", lambda: nn.Sequential(_l(), nn.Dropout(0.5), nn.ELU(), _l(6, 5)), train=False),
    Case("mlp_sequence", lambda: mlp(nn.GELU), ((2, 3, 6),)),
    Case("mlp_one_row", lambda: mlp(nn.Tanh), ((1, 6),)),
    Case("mlp_layer_norm", lambda: nn.Sequential(_l(), nn.LayerNorm(6), nn.ReLU(), _l(6, 5))),
    Case(
        "mlp_batch_norm",
        lambda: nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), _l(6, 5)),
    ),
    Case(
        "mlp_batch_norm_eval",
        lambda: random_numbers(nn.Sequential(_l(), nn.BatchNorm1d(6), nn.Softplus(), _l(6, 5))),
        train=False,
    ),
    Case(
        "mlp_batch_norms_eval",
        lambda: random_numbers(
            nn.Sequential(
                *[nn.Linear(6, 7, bias=False), nn.BatchNorm1d(7), nn.LeakyReLU(0.1), _l(7, 6), nn.Tanh()],
                *[_l(), nn.BatchNorm1d(6, affine=False, eps=0.1), nn.ReLU(), _l(6, 5), nn.BatchNorm1d(5)],
            )
        ),
        train=False,
    ),
    Case(
        "mlp_frozen_norms_eval",
        lambda: frozen(
            random_numbers(
                nn.Sequential(_l(), nn.BatchNorm1d(6), nn.ReLU(), _l(), nn.BatchNorm1d(6), nn.Softplus(), _l(6, 5))
            ),
            "0",
            "1",
            "4.weight",
            "6",
        ),
        train=False,
    ),
    Case("mlp_group_norm", lambda: nn.Sequential(_l(), nn.GroupNorm(2, 6), nn.SiLU(), _l(6, 5))),
    Case(
        "mlp_norm_first", lambda: nn.Sequential(nn.BatchNorm1d(6), _l(), nn.Tanh(), nn.LayerNorm(6), _l(6, 5))
    ),
    Case("mlp_norm_last", lambda: nn.Sequential(_l(), nn.ReLU(), nn.LayerNorm(6))),
    Case("mlp_frozen_norm", lambda: frozen(nn.Sequential(_l(), nn.BatchNorm1d(6), nn.Tanh(), _l(6, 5)), "1")),
    Case(
        "mlp_frozen_norm_weight", lambda: frozen(nn.Sequential(_l(), nn.LayerNorm(6), nn.Tanh()), "1.weight")
    ),
]

CONV_NETS: list[Case] = [
    Case("conv_critic", conv_net, _PHOTO),
    Case("conv_vgg", vgg, _PHOTO),
    Case(
        "conv_1d",
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 5)),
        ((3, 2, 8),),
    ),
    Case(
        "conv_3d",
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(4, 5)),
        ((3, 2, 3, 4, 3),),
    ),
    Case(
        "conv_generator",
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3, 1)),
            nn.ConvTranspose2d(2, 4, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 4, 2, 1, groups=1),
            nn.Tanh(),
        ),
    ),
    Case(
        "conv_depthwise_separable",
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, groups=3),
            nn.SiLU(),
            nn.Conv2d(6, 4, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(256, 5),
        ),
        _PHOTO,
    ),
    Case(
        "conv_fully_convolutional",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 2, 1)),
        _PHOTO,
    ),
    Case(
        "conv_relu_before_max_pool",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 1)),
        _PHOTO,
    ),
    Case("conv_resnet_batch_norm", lambda: resnet(nn.BatchNorm2d), _PHOTO),
    Case("conv_resnet_batch_norm_eval", lambda: resnet(nn.BatchNorm2d), _PHOTO, train=False),
    Case("conv_resnet_group_norm", lambda: resnet(lambda c: nn.GroupNorm(2, c)), _PHOTO),
    Case(
        "conv_resnet_instance_norm",
        lambda: resnet(lambda c: nn.InstanceNorm2d(c, affine=True)),
        ((3, 3, 16, 16),),
    ),
    Case("conv_next", ConvNeXt, _PHOTO),
    Case("conv_mobile", MobileNet, _PHOTO),
    Case("conv_mobile_eval", lambda: random_numbers(MobileNet()), _PHOTO, train=False),
    Case("conv_batch_norm_relu", lambda: norm_conv_net(nn.BatchNorm2d), _PHOTO),
    Case(
        "conv_batch_norm_relu_eval",
        lambda: random_numbers(norm_conv_net(nn.BatchNorm2d)),
        _PHOTO,
        train=False,
    ),
    Case("conv_layer_norm_critic", lambda: norm_conv_net(lambda c: nn.LayerNorm((c, 4, 4))), _PHOTO),
    Case("conv_resnet_plain", lambda: resnet(lambda c: nn.Identity()), _PHOTO),
    Case(
        "conv_global_mean",
        lambda: Body(
            lambda m, x: m.head(F.relu(m.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 6, 3), head=_l(6, 5)
        ),
        _PHOTO,
    ),
    Case(
        "conv_functional_pools",
        lambda: Body(
            lambda m, x: F.adaptive_avg_pool2d(
                F.avg_pool2d(F.max_pool2d(F.relu(m.conv(x)), 2), 2, stride=1), 1
            ).flatten(1),
            conv=nn.Conv2d(3, 6, 3),
        ),
        _PHOTO,
    ),
]


def _dag(
    name: str, body: Callable[..., object], opaque: bool | None = False, shapes=((4, 6),), **modules
) -> Case:
    """A row for a forward written out; `modules` maps attribute names to factories."""
    kind = Body if len(shapes) == 1 else Body2
    return Case(
        f"dag_{name}", lambda: kind(body, **{k: make() for k, make in modules.items()}), shapes, opaque=opaque
    )


def _in_place_matters(m, x):
    h = m.a(x)
    r = m.relu(h)
    return m.b(r + h * 3)


def _in_place_by_position(m, x):
    h = m.a(x)
    r = F.relu(h, True)
    return m.b(r + h * 3)


def _in_place_seen_by_a_view(m, x):
    h = m.a(x)
    part = h[:, :3]
    h.mul_(2).add_(1)
    return m.b(h).sin() + part.sum()


def _in_place_detached(m, x):
    h = m.a(x)
    seen = h.detach()
    return m.b(h.clamp_(-0.3, 0.3)) * seen.sum()


def _augmented(m, x):
    h = m.a(x)
    h += x
    h *= 0.5
    return m.b(torch.tanh(h))


def _branches(m, x):
    h = F.softplus(m.a(x))
    return m.b(torch.cat([F.relu(m.c(h)), torch.sigmoid(m.d(h)), h - x], dim=1))


def _rectified_sums(m, x):
    """Sums of one value with itself, of two, of one with a buffer, of a parameter or a column that broadcasts."""
    h = F.relu(m.a(x) + m.a(x).tanh())
    h = F.relu_(h + h)
    h = F.leaky_relu(torch.add(m.b(h), x), 0.3)
    h = F.leaky_relu(m.shift + m.b(h), 0.1)
    h = F.relu(m.w + m.a(h) + x[:, :1])
    return m.b(F.relu(h - x))


DAGS: list[Case] = [
    _dag("residual", lambda m, x: m.b(x + F.relu(m.a(x))), a=_l, b=_l),
    _dag("residual_smooth", lambda m, x: m.b(x + F.gelu(m.a(x))) + x, a=_l, b=_l),
    _dag("rectified_sums", _rectified_sums, a=_l, b=_l, w=_p(6), shift=lambda: nn.Buffer(torch.randn(4, 6))),
    _dag("dense", _branches, a=_l, b=lambda: _l(18, 5), c=_l, d=_l),
    _dag("add_function", lambda m, x: torch.add(m.a(x), F.silu(m.b(x)), alpha=0.5), a=_l, b=_l),
    _dag("sub_alpha", lambda m, x: torch.sub(m.a(x).tanh(), m.b(x), alpha=2).add(1, alpha=3), a=_l, b=_l),
    _dag("sub", lambda m, x: m.b(F.elu(m.a(x)) - x), a=_l, b=_l),
    _dag("sub_function", lambda m, x: torch.sub(m.a(x).tanh(), m.b(x)), a=_l, b=_l),
    _dag("mul", lambda m, x: m.b(torch.sigmoid(m.a(x)) * x), a=_l, b=_l),
    _dag("mul_function", lambda m, x: torch.mul(m.a(x), m.b(x)), a=_l, b=_l),
    _dag("square", lambda m, x: m.b(m.a(x) * m.a(x)), a=_l, b=_l),
    _dag("broadcast_mul", lambda m, x: m.a(x) * torch.sigmoid(m.b(x)), a=_l, b=lambda: _l(6, 1)),
    _dag("broadcast_add", lambda m, x: m.a(x).relu() + m.b(x), a=_l, b=lambda: _l(6, 1)),
    _dag("scalars", lambda m, x: 1 - m.b((2 * F.relu(m.a(x + 1)) - 0.5) / 3) * -1.5, a=_l, b=_l),
    _dag("negation", lambda m, x: -m.b(-torch.tanh(m.a(x))), a=_l, b=_l),
    _dag("shared_module", lambda m, x: m.a(F.softplus(m.a(x))), a=_l),
    _dag("shared_activation", lambda m, x: m.act(m.b(m.act(m.a(x)))), a=_l, b=_l, act=nn.Tanh),
    _dag(
        "shared_relu_inplace",
        lambda m, x: m.b(m.relu(m.a(x)) + m.relu(x * 1)),
        a=_l,
        b=_l,
        relu=lambda: nn.ReLU(True),
    ),
    _dag("in_place_matters", _in_place_matters, a=_l, b=_l, relu=lambda: nn.ReLU(inplace=True)),
    _dag("in_place_by_position", _in_place_by_position, opaque=None, a=_l, b=_l),
    _dag(
        "in_place_on_a_view",
        lambda m, x: m.b(torch.flatten(m.a(x).unflatten(1, (2, 3)), 1).relu_()),
        a=_l,
        b=_l,
    ),
    _dag("in_place_seen_by_a_view", _in_place_seen_by_a_view, opaque=None, a=_l, b=_l),
    _dag("in_place_detached", _in_place_detached, opaque=None, a=_l, b=_l),
    _dag("augmented_assignment", _augmented, a=_l, b=_l),
    _dag("used_twice", lambda m, x: m.b(F.relu(m.a(x))) + m.c(F.relu(m.a(x))), a=_l, b=_l, c=_l),
    _dag("cat_with_itself", lambda m, x: m.b(torch.cat((x, x, m.a(x)), -1)), a=_l, b=lambda: _l(18, 5)),
    _dag("view", lambda m, x: m.b(F.relu(m.a(x)).view(x.size(0), -1)), a=_l, b=_l),
    _dag("reshape", lambda m, x: m.b(F.silu(m.a(x)).reshape(x.shape[0] * 2, 3)), a=_l, b=lambda: _l(3, 4)),
    _dag("permute", lambda m, x: m.b(torch.tanh(m.a(x)).permute(1, 0)), a=_l, b=lambda: _l(4, 5)),
    _dag(
        "transpose", lambda m, x: m.b(F.relu(m.a(x)).transpose(0, 1).contiguous()), a=_l, b=lambda: _l(4, 5)
    ),
    _dag(
        "squeeze",
        lambda m, x: m.b(F.relu(m.a(x)).unsqueeze(1).unsqueeze(-1)).squeeze(1),
        a=_l,
        b=lambda: _l(1, 2),
    ),
    _dag("flatten", lambda m, x: m.b(torch.flatten(F.relu(m.a(x)).unflatten(1, (2, 3)), 1)), a=_l, b=_l),
    _dag("layer_norm_function", lambda m, x: m.b(F.layer_norm(m.a(x), (6,)).tanh()), a=_l, b=_l),
    _dag("group_norm_function", lambda m, x: m.b(F.group_norm(m.a(x), 3, eps=0.1).relu()), a=_l, b=_l),
    _dag(
        "instance_norm_function",
        lambda m, x: F.instance_norm(m.a(x).view(-1, 2, 3).sigmoid(), weight=m.n.weight, bias=m.n.bias),
        a=_l,
        n=lambda: random_numbers(nn.InstanceNorm1d(2, affine=True)),
    ),
    _dag(
        "batch_norm_function",
        lambda m, x: m.b(
            F.batch_norm(m.a(x), m.n.running_mean, m.n.running_var, m.n.weight, None, m.training, 0.3).tanh()
        ),
        a=_l,
        b=_l,
        n=lambda: random_numbers(nn.BatchNorm1d(6)),
    ),
    _dag(
        "batch_norm_bias_function",
        lambda m, x: F.silu(F.batch_norm(m.a(x), None, None, None, m.n.bias, True)),
        a=_l,
        n=lambda: random_numbers(nn.BatchNorm1d(6)),
    ),
    _dag(
        "batch_norm_statistics_function",
        lambda m, x: m.a(F.batch_norm(x, m.n.running_mean, m.n.running_var, m.n.weight)).sigmoid(),
        a=_l,
        n=lambda: random_numbers(nn.BatchNorm1d(6)),
    ),
    _dag("shared_norm", lambda m, x: m.n(m.a(m.n(x)).tanh()), a=_l, n=lambda: nn.BatchNorm1d(6)),
    _dag("dropout_function", lambda m, x: m.b(F.dropout(m.a(x), 0.4, m.training)), a=_l, b=_l),
    _dag("two_inputs_mul", lambda m, x, z: m.b(F.relu(m.a(x)) * z), shapes=_PAIR, a=_l, b=_l),
    _dag(
        "two_inputs_cat",
        lambda m, x, z: m.a(torch.cat([x, z], 1)),
        shapes=((4, 3), (4, 5)),
        a=lambda: mlp_of(8),
    ),
    _dag("two_inputs_one_late", lambda m, x, z: m.b(F.softplus(m.a(x)) + z), shapes=_PAIR, a=_l, b=_l),
    _dag(
        "two_inputs_two_outputs", lambda m, x, z: (m.a(x * z), m.b(F.tanh(z) - x)), shapes=_PAIR, a=_l, b=_l
    ),
    _dag("tuple_output", lambda m, x: (m.b(F.relu(m.a(x))), m.a(x)), a=_l, b=_l),
    _dag("list_output", lambda m, x: [m.a(x), torch.sigmoid(m.a(x))], a=_l),
    _dag("dict_output", lambda m, x: {"logits": m.b(F.softplus(m.a(x))), "hidden": m.a(x)}, a=_l, b=_l),
    _dag("nested_output", lambda m, x: {"a": (m.a(x), m.b(x).sigmoid()), "b": [m.b(x).relu()]}, a=_l, b=_l),
    _dag("output_twice", lambda m, x: (lambda y: (y, y))(m.b(m.a(x).tanh())), a=_l, b=_l),
    _dag("returns_input", lambda m, x: x),
    _dag("returns_view_of_input", lambda m, x: x.view(x.shape[0], 2, 3)),
    _dag("returns_input_and_output", lambda m, x: (x, m.a(x).tanh()), a=_l),
    _dag(
        "returns_hidden_and_view",
        lambda m, x: (lambda h: (h, h.view(-1, 3, 2), m.b(h)))(m.a(x).relu()),
        a=_l,
        b=_l,
    ),
]


def _causal(m, x):
    scores = m.a(x) @ m.b(x).mT / x.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(m.mask == 0, float("-inf")), -1) @ x


def _mask(*shape: int) -> Callable[[], nn.Buffer]:
    return lambda: nn.Buffer(torch.ones(shape).tril())


def _split(m, x):
    a, b = m.a(x).split([2, 4], dim=1)
    return a.exp() + b[:, :2]


def _unbind(m, x):
    a, b, c = m.a(x).unflatten(1, (3, 2)).unbind(1)
    return a * b - c


def _tokens(m, x):
    h = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.position
    return m.b((h + m.scale * torch.tanh(m.a(h)))[:, 0])


def _squeeze_excite(m, x):
    h = F.silu(m.conv(x))
    return m.head((h * torch.sigmoid(m.gate(h.mean((2, 3), keepdim=True)))).sum((-1, -2)))


def _deviation(m, x):
    h = m.a(x)
    spread = (h - h.mean(0)).square().mean(0).add(1e-3).sqrt().mean()
    return m.b(torch.cat([h, spread.view(1, 1).expand(h.size(0), 1)], 1))


def _attention_row(
    name: str, opaque: bool | None = False, mask: Callable[[], object] | None = None, **options: object
) -> Case:
    """A row of scaled_dot_product_attention; PyTorch has a second derivative of its formula alone."""

    def body(m, x):
        more = {} if mask is None else {"attn_mask": m.mask}
        with sdpa_kernel(SDPBackend.MATH):
            return m.d(F.scaled_dot_product_attention(m.a(x), m.b(x), m.c(x), **options, **more))

    modules = {} if mask is None else {"mask": mask}
    return _dag(f"attention_{name}", body, opaque, ((2, 3, 6),), a=_l, b=_l, c=_l, d=_l, **modules)


_MASK_OF_HEADS = torch.tensor([[False, True, False], [False, False, False], [False, True, True]])


def _masked_heads(name: str, mask: Tensor | None, padding: Tensor | None, weights: bool) -> Case:
    """A row of nn.MultiheadAttention, batch first, with masks that are buffers."""

    def body(m, x):
        with sdpa_kernel(SDPBackend.MATH):
            return m.a(m.mix(x, x, x, m.padding, weights, m.mask)[0])

    def buffer(t: Tensor | None) -> Callable[[], object]:
        return lambda: None if t is None else nn.Buffer(t.clone())

    modules = {"mask": buffer(mask), "padding": buffer(padding), "a": _l}
    return _dag(
        f"heads_{name}",
        body,
        False,
        ((2, 3, 6),),
        mix=lambda: nn.MultiheadAttention(6, 2, batch_first=True),
        **modules,
    )


def _attends_untraceably(m, x):
    return m.mix(x, x, x)[0] if float(x.detach().sum()) < 1e9 else x


def _without_weights(m, x):
    with sdpa_kernel(SDPBackend.MATH):
        return m.a(m.mix(x, x, x, need_weights=False)[0])


_MASK = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])


def _heads(name: str, body: Callable[..., object], opaque: bool | None = False, **options: object) -> Case:
    """A row of nn.MultiheadAttention of width 6 and two heads."""
    shapes = ((3, 6),) if name == "unbatched" else ((3, 3, 6),)
    make = lambda: nn.MultiheadAttention(6, 2, **options)  # noqa: E731
    return _dag(f"heads_{name}", body, opaque, shapes, mix=make, a=_l)


_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": lambda h: h.cos(),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda h: torch.log(1 + h * h),
    "log1p": lambda h: torch.log1p(h * h),
    "square": torch.square,
    "power_2": lambda h: h**2,
    "power_3": lambda h: torch.pow(h, 3),
    "power_fraction": lambda h: (h.square() + 1) ** 0.3,
    "power_negative": lambda h: (h.exp() + 0.5).pow(-2),
    "sqrt": lambda h: torch.sqrt(1 + h * h),
    "rsqrt": lambda h: (2 + h).abs().rsqrt(),
    "abs": lambda h: h.abs() + torch.abs(h),
    "reciprocal": lambda h: torch.reciprocal(2 + h.exp()) + 1 / (3 + h.square()),
    "clamp": lambda h: torch.clamp(h, -0.5, 0.4),
    "clamp_one_side": lambda h: h.clamp(max=0.3) + h.clamp(min=-0.2),
    "clamp_min_max": lambda h: h.clamp_min(-0.5).clamp_max(0.5),
    "erf": torch.erf,
    "functions": lambda h: F.mish(h) + F.hardswish(h) - F.relu6(h) + F.hardtanh(h, -0.3, max_val=0.6),
    "softmaxes": lambda h: h.softmax(-1) * F.log_softmax(h, 0) + torch.softmax(h, dim=1),
    "glu": lambda h: F.glu(h, dim=-1).repeat(1, 2),
}

CLOSED_FORM: list[Case] = [
    *(_dag(name, lambda m, x, f=f: m.b(f(m.a(x))), a=_l, b=_l) for name, f in _POINTWISE.items()),
    _dag("in_place_functions", lambda m, x: m.b(m.a(x).sin_().mul_(2).clamp_(-1, 1)), a=_l, b=_l),
    _dag("division", lambda m, x: m.a(x) / (1 + m.b(x).exp()), a=_l, b=_l),
    _dag("division_broadcast", lambda m, x: torch.div(m.a(x), m.b(x).square() + 1), a=_l, b=lambda: _l(6, 1)),
    _dag("division_of_row", lambda m, x: m.b(x).sum(1, keepdim=True) / (m.a(x).exp() + 1), a=_l, b=_l),
    _dag("sums", lambda m, x: m.a(x).sum(0, keepdim=True) + m.b(x).sum(dim=1, keepdim=True), a=_l, b=_l),
    _dag("means", lambda m, x: m.a(x) * m.b(x).mean() + torch.mean(m.a(x), (0, -1)), a=_l, b=_l),
    _dag("total", lambda m, x: m.b(m.a(x).relu()).square().sum(), a=_l, b=_l),
    _dag(
        "norms",
        lambda m, x: m.a(x) / m.b(x).norm(dim=1, keepdim=True) + m.b(x).norm(2, -1)[:, None],
        a=_l,
        b=_l,
    ),
    _dag(
        "norm_of_all",
        lambda m, x: torch.linalg.norm(m.a(x)) * torch.linalg.vector_norm(m.b(x), dim=(0, 1)) * x,
        a=_l,
        b=_l,
    ),
    _dag(
        "norm_at_zero", lambda m, x: (m.a(x) - m.a(x)).norm(dim=1, keepdim=True) + m.b(x).tanh(), a=_l, b=_l
    ),
    _dag("normalize", lambda m, x: m.b(F.normalize(m.a(x), dim=-1)), a=_l, b=_l),
    _dag("where", lambda m, x: (lambda h: torch.where(h > 0, h.sin(), m.b(x).exp()))(m.a(x)), a=_l, b=_l),
    _dag(
        "where_number",
        lambda m, x: (lambda h: torch.where(h > 0.3, h * h, 0.3) + torch.where(h < 0, -1.0, h))(m.a(x)),
        a=_l,
    ),
    _dag("where_row", lambda m, x: torch.where(x > 0, m.a(x)[:1], m.b(x)[:, :1]).sin(), a=_l, b=_l),
    _dag(
        "maximum_of_row",
        lambda m, x: m.b(m.a(x).max(1, keepdim=True)[0] * x) + torch.min(m.b(x), dim=0)[0][0],
        a=_l,
        b=_l,
    ),
    _dag("number_from_shape", lambda m, x: m.a(x) * x.shape[1] ** -0.5 + x.shape[0], a=_l),
    _dag("index", lambda m, x: m.b(F.relu(m.a(x))[:, 1:4]), a=_l, b=lambda: _l(3, 5)),
    _dag("index_last", lambda m, x: m.b(m.a(x).tanh()[..., None, -1]), a=_l, b=lambda: _l(1, 5)),
    _dag("index_list", lambda m, x: m.b(m.a(x).tanh()[:, [0, 2, 2]]), a=_l, b=lambda: _l(3, 5)),
    _dag("index_size", lambda m, x: m.b(m.a(x).tanh()[: x.shape[0] // 2]), a=_l, b=_l),
    _dag(
        "index_tensor",
        lambda m, x: m.a(x).tanh()[m.order],
        a=_l,
        order=lambda: nn.Buffer(torch.tensor([1, 1, 0])),
    ),
    _dag("select", lambda m, x: m.a(x).tanh().select(1, 2) * m.b(x).select(0, -1)[0], a=_l, b=_l),
    _dag("chunk", lambda m, x: (lambda c: c[0] * torch.sigmoid(c[1]))(m.a(x).chunk(2, 1)), a=_l),
    _dag("split", _split, a=_l),
    _dag("split_unused", lambda m, x: torch.split(m.a(x), 2, 1)[1].sin(), a=_l),
    _dag("unbind", _unbind, a=_l),
    _dag("split_slice", lambda m, x: torch.cat(m.a(x).split(2, 1)[::2], 1).sin(), None, a=_l),
    _dag("mask_index", lambda m, x: (lambda h: h.sum(1) * h[x > 0].sin().sum())(m.a(x)), a=_l),
    _dag("stack", lambda m, x: torch.stack([m.a(x).sin(), x, m.b(x)], dim=1).sum(-1), a=_l, b=_l),
    _dag("expand", lambda m, x: m.a(x)[:, None].expand(-1, 3, -1).sin() * m.b(x).unsqueeze(1), a=_l, b=_l),
    _dag("repeat", lambda m, x: m.b(m.a(x).tanh().repeat(2, 1, 2)), a=_l, b=lambda: _l(12, 3)),
    _dag("roll_and_flip", lambda m, x: m.b(m.a(x).sin().roll(2, 1).flip(0)) + x.flip([0, 1]), a=_l, b=_l),
    _dag("transposed", lambda m, x: m.a(x).T.sin() @ m.b(x), a=_l, b=_l),
    _dag("movedim", lambda m, x: m.a(x.unflatten(1, (2, 3)).movedim(1, 0).flatten(1)), a=lambda: _l(12, 3)),
    _dag("reshape_tuple", lambda m, x: torch.reshape(m.a(x).sin(), (x.shape[0], 2, -1)).sum(1), a=_l),
    _dag("masked", _causal, shapes=((2, 3, 6),), a=_l, b=_l, mask=_mask(3, 3)),
    _dag(
        "tokens", _tokens, shapes=((2, 3, 6),), a=_l, b=_l, token=_p(1, 1, 6), position=_p(4, 6), scale=_p(6)
    ),
    _dag(
        "parameter_index", lambda m, x: m.a(x).tanh() + m.table[m.a.bias.shape[0] - 4], a=_l, table=_p(4, 6)
    ),
    _dag(
        "parameter_gathered",
        lambda m, x: m.a(x).tanh() + m.table[m.places],
        a=_l,
        table=_p(4, 6),
        places=lambda: nn.Buffer(torch.tensor([3, 0, 0, 1])),
    ),
    _dag(
        "parameter_in_parts",
        lambda m, x: F.linear(x, m.w.chunk(2)[1]).sin() + m.w.unbind(1)[0][:2],
        w=_p(4, 6),
    ),
    _dag(
        "cast",
        lambda m, x: m.b(m.a(x).sin()).type(torch.float64) * (x.type() == m.a.weight.type()),
        a=_l,
        b=_l,
    ),
    _dag(
        "conversions",
        lambda m, x: m.b(m.a(x).sin().to(m.a.weight.dtype).double().to(x.device, torch.float64).type_as(x)),
        a=_l,
        b=_l,
    ),
    _dag(
        "softmax_in_float64",
        lambda m, x: F.softmax(m.a(x), dim=-1, dtype=torch.float64).to(dtype=x.dtype) * x.to(torch.float32).long(),
        None,
        a=_l,
    ),
    _dag("shape_of_parameter", lambda m, x: m.a(x).reshape(m.w.shape).sin() * m.w.size(0), a=_l, w=_p(3, 8)),
    _dag("parameter_twice", lambda m, x: m.w * m.a(x * m.w).sin() / m.w.exp(), a=_l, w=_p(6)),
    _dag("matmul_parameter", lambda m, x: F.softplus(x @ m.w) @ m.w.T, w=_p(6, 7)),
    _dag("matmul_vector", lambda m, x: (m.a(x).sin() @ m.w) * (x @ m.w), a=_l, w=_p(6)),
    _dag("matmul_left", lambda m, x: torch.mm(m.w, m.a(x).sin()), a=_l, w=_p(3, 4)),
    _dag(
        "matmul_batch",
        lambda m, x: torch.bmm(m.a(x), m.b(x).transpose(1, 2)),
        shapes=((2, 3, 6),),
        a=_l,
        b=_l,
    ),
    _dag(
        "matmul_broadcast",
        lambda m, x: m.w @ m.a(x)[:, None] @ m.b(x)[0].mT,
        shapes=((2, 3, 6),),
        a=_l,
        b=_l,
        w=_p(2, 4, 3),
    ),
    _dag("matmul_vectors", lambda m, x: (m.a(x)[0] @ m.b(x)[1]).view(1, 1), a=_l, b=_l),
    _dag("linear_of_values", lambda m, x: F.linear(m.a(x).sin(), m.b(x)), a=_l, b=_l),
    _dag("bias_from_parameters", lambda m, x: F.linear(x, m.w.exp(), m.b), w=_p(5, 6), b=_p(5)),
    Case(
        "dag_squeeze_excite",
        lambda: Body(_squeeze_excite, conv=nn.Conv2d(3, 6, 3), gate=nn.Conv2d(6, 6, 1), head=_l(6, 5)),
        _PHOTO,
    ),
    _dag("deviation", _deviation, a=_l, b=lambda: _l(7, 5)),
    _dag(
        "skip_of_other_size",
        lambda m, x: m.a(F.interpolate(m.b(x).sin(), size=x.shape[2:], mode="bilinear")) + x,
        shapes=_PHOTO,
        a=lambda: nn.Conv2d(4, 3, 1),
        b=lambda: nn.Conv2d(3, 4, 3, stride=2),
    ),
    _dag("pad", lambda m, x: m.a(F.pad(x, (1, -1, 0, 2), value=0.5).sin()), a=_l),
    _dag("pad_reflect", lambda m, x: F.pad(m.a(x), (2, 3), mode="reflect").sin(), a=_l),
    _attention_row("plain"),
    _attention_row("scaled", scale=0.3),
    _attention_row("causal", is_causal=True),
    _attention_row("bool_mask", mask=lambda: nn.Buffer(_MASK)),
    _attention_row("learned_bias", mask=_p(3, 3)),
    _attention_row("dropout_0", dropout_p=0.0),
    _attention_row("dropout", dropout_p=0.3),
    _attention_row("grouped", True, enable_gqa=True),
    _heads("first", lambda m, x: m.a(m.mix(x, x, x)[0]), batch_first=True),
    _heads(
        "weights", lambda m, x: m.a(m.mix(x.sin(), x, x * 2)[0]).sum(-1, keepdim=True) * m.mix(x, x, x)[1]
    ),
    _heads("each", lambda m, x: m.mix(x, x, x, average_attn_weights=False)[1].sum(0), batch_first=True),
    _heads("no_weights", _without_weights, bias=False),
    _heads("unbatched", lambda m, x: m.a(m.mix(x, x, x)[0])),
    _heads("dropout", lambda m, x: m.a(m.mix(x, x, x)[0]), dropout=0.3),
    _heads("mask_learned", lambda m, x: m.a(m.mix(x, x, x, attn_mask=m.a.weight[:3, :3])[0]), None),
    *(
        _masked_heads(f"{name}{'_no_weights' if not weights else ''}", mask, padding, weights)
        for name, mask, padding in (
            ("mask", _MASK_OF_HEADS, None),
            ("mask_each", torch.linspace(-1, 1, 2 * 2 * 3 * 3).view(4, 3, 3), None),
            ("padding", None, torch.tensor([[False, False, True], [False, True, True]])),
            ("both", _MASK_OF_HEADS, torch.tensor([[False, True, True], [True] * 3])),
        )
        for weights in (True, False)
        if weights is False or name != "both"
    ),
    _dag(
        "encoder_layer_norm_first",
        lambda m, x: m.a(m.layer(x)),
        None,
        ((3, 3, 6),),
        layer=lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2, activation=F.gelu, norm_first=True),
        a=_l,
    ),
    Case(
        "encoder_alone",
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False
        ),
        ((2, 3, 6),),
        opaque=None,
    ),
    Case(
        "attention_in_untraceable",
        lambda: Body(_attends_untraceably, mix=nn.MultiheadAttention(6, 2)),
        ((3, 3, 6),),
        opaque=None,
    ),
    _heads("extra_keys", lambda m, x: m.a(m.mix(x, x, x)[0]), True, add_bias_kv=True),
    Case(
        "dag_embedding",
        lambda: Body(
            lambda m, x: m.a(x + m.table(m.ids)),
            table=nn.Embedding(5, 6, padding_idx=1),
            ids=nn.Buffer(torch.tensor([1, 4, 4, 0])),
            a=mlp(nn.Tanh),
        ),
    ),
    Case(
        "dag_embedding_function",
        lambda: Body(
            lambda m, x: m.a(x + F.embedding(m.ids, m.w.sin(), scale_grad_by_freq=True)),
            w=nn.Parameter(torch.randn(5, 6)),
            ids=nn.Buffer(torch.tensor([1, 4, 4, 0])),
            a=mlp(nn.Tanh),
        ),
    ),
]

OPAQUE: list[Case] = [
    _dag("power_0", lambda m, x: m.b(m.a(x)) ** 0 + x**1, True, a=_l, b=_l),
    _dag("opaque_of_parts", lambda m, x: torch.cat(m.a(x).chunk(2, 1), 0).sin(), True, a=_l),
    _dag("opaque_of_opaque_parts", lambda m, x: torch.hstack(m.a(x).tensor_split(3, 1)).sin(), True, a=_l),
    _dag("cumsum", lambda m, x: m.b(torch.cumsum(m.a(x), 1).sigmoid()), True, a=_l, b=_l),
    _dag("einsum", lambda m, x: torch.einsum("ni,nj->nij", m.a(x), m.b(x).tanh()), True, a=_l, b=_l),
    _dag("norm_1", lambda m, x: m.a(x) / m.b(x).norm(1, dim=1, keepdim=True), True, a=_l, b=_l),
    _dag("maximum", lambda m, x: torch.maximum(m.a(x), m.b(x)) + m.a(x).max(), True, a=_l, b=_l),
    _dag("random_noise", lambda m, x: m.b(m.a(x) + torch.randn_like(x)), None, a=_l, b=_l),
    _dag("two_heads", lambda m, x: (m.a(x).tanh(), m.b(torch.atan(m.c(x)))), True, a=_l, b=_l, c=_l),
    _dag("detach", lambda m, x: m.b(m.a(x) * m.a(x).detach().tanh()), None, a=_l, b=_l),
    Case("opaque_scaled_weights", Scaled, opaque=False),
    Case(
        "opaque_gru",
        lambda: Body(lambda m, x: m.head(m.gru(x)[0]), gru=nn.GRU(6, 4, batch_first=True), head=_l(4, 5)),
        ((2, 3, 6),),
        opaque=True,
    ),
    Case(
        "opaque_bilinear",
        lambda: Body2(lambda m, x, z: m.a(x, z).tanh(), a=nn.Bilinear(6, 6, 3)),
        _PAIR,
        opaque=True,
    ),
    Case(
        "opaque_weight_norm",
        lambda: nn.Sequential(parametrizations.weight_norm(_l()), nn.ReLU(), _l(6, 5)),
        opaque=None,
    ),
    Case(
        "opaque_weight_norm_conv",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Softplus(), nn.Conv2d(4, 2, 1)
        ),
        _PHOTO,
        opaque=None,
    ),
    Case(
        "opaque_spectral_norm",
        lambda: nn.Sequential(
            parametrizations.spectral_norm(_l()), nn.ReLU(), parametrizations.spectral_norm(_l(6, 5))
        ),
        opaque=None,
    ),
    Case(
        "opaque_spectral_norm_eval",
        lambda: nn.Sequential(parametrizations.spectral_norm(_l()), nn.Softplus(), _l(6, 5)),
        train=False,
        opaque=None,
    ),
    Case("opaque_control_flow_child", lambda: nn.Sequential(_l(), Branching(), nn.ReLU()), opaque=True),
]


def mlp_of(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Softplus(beta=5), nn.Linear(8, 5))


PARAMETERS: list[Case] = [
    Case("tied", Tied, opaque=None),
    Case("tied_modules", lambda: (lambda a: nn.Sequential(a, nn.Tanh(), a, nn.ReLU(), a))(_l())),
    Case("frozen_first", lambda: frozen(mlp(), "0")),
    Case("frozen_middle", lambda: frozen(mlp(nn.Tanh), "2")),
    Case("frozen_last", lambda: frozen(mlp(), "4")),
    Case("frozen_biases", lambda: frozen(mlp(nn.SiLU), "0.bias", "2.bias", "4.bias")),
    Case("frozen_weights", lambda: frozen(mlp(nn.SiLU), "0.weight", "2.weight", "4.weight")),
    Case("frozen_conv", lambda: frozen(conv_net(), "2"), _PHOTO),
    Case("frozen_all", lambda: frozen(mlp(nn.Softplus), "")),
    Case("unused_parameter", lambda: Body(lambda m, x: m.a(x).tanh(), a=_l(), b=_l())),
]

def _gated_without_gradient(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = m.a(x).tanh()
    return m.b(x) * gate


def _inner_autocast(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        h = torch.mm(m.a(x).float(), m.w.float())
    return m.b(x) + h.to(x.dtype)


NOT_TRACEABLE: list[Case] = [
    Case(
        "autocast_inside",
        lambda: Body(_inner_autocast, a=_l(), b=_l(), w=nn.Parameter(torch.randn(6, 6))),
        opaque=None,
    ),
    Case("no_grad_inside", lambda: Body(_gated_without_gradient, a=_l(), b=_l()), opaque=None),
    Case(
        "no_grad_in_a_part",
        lambda: nn.Sequential(_l(), Body(_gated_without_gradient, a=_l(), b=_l()), nn.Tanh()),
        opaque=None,
    ),
    Case("untraceable", Branching, opaque=None),
    Case(
        "untraceable_shape",
        lambda: Body(lambda m, x: m.a(x) if float(x.detach().sum()) < 1e9 else x, a=mlp(nn.GELU)),
        opaque=None,
    ),
]

NETWORKS: list[Case] = [*MLPS, *CONV_NETS, *DAGS, *CLOSED_FORM, *OPAQUE, *PARAMETERS, *NOT_TRACEABLE]


def network(name: str) -> Case:
    """The row of that name."""
    return next(case for case in NETWORKS if case.name == name)


# The rows that meet every loss, every penalty and every piece of training code.
CORE: list[Case] = [
    network(name)
    for name in (
        "mlp_relu",
        "mlp_softplus_beta",
        "mlp_linear",
        "conv_critic",
        "dag_dense",
        "mlp_batch_norm",
        "dag_cumsum",
        "untraceable",
    )
]

# --------------------------------------------------------------------------- losses, penalties, objectives


def flat(outputs: object) -> Tensor:
    """All of a model's outputs as one (N, C) matrix."""
    if isinstance(outputs, Tensor):
        rows = outputs.shape[0] if outputs.dim() else 1
        return outputs.reshape(rows, math.prod(outputs.shape[1:]))
    parts = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)  # type: ignore[call-overload]
    return torch.cat([flat(part) for part in parts], 1)


def _cross_entropy(y: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(y, torch.arange(len(y), device=y.device) % y.shape[1], reduction=reduction)


def _mse(y: Tensor) -> Tensor:
    return F.mse_loss(y, torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "cross_entropy_sum": lambda y: _cross_entropy(y, "sum"),
    "sum": lambda y: y.sum(),
    "mse": _mse,
    "logsumexp": lambda y: y.logsumexp(1).sum(),
}


def _norms(J: Tensor) -> Tensor:
    return J.flatten(1).norm(dim=1)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda J: J.abs().sum(),
    "l2_squared": lambda J: J.square().sum(),
    "l2": lambda J: _norms(J).sum(),
    "centred": lambda J: (_norms(J) - 1).square().mean(),
    "forces": lambda J: F.mse_loss(
        J, torch.linspace(-1, 1, J.numel(), dtype=J.dtype, device=J.device).view_as(J)
    ),
}


@dataclass(frozen=True)
class Objective:
    """Training code: `loss` (or none) + 0.3 * the sum of penalty(grad of a data loss) over `terms`.

    x is a "leaf", "non_leaf" (base * 2, data gradient with respect to the product) or "upstream"
    (the same product, data gradient with respect to base).
    """

    loss: str | None
    terms: tuple[tuple[str, str], ...]
    x: str = "leaf"
    name: str = field(init=False, default="")

    def __post_init__(self) -> None:
        terms = "+".join("_of_".join(reversed(term)) for term in self.terms)
        object.__setattr__(self, "name", f"{self.loss or 'only'}+{terms}-{self.x}")

    def __call__(self, model: nn.Module, *bases: Tensor) -> dict[str, Tensor]:
        inputs = bases if self.x == "leaf" else tuple(base * 2 for base in bases)
        wanted = bases if self.x == "upstream" else inputs
        y = flat(model(*inputs))
        results = {"y": y}
        total = LOSSES[self.loss](y) if self.loss else y.new_zeros(())
        for k, (loss, penalty) in enumerate(self.terms):
            gradients = torch.autograd.grad(LOSSES[loss](y), wanted, create_graph=True)
            for i, J in enumerate(gradients):
                total = total + 0.3 * PENALTIES[penalty](J)
                results[f"J{k}.{i}"] = J
        total.backward()
        return results | {"total": total}


CE = "cross_entropy"
# Every loss with every penalty, with the loss and alone.
ALL_OBJECTIVES = [
    Objective(loss if with_loss else None, ((loss, penalty),))
    for loss in LOSSES
    for penalty in PENALTIES
    for with_loss in (True, False)
]
# What every network meets: first order; loss + penalty; penalty alone; two terms of two losses.
OBJECTIVES = [
    Objective(CE, ()),
    Objective(CE, ((CE, "l1"),)),
    Objective(None, (("logsumexp", "centred"),), "non_leaf"),
    Objective("mse", ((CE, "l2_squared"), ("logsumexp", "l1")), "upstream"),
]
