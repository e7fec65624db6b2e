"""A signed distance function from points on a curve: the eikonal term makes a network's gradient have length 1.

The network f is 0 on a star-shaped curve; mean |f| there, plus λ mean(‖∇f‖ − 1)² at points all over the plane
(Gropp et al., arXiv 2002.10099). Trained with and without the term; a picture shows the level lines of both.

    python examples/sdf_eikonal.py [--quick] [--out sdf.png]
"""

import argparse
import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import DataGrad, presets
from datagrad_ext.cli.comparison import gain


def star(n: int) -> tuple[Tensor, Tensor]:
    """n points on the curve and the normals there."""
    angle = 2 * math.pi * torch.rand(n)
    radius, slope = 0.6 + 0.15 * torch.cos(5 * angle), -0.75 * torch.sin(5 * angle)
    outwards = torch.stack([angle.cos(), angle.sin()], 1)
    along = torch.stack([-angle.sin(), angle.cos()], 1)
    normals = radius[:, None] * outwards - slope[:, None] * along
    return radius[:, None] * outwards, normals / normals.norm(dim=1, keepdim=True)


def network() -> nn.Module:
    layers = [nn.Linear(2, 64), nn.Softplus(beta=30)]
    for _ in range(2):
        layers += [nn.Linear(64, 64), nn.Softplus(beta=30)]
    return nn.Sequential(*layers, nn.Linear(64, 1))


def loss(f: nn.Module, eikonal: DataGrad) -> Tensor:
    on, normals = star(256)
    near = on + 0.05 * normals  # says which side is outside
    data = f(on).abs().mean() + (f(near) - 0.05).abs().mean()
    return data + eikonal(f, 2 * torch.rand(512, 2) - 1).total


def train(weight: float, steps: int) -> tuple[nn.Module, float]:
    """The network, and mean |‖∇f‖ − 1| over the plane."""
    torch.manual_seed(0)
    f = datagrad_ext.accelerate(network())
    optimizer = torch.optim.Adam(f.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    eikonal = presets.eikonal(weight)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(f, eikonal).backward()
        optimizer.step()
        schedule.step()
    norms = presets.eikonal(1.0)(f, 2 * torch.rand(4096, 2) - 1).terms[0].norms
    return f, (norms - 1).abs().mean().item()


def draw(axes, f: nn.Module, title: str) -> None:
    """Level lines of f, its zero set in black."""
    line = torch.linspace(-1, 1, 200)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        values = f(grid).view(200, 200).T
    levels = torch.arange(-0.6, 0.9, 0.1).tolist()
    axes.contourf(line, line, values, levels=levels, cmap="RdBu_r", extend="both")
    axes.contour(line, line, values, levels=levels, colors="white", linewidths=0.5)
    axes.contour(line, line, values, levels=[0.0], colors="black", linewidths=1.8)
    axes.set(title=title, aspect="equal", xticks=[], yticks=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--out", default="sdf.png", help="the picture (default sdf.png)")
    args = parser.parse_args()
    figure = Figure((8, 4.7), layout="constrained")
    steps = 100 if args.quick else 3000
    for axes, weight in zip(figure.subplots(1, 2), (0.0, 0.2), strict=True):
        f, error = train(weight, steps)
        draw(axes, f, f"eikonal weight {weight:g}: mean |‖∇f‖ − 1| = {error:.2f}")
        print(f"eikonal weight {weight:g}: mean |‖∇f‖ − 1| over the plane {error:.3f}")
    figure.savefig(args.out, dpi=120)
    faster = gain(network(), lambda f: loss(f, presets.eikonal(0.2)).backward(), 10 if args.quick else 100)
    print(f"accelerated step: {faster:.2f} times as fast as eager PyTorch on this machine")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
