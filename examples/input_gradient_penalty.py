"""An input-gradient penalty in ordinary autograd code, on a network that one line has made fast at it.

Two moons of points in the plane: the loss plus λ mean_n ‖∂ loss_n / ∂ x_n‖², by exact double backprop.
"""

import torch
import torch.nn.functional as F
from torch import nn

import datagrad_ext

torch.manual_seed(0)
labels = torch.arange(512) % 2
angle = torch.pi * torch.rand(512)
moons = torch.stack([angle.cos() + labels, (1 - 2 * labels) * angle.sin() + labels / 2], 1)
points = moons + 0.1 * torch.randn(512, 2)

model = datagrad_ext.accelerate(
    nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(201):
    x = points.clone().requires_grad_()
    losses = F.cross_entropy(model(x), labels, reduction="none")
    (J,) = torch.autograd.grad(
        losses.sum(), x, create_graph=True
    )  # of the sum: row n is sample n's own gradient
    penalty = J.square().sum(1).mean()
    optimizer.zero_grad()
    (losses.mean() + 0.05 * penalty).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3d}  loss {losses.mean().item():.4f}  mean ‖J‖² {penalty.item():.4f}")

print(datagrad_ext.program(model))
