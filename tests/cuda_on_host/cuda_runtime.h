// Stands in for the CUDA toolkit's header, so that a C++ compiler takes a .cu file as it is and its kernels run on the host.
#pragma once

#include <block.h>

#include <cstdint>

#define __global__ static
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

inline void __syncthreads() { datagrad::HostBlock::current().meet_block(); }
inline void __syncwarp() { datagrad::HostBlock::current().meet_warp(); }

inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, int mask) {
  uint32_t other;
  datagrad::HostBlock::current().with_lanes(value, [&](const auto& of) { other = of(threadIdx.x % 32 ^ static_cast<unsigned>(mask)); });
  return other;
}

enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerBlockOptin };

inline int cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = name == cudaDevAttrComputeCapabilityMajor ? 9 : 227 * 1024;  // as an H100 has
  return 0;
}
