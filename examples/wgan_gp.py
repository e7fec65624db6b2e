"""A Wasserstein GAN with gradient penalty on eight Gaussians in a ring (Gulrajani et al., arXiv 1704.00028).

python examples/wgan_gp.py [--quick] [--out wgan_gp.png]
"""

import argparse
import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import presets

CENTRES = torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * math.pi / 4])


def ring(n: int) -> Tensor:
    """n points of the mixture."""
    return CENTRES[torch.randint(8, (n,))] + 0.05 * torch.randn(n, 2)


def network(inputs: int, outputs: int) -> nn.Sequential:
    layers = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(128, outputs))


def train(steps: int, critic_steps: int = 5, batch: int = 256) -> tuple[nn.Module, nn.Module]:
    """Generator and critic; prints the estimate of the Wasserstein distance and ‖∇D‖ on its way."""
    torch.manual_seed(0)
    generator, critic = network(2, 2), datagrad_ext.accelerate(network(2, 1))
    settings = dict(lr=1e-3, betas=(0.5, 0.9))
    for_generator = torch.optim.Adam(generator.parameters(), **settings)
    for_critic = torch.optim.Adam(critic.parameters(), **settings)
    penalty = presets.wgan_gp(weight=0.1)
    for step in range(steps):
        for _ in range(critic_steps):
            real, fake = ring(batch), generator(torch.randn(batch, 2)).detach()
            distance = critic(real).mean() - critic(fake).mean()
            term = penalty(critic, real, fake)
            for_critic.zero_grad()
            (term.total - distance).backward()
            for_critic.step()
        for_generator.zero_grad()
        (-critic(generator(torch.randn(batch, 2))).mean()).backward()
        for_generator.step()
        if step % max(1, steps // 5) == 0 or step == steps - 1:
            slope = term.terms[0].norms.mean()
            print(f"step {step:4d}  Wasserstein estimate {distance.item():6.3f}  mean ‖∇D‖ {slope.item():.3f}")
    return generator, critic


def draw(path: str, generator: nn.Module, critic: nn.Module) -> None:
    """Level lines of the critic, real points, generated points."""
    figure = Figure((5, 5), layout="constrained")
    axes = figure.subplots()
    line = torch.linspace(-1.6, 1.6, 150)
    with torch.no_grad():
        values = critic(torch.cartesian_prod(line, line)).view(150, 150).T
        made = generator(torch.randn(600, 2))
    axes.contourf(line, line, values, levels=24, cmap="Greys", alpha=0.6)
    axes.scatter(*ring(600).T, s=6, label="real")
    axes.scatter(*made.T, s=6, label="generated")
    axes.set(title="WGAN-GP: samples, and level lines of the critic", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--out", default="wgan_gp.png", help="the picture (default wgan_gp.png)")
    args = parser.parse_args()
    generator, critic = train(20 if args.quick else 1500)
    made = generator(torch.randn(2000, 2))
    distances = torch.cdist(made, CENTRES)
    modes = int((torch.bincount(distances.argmin(1), minlength=8) > 50).sum())
    print(f"modes with more than 50 of 2,000 samples: {modes} of 8")
    print(f"mean distance of a sample to the nearest centre: {distances.amin(1).mean():.3f} (real: about 0.063)")
    draw(args.out, generator, critic)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
