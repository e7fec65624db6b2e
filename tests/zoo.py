"""Networks that people train with a penalty on a data gradient, and torchvision's classifiers: rows for test_zoo.py.

Own definitions are small ones of the usual shapes, named by what they are made after. Torchvision's are at random
initialisation on small images; where one is made narrower than its name says, the row says so. Dropout and stochastic
depth are on: both models draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor, nn
from torch.nn.utils import parametrizations

try:
    from torchvision import models
except ImportError:  # the rows below are then skipped with this reason
    models = None  # type: ignore[assignment]
needs_torchvision = pytest.mark.skipif(models is None, reason="torchvision is not installed")

# ------------------------------------------------------------------------------------------ own definitions


def dcgan_critic(width: int = 8) -> nn.Module:
    """The discriminator of DCGAN (Radford et al. 2016) for (N, 3, 32, 32), with layer normalisation as in WGAN-GP."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.GroupNorm(1, 2 * width),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False),
        nn.GroupNorm(1, 4 * width),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4 * width, 1, 4),
        nn.Flatten(),
    )


class ResidualDown(nn.Module):
    """A block of StyleGAN2's discriminator: two convolutions, half the resolution, a scaled skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.second = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), 0.2) * 2**0.5
        h = F.avg_pool2d(F.leaky_relu(self.second(h), 0.2) * 2**0.5, 2)
        return (h + self.skip(F.avg_pool2d(x, 2))) / 2**0.5


class MinibatchDeviation(nn.Module):
    """One more channel with the standard deviation over groups of samples (Karras et al. 2018)."""

    def __init__(self, group: int = 2) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        y = x.reshape(self.group, -1, c, h, w)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=[1, 2, 3])
        return torch.cat([x, y.reshape(-1, 1, 1, 1).repeat(self.group, 1, h, w)], dim=1)


class EqualLinear(nn.Module):
    """A linear layer whose weight is scaled when it is used (StyleGAN's equalised learning rate)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = inputs**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


def stylegan_discriminator(width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 1),
        nn.LeakyReLU(0.2),
        ResidualDown(width, 2 * width),
        ResidualDown(2 * width, 2 * width),
        MinibatchDeviation(),
        nn.Conv2d(2 * width + 1, 2 * width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        EqualLinear(2 * width * 16, 12),
        nn.LeakyReLU(0.2),
        EqualLinear(12, 1),
    )


def _double_conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"),
        nn.GroupNorm(2, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.Mish(),
    )


class UNet(nn.Module):
    """Two levels down and up, with skips and both ways of upsampling (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.enter, self.down = _double_conv(3, width), _double_conv(width, 2 * width)
        self.bottom = _double_conv(2 * width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2)
        self.middle, self.leave = _double_conv(4 * width, width), _double_conv(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.down(F.max_pool2d(first, 2))
        h = self.up(self.bottom(F.max_pool2d(second, 2)))
        h = self.middle(torch.cat([h, second], dim=1))
        h = F.interpolate(h, size=first.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.leave(torch.cat([h, first], dim=1)))


class Sine(nn.Module):
    """sin(30 x), SIREN's activation (Sitzmann et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30.0 * x)


def siren(width: int = 16) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (3, width, width):
        linear = nn.Linear(inputs, width)
        nn.init.uniform_(linear.weight, -((6 / inputs) ** 0.5) / 30, (6 / inputs) ** 0.5 / 30)
        layers += [linear, Sine()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class DeepSDF(nn.Module):
    """A signed distance of (latent code, point), both again in the middle (Park et al. 2019); weights normalised."""

    def __init__(self, code: int = 4, width: int = 16) -> None:
        super().__init__()
        inputs = code + 3
        sizes = [(inputs, width), (width, width - inputs), (width, width), (width, width)]
        self.layers = nn.ModuleList(parametrizations.weight_norm(nn.Linear(*size)) for size in sizes)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(torch.cat([h, x], -1) if i == 2 else h))
        return torch.tanh(self.head(h))


class Block(nn.Module):
    """A pre-norm transformer block with attention by its formula and a layer scale on both branches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.full((2, width), 0.5))

    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(n, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale[0] * self.attend(self.first(x))
        return x + self.scale[1] * self.mlp(self.second(x))


class Transformer(nn.Module):
    """An encoder of feature vectors (N, L, 6) with a class token and learned positions."""

    def __init__(self, width: int = 12, length: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(length + 1, width))
        self.blocks = nn.Sequential(Block(width, 3), Block(width, 2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        h = self.blocks(torch.cat([token, self.enter(x)], dim=1) + self.positions)
        return self.head(self.norm(h)[:, 0])


def encoder_layers() -> nn.Module:
    """torch's own encoder, with normalisation after the sums, and a linear layer on all positions."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(30, 3)
    )


class PointNet(nn.Module):
    """A classifier of point clouds (N, 3, P): the same layers for every point, then a maximum (Qi et al. 2017)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.points = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.ReLU(), nn.Conv1d(width, 2 * width, 1), nn.SiLU()
        )
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.Softplus(), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.points(F.normalize(x - x.mean(2, keepdim=True), dim=1))
        return F.log_softmax(self.head(torch.max(h, 2, keepdim=True)[0].view(x.shape[0], -1)), dim=1)


def spectral_critic(width: int = 6) -> nn.Module:
    """SN-GAN's discriminator (Miyato et al. 2018)."""
    norm = parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, width, 3, padding=1)),
        nn.LeakyReLU(0.1),
        norm(nn.Conv2d(width, width, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        norm(nn.Linear(width * 16, 3)),
    )


def weight_norm_critic(width: int = 6) -> nn.Module:
    norm = parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, width, 3, 2, 1, padding_mode="circular")),
        nn.PReLU(width),
        norm(nn.Conv2d(width, width, 3, 2, 1)),
        nn.ELU(),
        nn.Flatten(),
        norm(nn.Linear(width * 4, 3)),
    )


_SMALL, _IMAGE = ((4, 3, 8, 8),), ((2, 3, 32, 32),)

OWN: list[Case] = [
    Case("dcgan_critic", dcgan_critic, _IMAGE, opaque=None),
    Case("stylegan_discriminator", stylegan_discriminator, ((4, 3, 16, 16),)),
    Case("unet", UNet, _SMALL, opaque=None),
    Case("siren", siren, ((8, 3),)),
    Case("deep_sdf", DeepSDF, ((8, 7),)),
    Case("point_net", PointNet, ((2, 3, 10),)),
    Case("transformer", Transformer, ((2, 5, 6),), opaque=None),
    Case("transformer_encoder_layer", encoder_layers, ((2, 5, 6),), opaque=None),
    Case("spectral_norm_critic", spectral_critic, _SMALL),
    Case("weight_norm_critic", weight_norm_critic, _SMALL),
]

# ---------------------------------------------------------------------------------------------- torchvision


def _narrow_vgg() -> nn.Module:
    model = models.vgg11_bn(num_classes=10)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 32), nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, 10)
    return model


def _vision(name: str, make: Callable[[], nn.Module] | None = None, size: int = 32, **options: Any) -> Case:
    """A row of torchvision's; `make` where it is not the function of that name with ten classes."""
    build = make or (lambda: getattr(models, name)(num_classes=10, **options))
    return Case(name, build, ((2, 3, size, size),), opaque=None)


TORCHVISION: list[Case] = [
    _vision("resnet18"),
    _vision("resnet50", size=64),  # with 32 the last batch norms have two values a channel, whose gradients cancel
    _vision("vgg11_bn", _narrow_vgg),  # 32 units in the head, not 4096
    _vision("densenet121"),
    _vision("mobilenet_v3_small"),
    _vision("efficientnet_b0", size=48),
    _vision("convnext_tiny"),
    _vision("squeezenet1_1"),
    _vision("googlenet", init_weights=False, aux_logits=True),
    _vision("shufflenet_v2_x0_5"),
    _vision("regnet_y_400mf", size=48),
    # 48 channels and 4 heads, not 768 and 12
    _vision("vit_b_16", lambda: models.VisionTransformer(32, 16, 12, 4, 48, 96, num_classes=10)),
    _vision("swin_t"),
]
