"""Objectives on real digits, and what they buy under attack: 5,000 MNIST images, error against FGSM and PGD.

Plain training, a weight penalty, DataGrad with L1 and with squared L2 (double backprop), and training on FGSM
examples; the same network, start and batches for all. 4,000 images to train, 1,000 to test.

    python examples/robust_digits.py [--quick] [--out robust_digits.png]
"""

import argparse

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import DataGrad, Term, attacks, penalties, presets
from datagrad_ext.cli.comparison import gain
from datagrad_ext.cli.data import load_digits

OBJECTIVES = {
    "plain": lambda: DataGrad(F.cross_entropy),
    "weight L2": lambda: presets.weight_l2(1e-4),
    "DataGrad L1": lambda: DataGrad(F.cross_entropy, Term(0.02, penalties.l1)),
    "double backprop": lambda: presets.double_backprop(0.6),
    "FGSM mix (goodfellow)": lambda: presets.goodfellow(0.1, 0.5),
}


def network() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(*layers)


def step(objective: DataGrad, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The gradients of a training step."""
    objective(model, images, labels).total.backward(inputs=list(model.parameters()))


def train(objective: DataGrad, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = datagrad_ext.accelerate(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(100):
            optimizer.zero_grad()
            step(objective, model, images[batch], labels[batch])
            optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, 200 test images, two attack sizes")
    parser.add_argument("--out", default="robust_digits.png", help="the picture (default robust_digits.png)")
    args = parser.parse_args()
    digits = load_digits(None)
    every = 5 if args.quick else 1  # the images are sorted by digit
    loader = [(digits.test_images[::every], digits.test_labels[::every])]
    epsilons = (0.05, 0.1) if args.quick else (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
    axes = (figure := Figure((6.4, 4.4), layout="constrained")).subplots()
    for name, make in OBJECTIVES.items():
        model = train(make(), digits.train_images, digits.train_labels, 1 if args.quick else 20)
        found = attacks.evaluate_robustness(model, loader, epsilons=epsilons)
        print(f"\n{name}\n{found}")
        errors = [100 * error for error in (found.clean_error, *found.errors["PGD"])]
        axes.plot([0, *epsilons], errors, marker="o", label=name)
    axes.set(xlabel="PGD attack size ε (L∞, pixels in [0, 1])", ylabel="test error, %", title="5,000 MNIST images")
    axes.grid(color="#dddddd")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(args.out, dpi=120)
    batch = digits.train_images[::40], digits.train_labels[::40]
    repeats = 10 if args.quick else 100
    faster = gain(network(), lambda model: step(OBJECTIVES["double backprop"](), model, *batch), repeats)
    print(f"\naccelerated step: {faster:.2f} times as fast as eager PyTorch on this machine (double backprop)")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
