"""A gradient penalty with DistributedDataParallel: the same gradients as one process on the joint batch.

    torchrun --nproc-per-node 2 examples/distributed.py

Without torchrun it is one process. On GPUs each process takes the one of its local rank.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import datagrad_ext


def train(model: nn.Module, rank: int, world: int, device: torch.device) -> None:
    """Two moons, every process on its own points: the loss plus λ mean_n ‖∂ loss_n / ∂ x_n‖²."""
    generator = torch.Generator().manual_seed(rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(101):
        labels = torch.arange(256) % 2
        angle = torch.pi * torch.rand(256, generator=generator)
        moons = torch.stack([angle.cos() + labels, (1 - 2 * labels) * angle.sin() + labels / 2], 1)
        x, labels = moons.to(device).requires_grad_(), labels.to(device)

        losses = F.cross_entropy(model(x), labels, reduction="none")
        (J,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        total = losses.mean() + 0.05 * J.square().sum(1).mean()
        optimizer.zero_grad()
        total.backward()  # the gradients of loss and penalty together, averaged over the processes
        optimizer.step()
        if step % 50 == 0 and rank == 0:
            print(f"step {step:3d}  {world} processes  loss {losses.mean().item():.4f}")


def main() -> None:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    model = datagrad_ext.accelerate(network.to(device))
    if world == 1:
        train(model, rank, world, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(DistributedDataParallel(model), rank, world, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
