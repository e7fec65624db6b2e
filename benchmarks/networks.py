"""The networks of the cases: ordinary torch.nn, nothing of datagrad_ext."""

from itertools import pairwise

from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """ReLU network with the given layer widths and a linear head."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def normalised_mlp(*widths: int) -> nn.Sequential:
    """The same with batch norm before each ReLU, in evaluation mode, as where a trained network is attacked."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1])).eval()


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


def normalised(channels: tuple[int, ...], size: int, outputs: int, stride: int = 2) -> nn.Sequential:
    """Convolutions without biases (4x4 of stride 2, 3x3 of stride 1), batch norm and ReLU after each, linear head."""
    layers: list[nn.Module] = []
    for inputs, width in zip((3, *channels[:-1]), channels, strict=True):
        convolution = nn.Conv2d(inputs, width, stride + 2, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
    remaining = size // stride ** len(channels)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * remaining**2, outputs))


class Residual(nn.Module):
    """Basic block: two 3x3 convolutions with batch norm, plus the input (where it shrinks, by a 1x1 convolution,
    with batch norm).
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.extend([nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.relu(self.norms[0](self.first(x)))))
        return self.relu(y + self.shortcut(x))


def resnet(widths: tuple[int, ...], blocks: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution, `blocks` residual blocks a width, the size halved from width to width, linear head."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    inputs = widths[0]
    for width in widths:
        for _ in range(blocks):
            layers.append(Residual(inputs, width, 1 if inputs == width else 2))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def even(width: int, depth: int, outputs: int) -> nn.Sequential:
    """ReLU network of `depth` layers of one width and a linear head. Signals neither grow nor shrink with depth."""
    return _balanced(mlp(*[width] * (depth + 1), outputs))


def even_convolutions(width: int, depth: int, size: int, outputs: int) -> nn.Sequential:
    """The same of 3x3 convolutions on maps of one size, averaged before the head."""
    layers: list[nn.Module] = []
    for inputs in (3, *[width] * (depth - 1)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
    return _balanced(nn.Sequential(*layers, nn.AvgPool2d(size), nn.Flatten(), nn.Linear(width, outputs)))


def _balanced(network: nn.Sequential) -> nn.Sequential:
    for module in network:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def signed_distance(width: int, hidden: int) -> nn.Sequential:
    """Implicit surface f: R^3 -> R with `hidden` softplus(beta=100) layers."""
    layers: list[nn.Module] = []
    for inputs in (3, *[width] * (hidden - 1)):
        layers += [nn.Linear(inputs, width), nn.Softplus(beta=100)]
    return nn.Sequential(*layers, nn.Linear(width, 1))
