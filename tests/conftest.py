"""What every test runs under: fresh memory is NaN, a CUDA device that must be there is there.

An element that a kernel forgets to write is NaN in every comparison. Torch fills fresh memory only under
deterministic algorithms; warn_only lets CUDA ops without a deterministic form run, and their warning is the
one that is not an error. DATAGRAD_REQUIRE_CUDA=1 turns "skipped: no CUDA" into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import emulation
import pytest
import torch

from datagrad_ext import nodes

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-rows",
        type=int,
        metavar="N",
        help="only rows on CUDA, of each test function at most N, evenly spaced: for compute-sanitizer",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _repeats(item)]
    most = config.getoption("--cuda-rows")
    if most is None:
        return
    of_function: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("cuda"):
            of_function.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = {item for rows in of_function.values() for item in rows[:: max(1, -(-len(rows) // most))]}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def _repeats(item: pytest.Item) -> bool:
    """Whether it shows nothing new: emulated kernels are behind ops alone, and pointless where a GPU runs them."""
    row = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return row.get("device") == "emulated" and (row.get("implementation", "op") != "op" or torch.cuda.is_available())


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get("DATAGRAD_REQUIRE_CUDA") == "1":
        pytest.fail("DATAGRAD_REQUIRE_CUDA=1, and torch finds no CUDA device")
    pytest.skip("no CUDA")


@pytest.fixture(autouse=True, scope="session")
def _fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "torch no longer fills fresh memory under deterministic algorithms"
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A row for each device of the module, which may name its own."""
    if "device" in metafunc.fixturenames:
        names = getattr(metafunc.module, "DEVICES", ("cpu", "cuda"))
        rows = [pytest.param(name, marks=[pytest.mark.cuda] if name == "cuda" else []) for name in names]
        metafunc.parametrize("device", rows, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """A device that ops run on.

    "emulated" is the CPU with the kernels of CUDA (`emulation.py`), "functions" the CPU without nodes in C++.
    """
    if request.param == "emulated":
        request.getfixturevalue("emulated_kernels")
    elif request.param == "functions":
        request.getfixturevalue("monkeypatch").setattr(nodes, "nodes", None)
    else:
        return str(request.param)
    return "cpu"


@pytest.fixture(scope="session")
def emulated_ops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Names of the ops whose CUDA kernels run on the host, too."""
    folder = tmp_path_factory.getbasetemp()
    with emulation.library_in(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) as names:
        yield names


@pytest.fixture
def emulated_kernels(emulated_ops: list[str]) -> Iterator[None]:
    """Ops on the CPU run the kernels of CUDA."""
    with emulation.in_place_of_the_cpu(emulated_ops):
        yield
