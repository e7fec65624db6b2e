"""`python -m datagrad_ext check`: are the gradients of a user's own model the same, accelerated?"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext.cli.errors import UserError, parse_device
from datagrad_ext.cli.probe import PROBES, Answer, answer
from datagrad_ext.cli.user_model import build_model, parse_input
from datagrad_ext.cli.verdict import SETTINGS, Outcome, Setting, error_table, judge

DESCRIPTION = """\
Compare a model of your own with its accelerated copy: the gradients of every parameter and of the inputs, for
a loss alone and with an L1 and a squared L2 penalty on its data gradient; in float64 and float32, in training
and in evaluation mode. Buffers (BatchNorm's running statistics) are compared too.

exit status: 0 equal, 1 different, 2 the check could not be made
"""

EPILOG = """\
errors:
  By norm, ‖a − b‖ / ‖b‖, the largest over the three losses; b are plain PyTorch's float64 gradients.
  float64 may differ by 1e-9; float32 by three times the error of PyTorch's own float32 gradients, or by 1e-4.

examples:
  python -m datagrad_ext check --model mynet:Net --input 8,3,32,32
  python -m datagrad_ext check --model mynet:Net --kwargs '{"depth": 2}' --input 8,16
  python -m datagrad_ext check --model mynet:build.critic --input 8,3,64,64 --input 8:int10 --device cuda
  python -m datagrad_ext check --model torch.nn:Bilinear --input 8,5 --input 8,6 \\
      --kwargs '{"in1_features": 5, "in2_features": 6, "out_features": 4}'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe `check` and its options."""
    parser = subparsers.add_parser(
        "check",
        help="compare the gradients of your own model, accelerated and plain",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODULE:CALLABLE",
        help="a torch.nn.Module class or object, or a function that returns one; this folder is searched too",
    )
    parser.add_argument(
        "--kwargs", metavar="JSON", help="keyword arguments of the callable, as a JSON object"
    )
    parser.add_argument(
        "--input",
        required=True,
        action="append",
        metavar="SIZES",
        help="sizes of one input, the batch first, such as 8,3,32,32; 8,12:int100 draws whole numbers from "
        "0 to 99; once for each argument of forward, in order",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:INDEX (default cpu)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the model, the inputs and dropout (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare in every setting, print the tables; 0 if all are equal, 1 if not."""
    device = parse_device(args.device)
    specs = [parse_input(text) for text in args.input]
    if all(spec.high for spec in specs):
        raise UserError(
            "--input: no input is floating-point, so there is no data gradient: give one SIZES without int"
        )
    torch.manual_seed(args.seed)
    model = build_model(args.model, args.kwargs).to(device)
    generator = torch.Generator().manual_seed(args.seed)
    inputs = [spec.draw(generator).to(device) for spec in specs]
    outcomes = [outcome for setting in SETTINGS for outcome in _compare(model, inputs, setting, args.seed)]
    print(error_table(outcomes))
    differences = [line for outcome in outcomes for line in outcome.differences()]
    if differences:
        print("\nDIFFERENT from plain PyTorch:\n" + "\n".join(f"  {line}" for line in differences))
        return 1
    print(f"\n{datagrad_ext.program(datagrad_ext.accelerate(copy.deepcopy(model)), *inputs)}")
    print("\nequal: every gradient and every buffer is within its tolerance")
    return 0


def _compare(model: nn.Module, inputs: Sequence[Tensor], setting: Setting, seed: int) -> Iterator[Outcome]:
    """Every probe on fresh copies of the model, so that dropout and running statistics start equal."""
    for probe, penalty in PROBES.items():
        reference = _plain_answer(model, inputs, Setting(torch.float64, setting.training), probe, seed)
        plain = (
            reference
            if setting.dtype == torch.float64
            else _plain_answer(model, inputs, setting, probe, seed)
        )
        try:
            accelerated = answer(
                datagrad_ext.accelerate(_copy(model, setting)), _cast(inputs, setting), penalty, seed
            )
        except Exception as error:  # whatever it is, plain PyTorch did not raise it
            yield Outcome(setting, probe, [], f"{type(error).__name__}: {error}")
        else:
            yield Outcome(setting, probe, judge(accelerated, plain, reference, setting.dtype))


def _plain_answer(
    model: nn.Module, inputs: Sequence[Tensor], setting: Setting, probe: str, seed: int
) -> Answer:
    try:
        found = answer(_copy(model, setting), _cast(inputs, setting), PROBES[probe], seed)
    except Exception as error:  # user code runs here: anything may come
        raise UserError(
            f"plain PyTorch cannot compute {probe!r} of this model on these inputs in {setting} "
            f"({type(error).__name__}: {error}); the check needs a model "
            "and inputs that plain PyTorch can differentiate twice"
        ) from error
    for name, gradient in found.gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            raise UserError(
                f"plain PyTorch's own gradient of {name} is not finite for {probe!r} in {setting}: "
                "there is nothing to compare with; try another --seed"
            )
    return found


def _copy(model: nn.Module, setting: Setting) -> nn.Module:
    return copy.deepcopy(model).to(setting.dtype).train(setting.training)


def _cast(inputs: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    return [x.to(setting.dtype) if x.is_floating_point() else x for x in inputs]
