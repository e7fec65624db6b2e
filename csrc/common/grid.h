// How work is cut into blocks of threads on CUDA.
#pragma once

#include <math/scalar.h>

#include <algorithm>
#include <cstdint>

// Of a grid-stride loop; so many fill any GPU several times. Tests have fewer, so that small work takes several turns.
#ifndef DATAGRAD_MOST_BLOCKS
#define DATAGRAD_MOST_BLOCKS 8192
#endif

namespace datagrad {

constexpr int kThreads = 256;

// Blocks of `threads` for `items` items of a grid-stride loop; 0 for no items.
inline unsigned grid_for(int64_t items, int64_t threads = kThreads) {
  return static_cast<unsigned>(std::min<int64_t>((items + threads - 1) / threads, DATAGRAD_MOST_BLOCKS));
}

DATAGRAD_HD inline bool is_aligned_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace datagrad
