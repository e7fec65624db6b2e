"""The JAX peer of the benchmark: how a case is described and sent, what is said where JAX is absent; and, where it is
there (JAX_PYTHON names an interpreter that has it), that its gradients are right.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cases, contestants, gate, jax_peer, objectives, suite

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_for_jax.py")))
NOT_JAX = "import json; print(json.dumps(dict(absent='ModuleNotFoundError: no jax')))"
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None and "JAX_PYTHON" not in os.environ,
    reason="no JAX: install it, or name an interpreter that has it in JAX_PYTHON",
)
SMALL = cases.Subject("small", lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 10)), (6, 5))
CASE = cases.Case("small", SMALL, objectives.CROSS_ENTROPY_L2, 2.0)


@pytest.fixture
def worker() -> Iterator[jax_peer.Worker]:
    worker = jax_peer.Worker("cpu", STAND_IN)
    yield worker
    worker.close()


def test_the_conversation_with_a_stand_in(worker: jax_peer.Worker) -> None:
    jax_peer.load(worker, CASE)
    model, _, _ = CASE.build()
    for p, g in zip(model.parameters(), jax_peer.gradients(worker, "cpu"), strict=True):
        assert torch.equal(2 * p, g)
    assert jax_peer.seconds(worker, 6) == 3.0
    assert jax_peer.peak_bytes(worker) == 1234
    assert worker.title == "JAX 0 (stand-in) on cpu"


def test_bfloat16_arrives_as_the_same_numbers(worker: jax_peer.Worker) -> None:
    rounded = replace(CASE, precision="bf16")
    jax_peer.load(worker, rounded)
    model, _, _ = rounded.build()
    for p, g in zip(model.parameters(), jax_peer.gradients(worker, "cpu"), strict=True):
        assert torch.equal(2 * p.float(), g)


def test_an_error_there_is_a_sentence_here(worker: jax_peer.Worker) -> None:
    other = replace(SMALL, network=lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 10)))
    with pytest.raises(RuntimeError, match="JAX: ValueError: the network does not begin with a linear layer"):
        jax_peer.load(worker, replace(CASE, subject=other))


def test_a_process_that_ends_is_a_sentence(worker: jax_peer.Worker) -> None:
    with pytest.raises(RuntimeError, match="the JAX process ended with 7 and without an answer"):
        worker.ask("nothing")


def test_absence_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_peer, "running", lambda device: jax_peer.Worker(device, (sys.executable, "-c", NOT_JAX)))
    result = suite.run_case(CASE, contestants.find(["plain", "jax"]), repeats=1, with_memory=True)
    row = result.row("jax")
    assert row is not None
    assert (row.status, row.times) == ("absent", None)
    assert row.reason == "no JAX for cpu: ModuleNotFoundError: no jax"


def test_the_worker_names_what_it_lacks() -> None:
    if importlib.util.find_spec("jax"):
        pytest.skip("JAX is here")
    with pytest.raises(jax_peer.Absent, match="no JAX for cpu: ModuleNotFoundError: No module named 'jax'"):
        jax_peer.Worker("cpu", (sys.executable, str(jax_peer.WORKER)))


def test_its_own_block_times_a_step_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(case: cases.Case) -> contestants.Prepared:
        step = contestants.find(["eager"])[0].make(case).step
        return contestants.Prepared(step, peak_bytes=5, block=lambda calls: 0.25 * calls)

    row = contestants.Contestant("elsewhere", "elsewhere", "peer", elsewhere)
    found = suite.run_case(CASE, [row], repeats=2, with_memory=True).row("elsewhere")
    assert found is not None
    assert found.times is not None
    assert (found.times.median_ms, found.peak_bytes) == (250, 5)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.device}-{case.name}")
def test_every_case_has_a_description(case: cases.Case) -> None:
    with torch.device("meta"):
        model = case.subject.network()
    numbers = {p: i for i, p in enumerate(model.parameters())}
    found = str(jax_peer.describe(model, numbers))
    assert found.count("'linear'") + found.count("'convolution'") == sum(p.dim() > 1 for p in numbers)


def test_a_module_without_a_description_is_named() -> None:
    with pytest.raises(ValueError, match=r"jax_peer\.describe has no row for Dropout"):
        jax_peer.describe(nn.Sequential(nn.Dropout()), {})


@needs_jax
@pytest.mark.parametrize("name", ["critic_r1", "vgg", "convbn", "resnet", "sdf", "mlp_paper", "mlp_bn_evaluated"])
def test_gradients_of_jax_are_right(name: str) -> None:
    (case,) = cases.find("cpu", [name])
    few = case.on_few(2 if case.has_convolutions else 32)
    worker = jax_peer.running("cpu")
    jax_peer.load(worker, few)
    error = gate.compare(jax_peer.gradients(worker, "cpu"), gate.oracle(few).penalised).relative_error
    assert error < gate.TOLERANCES["float32"]
    assert jax_peer.seconds(worker, 2) > 0
    assert jax_peer.peak_bytes(worker) > 0
