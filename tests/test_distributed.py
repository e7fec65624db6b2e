"""DistributedDataParallel and fully_shard on two processes: the gradients of one process on the joint batch.

One pair of processes runs every check and writes what it found; the tests read it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from oracle import assert_equal
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import datagrad_ext
from datagrad_ext import CentralDifference, DataGrad, Exact, FiniteDifference, Term, penalties

WORLD, ROWS = 2, 4
Step = Callable[[nn.Module, Tensor, Tensor], None]


def _batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(WORLD * ROWS, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(WORLD * ROWS) % 5


def _network(outputs: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, outputs)]
        return nn.Sequential(*layers).double()


def _loss_and_penalty(model: nn.Module, x: Tensor, t: Tensor) -> None:
    x = x.clone().requires_grad_()
    losses = F.cross_entropy(model(x), t, reduction="none")
    (J,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    (losses.mean() + J.square().sum(1).mean()).backward()


def _penalty_alone(model: nn.Module, x: Tensor, t: Tensor) -> None:
    """A critic's: linear in the output, so that nothing flows to the last bias."""
    x = x.clone().requires_grad_()
    (J,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (J.norm(dim=1) - 1).square().mean().backward()


def _accumulated(model: nn.Module, x: Tensor, t: Tensor) -> None:
    """Half a batch at a time; only the second half communicates."""
    quiet = model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
    first, second = slice(0, None, 2), slice(1, None, 2)
    with quiet:
        _loss_and_penalty(model, x[first], t[first])
    _loss_and_penalty(model, x[second], t[second])


def _plain(model: nn.Module, x: Tensor, t: Tensor) -> None:
    F.cross_entropy(model(x), t).backward()


def _objective(estimator: Any, model: nn.Module, x: Tensor, t: Tensor) -> None:
    DataGrad(F.cross_entropy, Term(0.1, penalties.l2), estimator)(model, x, t).total.backward()


OBJECTIVES: dict[str, Step] = {
    "exact": functools.partial(_objective, Exact()),
    "difference": functools.partial(_objective, FiniteDifference(0.25)),
    "central difference": functools.partial(_objective, CentralDifference(0.25)),
}


# name -> step, what DistributedDataParallel is constructed with
DDP: dict[str, tuple[Step, dict[str, Any]]] = {
    "loss_and_penalty": (_loss_and_penalty, {}),
    "penalty_alone": (_penalty_alone, {}),
    "accumulated": (_accumulated, {}),
    "find_unused_parameters": (_loss_and_penalty, {"find_unused_parameters": True}),
    "many_buckets": (_loss_and_penalty, {"bucket_cap_mb": 1e-4}),
    "gradients_in_buckets": (_loss_and_penalty, {"gradient_as_bucket_view": True}),
    "static_graph": (_loss_and_penalty, {"static_graph": True}),
    "static_graph_without_data_gradient": (_plain, {"static_graph": True}),
}


def _gradients(model: nn.Module, step: Step, rank: int, names: Mapping[str, Tensor]) -> dict[str, Tensor] | str:
    """Gradients after the second of two steps (the first builds DDP's buckets), or the error's text."""
    x, t = _batch()
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    try:
        for _ in range(2):
            for p in names.values():
                p.grad = None
            step(model, x[mine], t[mine])
    except RuntimeError as error:
        return str(error)
    return {name: p.grad.clone() for name, p in names.items() if p.grad is not None}


def _ddp(name: str, rank: int) -> dict[str, Tensor] | str:
    step, options = DDP[name]
    model = datagrad_ext.accelerate(_network())
    return _gradients(DistributedDataParallel(model, **options), step, rank, dict(model.named_parameters()))


def _fsdp(
    step: Step, rank: int, called_before: bool = False, accelerate: bool = True, reshard: bool = False
) -> dict[str, Tensor] | str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model: Any = _network()
    if accelerate:
        model = datagrad_ext.accelerate(model)
    if called_before:
        _loss_and_penalty(model, *_batch())
        model.zero_grad()
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
    model.set_reshard_after_backward(reshard)
    found = _gradients(model, step, rank, dict(model.named_parameters()))
    return found if isinstance(found, str) else {name: g.full_tensor() for name, g in found.items()}


def _process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        found = {f"ddp {name}": _ddp(name, rank) for name in DDP}
        found["fsdp plain"] = _fsdp(_plain, rank)
        for name, accelerate, reshard in itertools.product(OBJECTIVES, (False, True), (False, True)):
            found[f"fsdp {name} {accelerate} {reshard}"] = _fsdp(OBJECTIVES[name], rank, False, accelerate, reshard)
        for called_before in (False, True):
            found[f"fsdp penalty {called_before}"] = _fsdp(_loss_and_penalty, rank, called_before)
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor] | str]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, args=(port, str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def _expected(step: Step) -> dict[str, Tensor | None]:
    """One process, the joint batch, plain PyTorch."""
    model = _network()
    step(model, *_batch())
    return {name: p.grad for name, p in model.named_parameters()}


def _assert_joint(found: list, name: str, step: Step) -> None:
    for rank in found:
        actual = rank[name]
        assert isinstance(actual, dict), actual
        expected = _expected(step)
        assert_equal({key: actual.get(key) for key in expected}, expected)


@pytest.mark.parametrize("name", [name for name in DDP if name != "static_graph"])
def test_ddp_has_the_gradients_of_the_joint_batch(name: str, found: list) -> None:
    _assert_joint(found, f"ddp {name}", DDP[name][0])


def test_ddp_with_a_static_graph_and_a_data_gradient_is_refused(found: list) -> None:
    for rank in found:
        assert "Construct it without static_graph" in rank["ddp static_graph"]


def test_fully_shard_trains_without_a_data_gradient(found: list) -> None:
    _assert_joint(found, "fsdp plain", _plain)


@pytest.mark.parametrize("called_before", [False, True])
def test_fully_shard_refuses_a_data_gradient(called_before: bool, found: list) -> None:
    for rank in found:
        assert "Use DistributedDataParallel" in rank[f"fsdp penalty {called_before}"]


@pytest.mark.parametrize("reshard", [False, True])
@pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])
@pytest.mark.parametrize("name", ["difference", "central difference"])
def test_fully_shard_has_the_differences_of_the_joint_batch(
    name: str, accelerate: bool, reshard: bool, found: list
) -> None:
    _assert_joint(found, f"fsdp {name} {accelerate} {reshard}", OBJECTIVES[name])


@pytest.mark.parametrize("reshard", [False, True])
@pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])
def test_the_exact_estimator_refuses_a_sharded_model(accelerate: bool, reshard: bool, found: list) -> None:
    for rank in found:
        assert "whose estimator needs no second derivative" in rank[f"fsdp exact {accelerate} {reshard}"]
