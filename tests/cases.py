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
    return str(getattr(row, "name", row))


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
    ("relu6", nn.ReLU6, True),
    ("hardtanh", nn.Hardtanh, True),
    ("prelu", nn.PReLU, True),
    ("selu", nn.SELU, True),
    ("celu", nn.CELU, True),
    ("mish", nn.Mish, True),
    ("softmax", lambda: nn.Softmax(dim=1), True),
    ("log_softmax", lambda: nn.LogSoftmax(dim=1), True),
    ("glu", lambda: nn.GLU(dim=1), True),
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


_IMAGE = ((2, 4, 5, 6),)
LAYERS: list[Case] = [
    Case("linear", lambda: nn.Linear(6, 5)),
    Case("linear_no_bias", lambda: nn.Linear(6, 5, bias=False)),
    Case("linear_sequence", lambda: nn.Linear(6, 5), ((2, 3, 6),)),
    Case("linear_4d", lambda: nn.Linear(6, 5), ((2, 3, 2, 6),)),
    Case("linear_one_output", lambda: nn.Linear(6, 1)),
    *_conv_rows(),
    Case("conv2d_mixed", lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (0, 1), (1, 3)), _IMAGE),
    Case(
        "conv2d_circular", lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), _IMAGE, opaque=True
    ),
    Case(
        "conv2d_reflect", lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), _IMAGE, opaque=True
    ),
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
    Case("dropout2d", lambda: nn.Dropout2d(0.4), _IMAGE, opaque=True),
    Case("alpha_dropout", lambda: nn.AlphaDropout(0.4), opaque=True),
    Case("batch_norm1d", lambda: nn.BatchNorm1d(6), opaque=True),
    Case("batch_norm2d", lambda: nn.BatchNorm2d(4), _IMAGE, opaque=True),
    Case("batch_norm2d_eval", lambda: nn.BatchNorm2d(4), _IMAGE, train=False, opaque=True),
    Case("batch_norm2d_cumulative", lambda: nn.BatchNorm2d(4, momentum=None), _IMAGE, opaque=True),
    Case("batch_norm2d_no_affine", lambda: nn.BatchNorm2d(4, affine=False), _IMAGE, opaque=True),
    Case("batch_norm2d_no_stats", lambda: nn.BatchNorm2d(4, track_running_stats=False), _IMAGE, opaque=True),
    Case("group_norm", lambda: nn.GroupNorm(2, 4), _IMAGE, opaque=True),
    Case("layer_norm", lambda: nn.LayerNorm(6), opaque=True),
    Case("instance_norm2d", lambda: nn.InstanceNorm2d(4, affine=True), _IMAGE, opaque=True),
    Case("local_response_norm", lambda: nn.LocalResponseNorm(2), _IMAGE, opaque=True),
    Case("upsample", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), _IMAGE, opaque=True),
    Case("pixel_shuffle", lambda: nn.PixelShuffle(2), _IMAGE, opaque=True),
    Case("zero_pad2d", lambda: nn.ZeroPad2d(1), _IMAGE, opaque=True),
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
    Case("mlp_layer_norm", lambda: nn.Sequential(_l(), nn.LayerNorm(6), nn.ReLU(), _l(6, 5)), opaque=True),
    Case("mlp_batch_norm", lambda: nn.Sequential(_l(), nn.BatchNorm1d(6), nn.ReLU(), _l(6, 5)), opaque=True),
    Case("mlp_group_norm", lambda: nn.Sequential(_l(), nn.GroupNorm(2, 6), nn.SiLU(), _l(6, 5)), opaque=True),
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
    Case("conv_resnet_batch_norm", lambda: resnet(nn.BatchNorm2d), _PHOTO, opaque=True),
    Case("conv_resnet_batch_norm_eval", lambda: resnet(nn.BatchNorm2d), _PHOTO, train=False, opaque=True),
    Case("conv_resnet_group_norm", lambda: resnet(lambda c: nn.GroupNorm(2, c)), _PHOTO, opaque=True),
    Case("conv_resnet_plain", lambda: resnet(lambda c: nn.Identity()), _PHOTO),
    Case(
        "conv_global_mean",
        lambda: Body(
            lambda m, x: m.head(F.relu(m.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 6, 3), head=_l(6, 5)
        ),
        _PHOTO,
        opaque=None,
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


def _augmented(m, x):
    h = m.a(x)
    h += x
    h *= 0.5
    return m.b(torch.tanh(h))


def _branches(m, x):
    h = F.softplus(m.a(x))
    return m.b(torch.cat([F.relu(m.c(h)), torch.sigmoid(m.d(h)), h - x], dim=1))


DAGS: list[Case] = [
    _dag("residual", lambda m, x: m.b(x + F.relu(m.a(x))), a=_l, b=_l),
    _dag("residual_smooth", lambda m, x: m.b(x + F.gelu(m.a(x))) + x, a=_l, b=_l),
    _dag("dense", _branches, a=_l, b=lambda: _l(18, 5), c=_l, d=_l),
    _dag("add_function", lambda m, x: torch.add(m.a(x), F.silu(m.b(x)), alpha=0.5), opaque=None, a=_l, b=_l),
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

OPAQUE: list[Case] = [
    _dag("sin", lambda m, x: m.b(torch.sin(m.a(x))), True, a=_l, b=_l),
    _dag("softmax", lambda m, x: m.b(F.softmax(m.a(x), dim=1)), True, a=_l, b=_l),
    _dag("cumsum", lambda m, x: m.b(torch.cumsum(m.a(x), 1).sigmoid()), True, a=_l, b=_l),
    _dag("index", lambda m, x: m.b(F.relu(m.a(x))[:, 1:4]), None, a=_l, b=lambda: _l(3, 5)),
    _dag("chunk", lambda m, x: (lambda c: c[0] * torch.sigmoid(c[1]))(m.a(x).chunk(2, 1)), None, a=_l),
    _dag("power", lambda m, x: m.b(m.a(x) ** 2 + x.exp()), True, a=_l, b=_l),
    _dag("einsum", lambda m, x: torch.einsum("ni,nj->nij", m.a(x), m.b(x).tanh()), True, a=_l, b=_l),
    _dag("norm", lambda m, x: m.a(x) / m.b(x).norm(dim=1, keepdim=True), True, a=_l, b=_l),
    _dag("scalar_output", lambda m, x: m.b(m.a(x).relu()).square().sum(), True, a=_l, b=_l),
    _dag("random_noise", lambda m, x: m.b(m.a(x) + torch.randn_like(x)), None, a=_l, b=_l),
    _dag("two_heads", lambda m, x: (m.a(x).tanh(), m.b(torch.sin(m.c(x)))), True, a=_l, b=_l, c=_l),
    _dag("detach", lambda m, x: m.b(m.a(x) * m.a(x).detach().tanh()), None, a=_l, b=_l),
    Case("opaque_scaled_weights", Scaled, opaque=None),
    Case(
        "opaque_matmul",
        lambda: Body(lambda m, x: F.softplus(x @ m.w) @ m.w.T, w=nn.Parameter(torch.randn(6, 7))),
        opaque=None,
    ),
    Case(
        "opaque_parameter_scale",
        lambda: Body(lambda m, x: m.scale * F.relu(m.a(x)), scale=nn.Parameter(torch.tensor(1.7)), a=_l()),
        opaque=None,
    ),
    Case(
        "opaque_attention",
        lambda: Body(
            lambda m, x: m.head(m.mix(x, x, x)[0]),
            mix=nn.MultiheadAttention(6, 2, batch_first=True),
            head=_l(6, 5),
        ),
        ((2, 3, 6),),
        opaque=True,
    ),
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

NETWORKS: list[Case] = [*MLPS, *CONV_NETS, *DAGS, *OPAQUE, *PARAMETERS, *NOT_TRACEABLE]


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
