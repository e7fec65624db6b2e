// The instructions of a warp and a block, as the PTX manual defines ldmatrix and mma.m16n8k16.
#pragma once

#include <common/dtype.h>

#include <cuda_runtime.h>

#include <cstring>

namespace datagrad {
namespace {

void* memory_of_block() { return HostBlock::current().memory(); }

// Register k: elements (lane / 4, 2 (lane % 4)) and the next of matrix k, whose row r is where lane 8 k + r says.
template <bool Turn>
void load_matrices(uint32_t (&pairs)[4], const void* row) {
  HostBlock::current().with_lanes(row, [&](const auto& row_of) {
    const int lane = threadIdx.x % HostBlock::kLanes, first = lane / 4, second = lane % 4 * 2;
    for (int k = 0; k < 4; ++k) {
      uint16_t pair[2];
      for (int e = 0; e < 2; ++e) {
        const int r = Turn ? second + e : first, column = Turn ? first : second + e;
        std::memcpy(&pair[e], static_cast<const uint16_t*>(row_of(8 * k + r)) + column, 2);
      }
      std::memcpy(&pairs[k], pair, 4);
    }
  });
}

template <class T>
uint32_t pair_of_ones() {
  const T ones[2] = {T(1.0f), T(1.0f)};
  uint32_t pair;
  std::memcpy(&pair, ones, 4);
  return pair;
}

template <class T>
float element(uint32_t pair, int e) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * e));
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, 2);
  return static_cast<float>(value);
}

template <class T>
void multiply_pairs(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Own {
    uint32_t a[4], b[2];
  };
  const Own own{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  HostBlock::current().with_lanes(own, [&](const auto& of) {
    const int lane = threadIdx.x % HostBlock::kLanes;
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 4, column = lane % 4 * 2 + k % 2;
      for (int i = 0; i < 16; ++i) {  // the column of a and the row of b
        const float left = element<T>(of(row * 4 + i % 8 / 2).a[k / 2 + i / 8 * 2], i % 2);
        c[k] += left * element<T>(of(column * 4 + i % 8 / 2).b[i / 8], i % 2);
      }
    }
  });
}

}  // namespace
}  // namespace datagrad
