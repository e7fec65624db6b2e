"""Training set-ups around an accelerated model: whole loops with the numbers of the plain model's.

Checkpointing and offload of one step, accumulation, hooks and threads are rows of tests/training_code.py.
"""

from __future__ import annotations

import copy
import io
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import Case, data, network
from oracle import assert_equal
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from training_code import data_gradient, loss_of

import datagrad_ext

Loop = Callable[[nn.Module, Case, str], "dict[str, Tensor]"]
NAMES = ["mlp_gelu", "conv_vgg", "conv_resnet_batch_norm", "dag_dense", "untraceable"]


def _total(model: Callable, x: Tensor) -> Tensor:
    loss = loss_of(model(x))
    return loss + 0.1 * data_gradient(loss, x).square().sum()


def _inputs(case: Case, seed: int, device: str) -> Tensor:
    return case.inputs(seed=seed)[0].to(device).requires_grad_()


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _accumulation_clipping_schedule(model: nn.Module, case: Case, device: str) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for step in range(3):
        optimizer.zero_grad()
        for part in range(2):
            (_total(model, _inputs(case, 2 * step + part, device)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    return _state(model)


def _train(model: nn.Module, case: Case, device: str, steps: int, optimizer: torch.optim.Optimizer) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        _total(model, _inputs(case, step, device)).backward()
        optimizer.step()


def _moving_average(model: nn.Module, case: Case, device: str) -> dict[str, Tensor]:
    """A deepcopy that follows; it is then a model of its own."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        _train(model, case, device, 1, optimizer)
        average.update_parameters(model)
    _train(average.module, case, device, 1, torch.optim.SGD(average.parameters(), lr=1e-2))
    return _state(model) | {f"average {name}": value for name, value in _state(average.module).items()}


def _saved_and_resumed(model: nn.Module, case: Case, device: str) -> dict[str, Tensor]:
    """Parameters, buffers and optimiser through a file, into another object."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    _train(model, case, device, 2, optimizer)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    other = copy.deepcopy(model)
    nn.init.zeros_(next(other.parameters()))
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    _train(other, case, device, 2, optimizer)
    return _state(other)


def _channels_last(model: nn.Module, case: Case, device: str) -> dict[str, Tensor]:
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(2):
        x = _inputs(case, step, device).detach()
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        optimizer.zero_grad()
        _total(model, x.requires_grad_()).backward()
        optimizer.step()
    return _state(model)


def _offload(model: nn.Module, case: Case, device: str) -> dict[str, Tensor]:
    with torch.autograd.graph.save_on_cpu():
        _train(model, case, device, 2, torch.optim.SGD(model.parameters(), lr=1e-2))
    return _state(model)


def _checkpoint_around(model: nn.Module, case: Case, device: str) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        run = lambda x: checkpoint(model, x, use_reentrant=False)  # noqa: E731
        _total(run, _inputs(case, step, device)).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


LOOPS = [
    _accumulation_clipping_schedule, _moving_average, _saved_and_resumed, _channels_last, _offload, _checkpoint_around,
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__.strip("_"))
@pytest.mark.parametrize("name", NAMES)
def test_loop(name: str, loop: Loop, device: str) -> None:
    case = network(name)
    found = []
    for accelerate in (lambda m: m, datagrad_ext.accelerate):
        torch.manual_seed(0)
        found.append(loop(accelerate(case.build().to(device)), case, device))
    assert_equal(found[1], found[0], rtol=1e-8)


# ------------------------------------------------------------------------------------------- checkpointing


def _blocks() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = [6, 8, 8, 5]
        blocks = [
            nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.Dropout(0.3), nn.Softplus())
            for a, b in itertools.pairwise(widths)
        ]
        return nn.Sequential(*blocks).double()


def _one_by_one(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


CHECKPOINTS = {
    "blocks": _one_by_one,
    "segments": lambda blocks, x: checkpoint_sequential(blocks, 2, x, use_reentrant=False),
    "whole": lambda blocks, x: checkpoint(blocks, x, use_reentrant=False),
}


@pytest.mark.parametrize("which", ["every_block", "whole"])
@pytest.mark.parametrize("how", CHECKPOINTS)
def test_checkpointed_blocks(how: str, which: str, device: str) -> None:
    """With dropout: the forward that is run again draws the same masks."""
    plain = _blocks().to(device)
    ours = copy.deepcopy(plain)
    for part in ours if which == "every_block" else [ours]:
        datagrad_ext.accelerate(part)
    gradients = []
    for model, run in ((plain, lambda m, x: m(x)), (ours, CHECKPOINTS[how])):
        torch.manual_seed(0)
        x = data(4, 6).to(device).requires_grad_()
        _total(lambda v, m=model, r=run: r(m, v), x).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()} | {"x": x.grad})
    assert_equal(gradients[1], gradients[0])


def test_checkpointing_keeps_less() -> None:
    """Between forward and backward a checkpointed network keeps its input and nothing of its layers."""

    def kept(run: Callable) -> int:
        sizes: list[int] = []
        model = datagrad_ext.accelerate(nn.Sequential(*[nn.Linear(8, 8), nn.GELU()] * 4).double())
        pack = lambda t: sizes.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            run(model, torch.zeros(64, 8, dtype=torch.float64, requires_grad=True))
        return sum(sizes)

    assert kept(lambda m, x: checkpoint(m, x, use_reentrant=False)) < kept(lambda m, x: m(x)) / 4


# ------------------------------------------------------------------------------------------------- threads


def test_threads_train_models_with_opaque_layers_and_autocast(device: str) -> None:
    """Autocast is a thread's own; so are the tapes of two networks."""
    names = ["mlp_layer_norm", "conv_resnet_batch_norm"]
    failures: list[BaseException] = []
    finished: dict[str, dict[str, Tensor]] = {}

    def build(name: str) -> nn.Module:
        return datagrad_ext.accelerate(network(name).build().to(device, torch.float32))

    def train(model: nn.Module, name: str, key: str, dtype: torch.dtype | None) -> None:
        try:
            case = network(name)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
            for step in range(6):
                x = case.inputs(seed=step)[0].to(device, torch.float32).requires_grad_()
                optimizer.zero_grad()
                with torch.autocast(device, dtype, enabled=dtype is not None):
                    total = _total(lambda v: model(v).float(), x)
                total.backward()
                optimizer.step()
            finished[key] = _state(model)
        except BaseException as error:
            failures.append(error)

    jobs = [(names[0], torch.bfloat16), (names[1], None)]
    for name, dtype in jobs:
        train(build(name), name, f"alone {name}", dtype)
    calls = [(build(name), name, f"beside {name}", dtype) for name, dtype in jobs]
    threads = [threading.Thread(target=train, args=arguments) for arguments in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for name in names:
        assert_equal(finished[f"beside {name}"], finished[f"alone {name}"], rtol=1e-4)


def test_a_file_of_the_whole_model(tmp_path: Path) -> None:
    """torch.save of the object: a copy that is accelerated, and trains like the original."""
    case = network("conv_critic")
    model = datagrad_ext.accelerate(case.build())
    _train(model, case, "cpu", 1, torch.optim.SGD(model.parameters(), lr=1e-2))
    torch.save(model, tmp_path / "model.pt")
    other = torch.load(tmp_path / "model.pt", weights_only=False)
    for m in (model, other):
        _train(m, case, "cpu", 2, torch.optim.SGD(m.parameters(), lr=1e-2))
    assert type(other) is type(model)
    assert_equal(_state(other), _state(model))
