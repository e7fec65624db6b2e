"""Jacobian regularisation on real digits: what one random projection buys against noise (Hoffman et al., 1908.02729).

    L + (λ/2) mean ‖∂logits/∂x‖_F², estimated from one random direction of the logits a step

5,000 MNIST images, 4,000 to train and 1,000 to test with Gaussian noise of growing size on them.

    python examples/jacobian.py [--quick] [--out jacobian.png]
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext import presets
from datagrad_ext.cli.comparison import gain
from datagrad_ext.cli.data import load_digits

WEIGHTS = (0.0, 0.01, 0.1)


def network() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    return nn.Sequential(*layers)


def train(weight: float, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = datagrad_ext.accelerate(network())
    objective = presets.jacobian(weight)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(100):
            optimizer.zero_grad()
            objective(model, images[batch], labels[batch]).total.backward(inputs=parameters)
            optimizer.step()
    return model


@torch.no_grad()
def error(model: nn.Module, images: Tensor, labels: Tensor, noise: float) -> float:
    generator = torch.Generator().manual_seed(0)
    noisy = images + noise * torch.randn(images.shape, generator=generator)
    return (model(noisy).argmax(1) != labels).float().mean().item()


def frobenius(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The mean norm of ∂logits/∂x: ten rows, so exact."""
    with torch.no_grad():
        (term,) = presets.jacobian(1.0, projections=10)(model, images, labels).terms
    return term.value.sqrt().item()


def step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The gradients of a training step."""
    presets.jacobian()(model, images, labels).total.backward(inputs=list(model.parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, 200 test images")
    parser.add_argument("--out", default="jacobian.png", help="the picture (default jacobian.png)")
    args = parser.parse_args()
    digits = load_digits(None)
    every = 5 if args.quick else 1  # the images are sorted by digit
    images, labels = digits.test_images[::every], digits.test_labels[::every]
    sizes = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    axes = (figure := Figure((6.4, 4.4), layout="constrained")).subplots()
    for weight in WEIGHTS:
        model = train(weight, digits.train_images, digits.train_labels, 1 if args.quick else 20)
        errors = [100 * error(model, images, labels, size) for size in sizes]
        name = f"λ = {weight:g}: ‖∂logits/∂x‖ = {frobenius(model, images, labels):.1f}"
        print(f"{name}, error {', '.join(f'{e:.1f} %' for e in errors)} at noise {', '.join(map(str, sizes))}")
        axes.plot(sizes, errors, marker="o", label=name)
    axes.set(xlabel="standard deviation of the noise, pixels in [0, 1]", ylabel="test error, %")
    axes.set_title("Jacobian regularisation, 5,000 MNIST images")
    axes.grid(color="#dddddd")
    axes.legend(frameon=False)
    figure.savefig(args.out, dpi=120)
    batch = digits.train_images[::40], digits.train_labels[::40]
    faster = gain(network(), lambda model: step(model, *batch), 10 if args.quick else 100)
    print(f"accelerated step: {faster:.2f} times as fast as eager PyTorch on this machine")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
