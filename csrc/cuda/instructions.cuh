// What a warp and a block are asked for in the device's own instructions. ldmatrix and mma of bfloat16 need compute capability
// 8.0. The functions are the device's; the host only has to be able to name them.
#pragma once

#include <common/dtype.h>
#include <math/scalar.h>

namespace datagrad {
namespace {

DATAGRAD_HD inline void wait_for_warp() {
#ifdef __CUDA_ARCH__
  __syncwarp();
#endif
}

DATAGRAD_HD inline void wait_for_block() {
#ifdef __CUDA_ARCH__
  __syncthreads();
#endif
}

// The shared memory that the launch gave the block.
DATAGRAD_HD inline void* memory_of_block() {
#ifdef __CUDA_ARCH__
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return nullptr;
#endif
}

// Register k of a lane: a pair of matrix k, whose row r is where lane 8 k + r says; `Turn`: of its transpose.
template <bool Turn>
DATAGRAD_HD void load_matrices([[maybe_unused]] uint32_t& a, [[maybe_unused]] uint32_t& b, [[maybe_unused]] uint32_t& c,
                               [[maybe_unused]] uint32_t& d, [[maybe_unused]] const void* row) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (Turn) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address)
                 : "memory");
  }
#endif
}

// c (16, 8) += a (16, 16) b (16, 8), of elements T in pairs; all lanes have their parts as mma.m16n8k16 wants them.
template <class T>
DATAGRAD_HD void multiply_pairs([[maybe_unused]] float& c0, [[maybe_unused]] float& c1, [[maybe_unused]] float& c2,
                                [[maybe_unused]] float& c3, [[maybe_unused]] const uint32_t (&a)[4],
                                [[maybe_unused]] const uint32_t (&b)[2]) {
#ifdef __CUDA_ARCH__
#define DATAGRAD_MMA(type)                                                                                    \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
      "{%0, %1, %2, %3};"                                                                                     \
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                                                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if (std::is_same_v<T, Half>) {
    DATAGRAD_MMA("f16");
  } else {
    DATAGRAD_MMA("bf16");
  }
#undef DATAGRAD_MMA
#endif
}

}  // namespace
}  // namespace datagrad
