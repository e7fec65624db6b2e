// Launches kernels on the host, and registers the ops of a .cu file as ops of the CPU in the library `datagrad_emulated`.
#pragma once

#include <common/check.h>
#include <common/grid.h>
#include <common/layout.h>

#include <torch/csrc/stable/library.h>

#include <cuda_runtime.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, device, m) _STABLE_TORCH_LIBRARY_IMPL(datagrad_emulated, CPU, m, C10_UID)
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) DATAGRAD_CHECK((call) == 0, #call, " failed")

namespace datagrad {

class Launch {
 public:
  explicit Launch(const Tensor&) {}

  static void* stream() { return nullptr; }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, const Arguments&... arguments) const {
    with_memory(0, kernel, grid, block, arguments...);
  }

  template <class... Parameters, class... Arguments>
  void with_memory(int64_t bytes, void (*kernel)(Parameters...), dim3 grid, dim3 block, const Arguments&... arguments) const {
    run_grid(grid, block.x, bytes, [&] { kernel(arguments...); });
  }
};

}  // namespace datagrad
