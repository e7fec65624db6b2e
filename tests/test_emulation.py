"""What the host runs in place of a GPU: all kernels, and it sees what it is there to see."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulation
import pytest
from test_native import CPU_ALONE

import datagrad_ext

# A block turns its threads' numbers around through shared memory, twice; barrier k is left out.
PROGRAM = """
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

constexpr int kThreads = 64;

void turn(int left_out, int* to) {
  __shared__ int shared[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 2; ++round) {
    shared[thread] = 100 * round + thread;
    if (left_out != 0) __syncthreads();
    to[thread] += shared[kThreads - 1 - thread];
    if (left_out != 1) __syncthreads();
  }
  if (left_out == 2 && thread == 7) return;
  __syncthreads();
  to[thread] += static_cast<int>(__shfl_xor_sync(0xffffffffu, threadIdx.x, 1));
}

int main(int, char** argument) {
  const int left_out = std::atoi(argument[1]);
  for (int launch = 0; launch < 2; ++launch) {
    int to[kThreads] = {};
    try {
      datagrad::run_grid(1, kThreads, 0, [&] { turn(left_out, to); });
    } catch (const std::runtime_error& error) {
      std::puts(error.what());
      return 0;
    }
    for (int i = 0; i < kThreads; ++i) {
      if (to[i] != 100 + 2 * (kThreads - 1 - i) + (i ^ 1)) return std::puts("wrong"), 0;
    }
  }
  std::puts("right");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("barriers") / "turn.cpp"
    source.write_text(PROGRAM)
    subprocess.run(["c++", "-std=c++17", "-O1", emulation.STAND_INS, source, "-o", source.with_suffix("")], check=True)
    return source.with_suffix("")


@pytest.mark.parametrize(
    ("left_out", "result"),
    [(-1, "right"), (0, "wrong"), (1, "wrong"), (2, "threads of a block wait for others, which do not come")],
)
def test_a_barrier_that_is_missing_shows(left_out: int, result: str, program: Path) -> None:
    """In one of two launches, whose threads take turns in either order."""
    done = subprocess.run([program, str(left_out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == result


def test_every_op_with_kernels_on_cuda_runs(emulated_ops: list[str]) -> None:
    """But for the plans of cuDNN, which are no kernels of ours."""
    ours = {op.name for op in datagrad_ext.backends().ops if not op.name.startswith("fused_convolution")}
    assert set(emulated_ops) == ours - set(CPU_ALONE)
