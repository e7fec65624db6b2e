"""An interatomic potential from energies and forces: a copper cluster of 13 atoms, trajectories by ase.

E is the sum over atoms of a small network of radial features, forces are −∂E/∂x: w_E MSE(E) + w_F MSE(F) trains on a
data gradient. Trained on energies alone and with the forces; a picture compares forces on a trajectory it has not seen.

    python examples/forces.py [--quick] [--out forces.png]
"""

import argparse

import numpy as np
import torch
from ase import units
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron
from ase.md.langevin import Langevin
from matplotlib.figure import Figure
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import presets
from datagrad_ext.cli.comparison import gain

Frames = tuple[Tensor, Tensor, Tensor]


def trajectory(frames: int, seed: int) -> Frames:
    """Coordinates (N, 13, 3) in Å, energies (N,) in eV and forces (N, 13, 3) in eV/Å, every 12 fs at 500 K."""
    atoms = Icosahedron("Cu", 2)
    atoms.calc = EMT()
    random = np.random.default_rng(seed)
    dynamics = Langevin(atoms, 4 * units.fs, temperature_K=500, friction=0.02 / units.fs, fixcm=False, rng=random)
    dynamics.run(50)  # from rest to 500 K
    found = []
    for _ in range(frames):
        dynamics.run(3)
        found.append((atoms.get_positions(), atoms.get_potential_energy(), atoms.get_forces()))
    x, energies, forces = (torch.tensor(np.array(part), dtype=torch.float32) for part in zip(*found, strict=True))
    return x, energies, forces


class Potential(nn.Module):
    """Coordinates (N, A, 3) to energies (N,): each atom's features are Σ_j exp(−4 (r_ij − c_k)²)."""

    def __init__(self, energy: float, features: int = 24, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(1.5, 6.5, features))
        layers = (nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.atom = nn.Sequential(*layers)
        self.shift = energy  # so that the network has a small number to learn

    def forward(self, x: Tensor) -> Tensor:
        squares = (x.unsqueeze(2) - x.unsqueeze(1)).square().sum(3)
        far = 100.0 * torch.eye(x.shape[1])  # an atom is no neighbour of its own
        r = (squares + far).sqrt()
        features = torch.exp(-4 * (r.unsqueeze(3) - self.centres).square()).sum(2)
        return self.atom(features).sum((1, 2)) + self.shift


def accelerated(model: Potential) -> Potential:
    """With its network accelerated; distances are cheap operations, which plain autograd does well."""
    datagrad_ext.accelerate(model.atom)
    return model


def train(data: Frames, force_weight: float, steps: int) -> nn.Module:
    torch.manual_seed(0)
    x, energies, forces = data
    model = accelerated(Potential(energies.mean().item()))
    objective = presets.forces(energy_weight=1.0, force_weight=force_weight)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        objective(model, x[batch], (energies[batch], forces[batch])).total.backward(inputs=parameters)
        optimizer.step()
        schedule.step()
    return model


def predicted(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and forces."""
    x = x.clone().requires_grad_()
    E = model(x)
    return E.detach(), -torch.autograd.grad(E.sum(), x)[0]


def step(model: nn.Module, frames: Frames) -> None:
    """The gradients of a training step."""
    x, *target = frames
    presets.forces()(model, x, target).total.backward(inputs=list(model.parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--out", default="forces.png", help="the picture (default forces.png)")
    args = parser.parse_args()
    frames, steps = (40, 20) if args.quick else (400, 1500)
    data, (x, energies, forces) = trajectory(frames, seed=0), trajectory(frames // 2, seed=1)
    figure = Figure((8, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, weight in zip(panels, (0.0, 10.0), strict=True):
        E, F = predicted(train(data, weight, steps), x)
        title = "energies and forces" if weight else "energies alone"
        energy_error, error = (E - energies).abs().mean().item(), (F - forces).abs().mean().item()
        print(f"{title}: mean error of E {1000 * energy_error:.0f} meV, of a force component {error:.3f} eV/Å")
        axes.scatter(forces.flatten(), F.flatten(), s=2, alpha=0.4)
        axes.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axes.set(title=f"{title}: mean error {error:.3f} eV/Å", xlabel="force by EMT, eV/Å")
    panels[0].set_ylabel("force of the network, eV/Å")
    figure.savefig(args.out, dpi=120)
    batch = tuple(part[:32] for part in data)
    faster = gain(Potential(0.0), lambda model: step(model, batch), 3 if args.quick else 30, accelerated)
    print(f"accelerated step: {faster:.2f} times as fast as eager PyTorch on this machine")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
