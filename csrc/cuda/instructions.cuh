// What a warp and a block are asked for in the device's own instructions. ldmatrix and mma of bfloat16 need compute capability
// 8.0.
#pragma once

#include <common/dtype.h>

namespace datagrad {
namespace {

// The shared memory that the launch gave the block.
__device__ inline void* memory_of_block() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Register k of a lane: a pair of matrix k, whose row r is where lane 8 k + r says; `Turn`: of its transpose.
template <bool Turn>
__device__ void load_matrices(uint32_t (&pair)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (Turn) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3])
                 : "r"(address)
                 : "memory");
  }
}

// c (16, 8) += a (16, 16) b (16, 8), of elements T in pairs; all lanes have their parts as mma.m16n8k16 wants them.
template <class T>
__device__ void multiply_pairs(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#define DATAGRAD_MMA(type)                                                                                    \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
      "{%0, %1, %2, %3};"                                                                                     \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if (std::is_same_v<T, Half>) {
    DATAGRAD_MMA("f16");
  } else {
    DATAGRAD_MMA("bf16");
  }
#undef DATAGRAD_MMA
}

// A pair of ones of type T.
template <class T>
__device__ constexpr uint32_t pair_of_ones() {
  return std::is_same_v<T, Half> ? 0x3c003c00u : 0x3f803f80u;
}

}  // namespace
}  // namespace datagrad
