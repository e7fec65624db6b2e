"""Two GANs and their gradient penalties, on eight Gaussians in a ring and on real digits.

WGAN-GP (Gulrajani et al., arXiv 1704.00028): the Wasserstein critic, its slope held at 1 between real and generated
samples. R1 (Mescheder et al., arXiv 1801.04406): the non-saturating GAN, its slope held small on real samples. The
picture has samples of all four; digits are 4,000 MNIST images.

    python examples/wgan_gp.py [--quick] [--out wgan_gp.png]
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import DataGrad, presets
from datagrad_ext.cli.comparison import gain
from datagrad_ext.cli.data import load_digits

CENTRES = torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * math.pi / 4])


@dataclass(frozen=True)
class Data:
    """Something to generate: real(n) draws samples (n, size), from latents (n, latent). `steps` are the critic's."""

    name: str
    real: Callable[[int], Tensor]
    size: int
    latent: int
    width: int
    batch: int
    steps: int
    output: Callable[[], nn.Module]


@dataclass(frozen=True)
class Game:
    """The losses of critic and generator as functions of scores, the penalty, and how often the critic moves more."""

    name: str
    critic_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    penalty: Callable[[str], DataGrad]
    critic_steps: int


def ring(n: int) -> Tensor:
    """n points of the mixture."""
    return CENTRES[torch.randint(8, (n,))] + 0.05 * torch.randn(n, 2)


def sources() -> list[Data]:
    images = load_digits(None).train_images.flatten(1)
    digits = lambda n: images[torch.randint(len(images), (n,))]  # noqa: E731
    return [
        Data("ring", ring, size=2, latent=2, width=64, batch=128, steps=3000, output=nn.Identity),
        Data("digits", digits, size=784, latent=32, width=128, batch=64, steps=3500, output=nn.Sigmoid),
    ]


GAMES = [
    Game(
        "WGAN-GP",
        critic_loss=lambda real, fake: fake.mean() - real.mean(),
        generator_loss=lambda fake: -fake.mean(),
        penalty=lambda data: presets.wgan_gp({"ring": 0.1, "digits": 10.0}[data]),
        critic_steps=5,
    ),
    Game(
        "R1",
        critic_loss=lambda real, fake: F.softplus(fake).mean() + F.softplus(-real).mean(),
        generator_loss=lambda fake: F.softplus(-fake).mean(),
        penalty=lambda data: presets.r1({"ring": 0.1, "digits": 10.0}[data]),
        critic_steps=1,
    ),
]


def network(inputs: int, width: int, outputs: int, last: nn.Module) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.LeakyReLU(0.1)]
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Linear(width, outputs), last)


def critic_step(game: Game, penalty: DataGrad, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Gradients of the critic's loss and penalty; the mean slope where the penalty is taken."""
    term = penalty(critic, real, fake)
    (game.critic_loss(critic(real), critic(fake)) + term.total).backward()
    return term.terms[0].norms.mean()


def train(data: Data, game: Game, steps: int) -> tuple[nn.Module, nn.Module]:
    """Generator and critic."""
    torch.manual_seed(0)
    generator = network(data.latent, data.width, data.size, data.output())
    critic = datagrad_ext.accelerate(network(data.size, data.width, 1, nn.Identity()))
    for_generator, for_critic = (
        torch.optim.Adam(player.parameters(), lr=1e-3, betas=(0.5, 0.9))
        for player in (generator, critic)
    )
    penalty, slope = game.penalty(data.name), torch.tensor(0.0)
    for _ in range(steps // game.critic_steps):
        for _ in range(game.critic_steps):
            fake = generator(torch.randn(data.batch, data.latent)).detach()
            for_critic.zero_grad()
            slope = critic_step(game, penalty, critic, data.real(data.batch), fake)
            for_critic.step()
        for_generator.zero_grad()
        game.generator_loss(critic(generator(torch.randn(data.batch, data.latent)))).backward()
        for_generator.step()
    print(f"{game.name}, {data.name}: {steps} steps of the critic, mean ‖∇D‖ {slope.item():.2f}")
    return generator, critic


@torch.no_grad()
def draw_ring(axes, generator: nn.Module, critic: nn.Module) -> None:
    """Level lines of the critic, real points, generated points."""
    line = torch.linspace(-1.6, 1.6, 150)
    made = generator(torch.randn(2000, 2))
    scores = critic(torch.cartesian_prod(line, line)).view(150, 150).T
    axes.contourf(line, line, scores, levels=24, cmap="Greys", alpha=0.6)
    axes.scatter(*ring(600).T, s=5, label="real")
    axes.scatter(*made[:600].T, s=5, label="generated")
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    axes.legend(loc="upper right", fontsize=8)
    distances = torch.cdist(made, CENTRES)
    modes = int((torch.bincount(distances.argmin(1), minlength=8) > 50).sum())
    print(f"  modes with more than 50 of 2,000 samples: {modes} of 8")
    print(f"  mean distance of a sample to the nearest centre: {distances.amin(1).mean():.3f} (real: about 0.063)")


@torch.no_grad()
def draw_digits(axes, generator: nn.Module, critic: nn.Module) -> None:
    """Sixty-four samples."""
    made = generator(torch.randn(64, generator[0].in_features)).view(8, 8, 28, 28)
    axes.imshow(made.transpose(1, 2).reshape(224, 224).numpy(), cmap="gray", vmin=0, vmax=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--out", default="wgan_gp.png", help="the picture (default wgan_gp.png)")
    args = parser.parse_args()
    figure = Figure((8, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    for row, data in zip(panels, sources(), strict=True):
        for axes, game in zip(row, GAMES, strict=True):
            players = train(data, game, 10 if args.quick else data.steps)
            (draw_ring if data.name == "ring" else draw_digits)(axes, *players)
            axes.set(title=f"{game.name}, {data.name}", xticks=[], yticks=[])
            critic = network(data.size, data.width, 1, nn.Identity())
            fake = players[0](torch.randn(data.batch, data.latent)).detach()
            step = partial(critic_step, game, game.penalty(data.name), real=data.real(data.batch), fake=fake)
            faster = gain(critic, lambda critic, step=step: step(critic=critic), 10 if args.quick else 100)
            print(f"accelerated step: {faster:.2f} times as fast as eager PyTorch on this machine")
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
