// Runs the kernels of common/narrow_chain.h.
#pragma once

#include <common/cuda_launch.cuh>
#include <common/narrow_chain.h>
#include <cuda/warp.cuh>

namespace datagrad {
namespace {

// A job is an argument of the kernel, of which there may be 4 KB.
static_assert(sizeof(NarrowJob<Half>) <= 4096, "a kernel's arguments are too large");

template <class Sweep, class T>
__global__ void __launch_bounds__(256, 1) narrow_sweep(const __grid_constant__ NarrowJob<T> job) {
  DeviceBlock block{blockIdx.x, gridDim.x, static_cast<int>(blockDim.x) / warp::kLanes,
                    static_cast<int>(threadIdx.x) / warp::kLanes, static_cast<int>(threadIdx.x) % warp::kLanes};
  Sweep::run(warp::NarrowWalk<DeviceBlock, T>(block, job));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_sums(const __grid_constant__ NarrowTotals<T> totals, const float* partials, int64_t blocks, int64_t size) {
  const NarrowTotal<T>& total = totals.of[blockIdx.y];
  const int k = blockIdx.x * kThreads + threadIdx.x;
  if (k < total.rows * total.columns) total.finish(partials, blocks, size, k);
}

struct NarrowOnCuda {
  using Block = DeviceBlock;

  // Shared memory of a block; 0 where there is no ldmatrix and mma of 16-bit floats.
  static int64_t memory(const Tensor& t) {
    return attribute(t, cudaDevAttrComputeCapabilityMajor) < 8 ? 0 : attribute(t, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  }

  template <class Sweep, class T>
  static void run(const Tensor& like, const NarrowJob<T>& job, const NarrowLayout& layout, int64_t blocks,
                  const NarrowTotals<T>& totals) {
    const Launch launch(like);
    const dim3 threads(layout.warps * warp::kLanes);
    launch.with_memory(layout.bytes, narrow_sweep<Sweep, T>, static_cast<unsigned>(blocks), threads, job);
    const dim3 grid(grid_for(totals.largest), static_cast<unsigned>(totals.count));
    launch(finish_sums<T>, grid, kThreads, totals, job.partials, blocks, int64_t{job.partial_size});
  }

 private:
  static int attribute(const Tensor& t, cudaDeviceAttr name) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, t.get_device_index()));
    return value;
  }
};

}  // namespace
}  // namespace datagrad
