// Launching CUDA kernels: the device of the arguments, the current stream, a check.
#pragma once

#include <common/check.h>
#include <common/grid.h>
#include <common/layout.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cuda_runtime.h>

#include <cstdint>

namespace datagrad {

// Makes t's device current while it lives and knows the stream to launch on.
class Launch {
 public:
  explicit Launch(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // kernel<<<grid, block>>>(arguments...) on the stream; nothing for an empty grid.
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    kernel<<<grid, block, 0, stream_>>>(static_cast<Arguments&&>(arguments)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // The same with so many bytes of shared memory a block, as many as the device has.
  template <class... Parameters, class... Arguments>
  void with_memory(int64_t bytes, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) const {
    const auto* function = reinterpret_cast<const void*>(kernel);
    STD_CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    kernel<<<grid, block, static_cast<size_t>(bytes), stream_>>>(static_cast<Arguments&&>(arguments)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace datagrad
