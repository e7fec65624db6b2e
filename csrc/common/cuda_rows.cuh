// Rows shared out among threads on CUDA: short rows to a few lanes of a warp, long ones to a block.
//
// A team of `lanes` threads has one row at a time; its thread `lane` has elements lane, lane + lanes, ... (or vectors of them). All
// threads of a block make the same number of turns, those without a row with nothing to do, so that every thread reaches
// every shuffle and every barrier. Results of reduce() are the same in all threads of the team, and the order of additions
// depends on the sizes alone.
#pragma once

#include <common/cuda_launch.cuh>

#include <cstring>

namespace datagrad {

constexpr int kWarp = 32;
constexpr int64_t kNarrowRow = 1024;  // rows of more elements get a block

// The lane's value in lane ^ offset of the warp.
template <class S>
__device__ S shuffle_xor(const S& own, int offset) {
  static_assert(sizeof(S) % sizeof(uint32_t) == 0, "whole words");
  constexpr int kWords = sizeof(S) / sizeof(uint32_t);
  uint32_t words[kWords];
  memcpy(words, &own, sizeof own);
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(0xffffffffu, words[i], offset);
  S other;
  memcpy(&other, words, sizeof other);
  return other;
}

template <class Reduction, class S>
__device__ void merge_lanes(S& sum, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) Reduction::merge(sum, shuffle_xor(sum, offset));
}

// A power of two of lanes of one warp.
struct NarrowTeam {
  int lanes;

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % lanes; }

  template <class Reduction, class S>
  __device__ S reduce(S sum) const {
    merge_lanes<Reduction>(sum, lanes);
    return sum;
  }
};

// A whole block of kThreads threads.
struct WideTeam {
  static constexpr int lanes = kThreads;

  __device__ int lane() const { return static_cast<int>(threadIdx.x); }

  template <class Reduction, class S>
  __device__ S reduce(S sum) const {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ S of_warp[kWarps];
    merge_lanes<Reduction>(sum, kWarp);
    if (lane() % kWarp == 0) of_warp[lane() / kWarp] = sum;
    __syncthreads();
    sum = of_warp[0];
    for (int warp = 1; warp < kWarps; ++warp) Reduction::merge(sum, of_warp[warp]);
    __syncthreads();  // of_warp is free for the next call
    return sum;
  }
};

// Calls f(row, has_row) in every thread for the rows of its team.
template <class Team, class F>
__device__ void for_each_row(const Team& team, int64_t rows, const F& f) {
  const int64_t teams = kThreads / team.lanes;
  for (int64_t base = blockIdx.x * teams; base < rows; base += gridDim.x * teams) {
    const int64_t row = base + static_cast<int>(threadIdx.x) / team.lanes;
    f(row, row < rows);
  }
}

// Lanes for a short row read `vector` elements at a time: at least two turns each, as far as there are elements.
inline NarrowTeam narrow_team(int64_t elements, int vector) {
  int lanes = 1;
  while (lanes < kWarp && int64_t{2} * lanes * vector < elements) lanes *= 2;
  return {lanes};
}

template <class Team>
unsigned blocks_for_rows(const Team& team, int64_t rows) {
  return grid_for(rows, kThreads / team.lanes);
}

}  // namespace datagrad
