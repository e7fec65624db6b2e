"""The networks of the cases: ordinary torch.nn, nothing of datagrad_ext."""

from itertools import pairwise

from torch import nn


def mlp(*widths: int) -> nn.Sequential:
    """ReLU network with the given layer widths and a linear head."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def critic(channels: tuple[int, ...], size: int, outputs: int) -> nn.Sequential:
    """DCGAN critic without normalisation: strided 4x4 convolutions, LeakyReLU(0.2), linear head."""
    layers: list[nn.Module] = []
    for inputs, width in zip((3, *channels[:-1]), channels, strict=True):
        layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    remaining = size // 2 ** len(channels)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * remaining**2, outputs))


def vgg(stages: tuple[tuple[int, ...], ...], size: int, outputs: int) -> nn.Sequential:
    """Stages of 3x3 convolutions with ReLU, a 2x2 max pooling after each, linear head."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage in stages:
        for width in stage:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    remaining = size // 2 ** len(stages)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * remaining**2, outputs))


def signed_distance(width: int, hidden: int) -> nn.Sequential:
    """Implicit surface f: R^3 -> R with `hidden` softplus(beta=100) layers."""
    layers: list[nn.Module] = []
    for inputs in (3, *[width] * (hidden - 1)):
        layers += [nn.Linear(inputs, width), nn.Softplus(beta=100)]
    return nn.Sequential(*layers, nn.Linear(width, 1))
