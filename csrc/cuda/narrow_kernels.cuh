// The kernels of narrow chains, and their launches.
#pragma once

#include <common/cuda_launch.cuh>
#include <cuda/narrow_sweeps.cuh>

namespace datagrad {
namespace {

using warp::NarrowJob;
using warp::NarrowTotal;
using warp::Sweep;

template <class T>
struct NarrowTotals {
  NarrowTotal<T> of[2 * warp::kMaxLinks];
  int count = 0, largest = 0;  // elements

  void add(T* target, int place, int rows, int columns, bool to_what_is_there) {
    of[count++] = {target, place, rows, columns, to_what_is_there};
    largest = std::max(largest, rows * columns);
  }
};

// A job is an argument of the kernel, of which there may be 4 KB.
static_assert(sizeof(NarrowJob<Half>) <= 4096, "a kernel's arguments are too large");

template <Sweep sweep, class T>
__global__ void __launch_bounds__(256, 1) narrow_sweep(const __grid_constant__ NarrowJob<T> job) {
  warp::run_sweep<sweep>(job);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_sums(const __grid_constant__ NarrowTotals<T> totals, const float* partials, int64_t blocks, int64_t size) {
  const NarrowTotal<T>& total = totals.of[blockIdx.y];
  const int k = blockIdx.x * kThreads + threadIdx.x;
  if (k < total.rows * total.columns) total.finish(partials, blocks, size, k);
}

inline int device_attribute(const Tensor& t, cudaDeviceAttr name) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, t.get_device_index()));
  return value;
}

// Bytes of shared memory that a block may have; 0 where there is no ldmatrix and mma of 16-bit floats.
inline int64_t narrow_memory(const Tensor& t) {
  if (device_attribute(t, cudaDevAttrComputeCapabilityMajor) < 8) return 0;
  return device_attribute(t, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// `bytes` of shared memory in each of `blocks` blocks.
template <Sweep sweep, class T>
void run_narrow_sweep(const Tensor& like, const NarrowJob<T>& job, int warps, int64_t bytes, int64_t blocks,
                      const NarrowTotals<T>& totals) {
  const Launch launch(like);
  const dim3 threads(warps * warp::kLanes);
  launch.with_memory(bytes, narrow_sweep<sweep, T>, static_cast<unsigned>(blocks), threads, job);
  const dim3 grid(static_cast<unsigned>(ceil_div(totals.largest, kThreads)), static_cast<unsigned>(totals.count));
  launch(finish_sums<T>, grid, kThreads, totals, job.partials, blocks, int64_t{job.partial_size});
}

}  // namespace
}  // namespace datagrad
