// How GPU threads share out a tensor in memory order: the index arithmetic of the kernels, as functions of block and thread
// numbers that run on the host too. No torch header.
//
// A thread handles a group: W consecutive elements, 8 (one byte of bits, 16-byte accesses) or 1. `op(first, count, values)`
// computes elements first ... first + count - 1, stores them, and leaves their unrounded values in `values`.
//
// Sums over all elements of a channel take two stages, so that their order depends on the shape alone: each block sums what
// it handles into partials[split][channel], then finish_channel adds the splits in order.
#pragma once

#include <common/channels.h>
#include <math/scalar.h>

namespace datagrad {

constexpr int kGroup = 8;
constexpr int kBlockThreads = 256;

template <class T>
struct alignas(16) Pack16 {
  T value[16 / sizeof(T)];
};

// `vector`: the pointer is aligned to 16 bytes, and so is every full group.
template <class T>
DATAGRAD_HD void load_group(const T* source, int64_t first, int count, bool vector, Acc<T>* values) {
  constexpr int kPack = 16 / sizeof(T);
  if (vector && count == kGroup) {
    const auto* packs = reinterpret_cast<const Pack16<T>*>(source + first);
    for (int p = 0; p < kGroup / kPack; ++p) {
      const Pack16<T> pack = packs[p];
      for (int k = 0; k < kPack; ++k) values[p * kPack + k] = static_cast<Acc<T>>(pack.value[k]);
    }
  } else {
    for (int k = 0; k < count; ++k) values[k] = static_cast<Acc<T>>(source[first + k]);
  }
}

template <class T>
DATAGRAD_HD void store_group(T* target, int64_t first, int count, bool vector, const Acc<T>* values) {
  constexpr int kPack = 16 / sizeof(T);
  if (vector && count == kGroup) {
    auto* packs = reinterpret_cast<Pack16<T>*>(target + first);
    for (int p = 0; p < kGroup / kPack; ++p) {
      Pack16<T> pack;
      for (int k = 0; k < kPack; ++k) pack.value[k] = static_cast<T>(values[p * kPack + k]);
      packs[p] = pack;
    }
  } else {
    for (int k = 0; k < count; ++k) target[first + k] = static_cast<T>(values[k]);
  }
}

// Elementwise: thread `thread` of `threads` in the grid, over n elements.
template <class A, class Op>
DATAGRAD_HD void map_thread(const Op& op, int64_t n, int64_t thread, int64_t threads) {
  for (int64_t first = thread * kGroup; first < n; first += threads * kGroup) {
    A values[kGroup];
    if (n - first >= kGroup) {
      op(first, kGroup, values);  // a constant count: the loops over it unroll and the values stay in registers
    } else {
      op(first, static_cast<int>(n - first), values);
    }
  }
}

DATAGRAD_HD inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DATAGRAD_HD inline int64_t at_least_one(int64_t a) { return a > 1 ? a : 1; }
DATAGRAD_HD inline int64_t at_most(int64_t a, int64_t bound) { return a < bound ? a : bound; }

// Whether groups of eight fit: no group reaches over a row of channels (inner == 1) or a run of a channel (inner > 1).
DATAGRAD_HD inline bool fits_groups(const ChannelView& view) {
  return (view.inner == 1 ? view.channels : view.inner) % kGroup == 0;
}

// A matrix (rows, channels), channels fastest. A block has `width` threads side by side, each with W channels, and
// kBlockThreads / width rows of them; block (x, split) handles every splits-th row of blocks of rows.
template <int W>
struct Columns {
  int64_t rows, channels;
  int width;
  int64_t splits;

  explicit Columns(const ChannelView& view) : rows(view.outer * view.inner), channels(view.channels), width(1) {
    while (width < 32 && width * W < channels) width *= 2;
    splits = at_least_one(at_most(rows / (8 * height()), 1024 / at_least_one(blocks())));
  }

  DATAGRAD_HD int height() const { return kBlockThreads / width; }
  DATAGRAD_HD int block_channels() const { return width * W; }
  DATAGRAD_HD int64_t blocks() const { return ceil_div(channels, block_channels()); }
  static constexpr int kShared = kBlockThreads * W;

  // What thread (x, y) of block (block, split) adds up, into shared[y][x * W ... + W - 1].
  template <class A, class Op>
  DATAGRAD_HD void accumulate(const Op& op, int64_t block, int64_t split, int x, int y, A* shared) const {
    A sum[W] = {};
    const int64_t channel = block * block_channels() + x * W;
    if (channel < channels) {
      for (int64_t row = split * height() + y; row < rows; row += splits * height()) {
        A values[kGroup];
        op(row * channels + channel, W, values);
        for (int k = 0; k < W; ++k) sum[k] += values[k];
      }
    }
    for (int k = 0; k < W; ++k) shared[y * block_channels() + x * W + k] = sum[k];
  }

  // After all threads of the block: thread `thread` adds up the rows of its channels.
  template <class A>
  DATAGRAD_HD void reduce(int64_t block, int64_t split, int thread, const A* shared, A* partials) const {
    for (int column = thread; column < block_channels(); column += kBlockThreads) {
      const int64_t channel = block * block_channels() + column;
      if (channel >= channels) return;
      A sum = A(0);
      for (int y = 0; y < height(); ++y) sum += shared[y * block_channels() + column];
      partials[split * channels + channel] = sum;
    }
  }
};

// (outer, channels, inner) with inner > 1: block (channel, split) handles every splits-th run of kBlockThreads groups of
// that channel; a group lies within one run of `inner` elements.
template <int W>
struct Runs {
  int64_t channels, groups_per_run, groups;
  int64_t splits;

  explicit Runs(const ChannelView& view)
      : channels(view.channels), groups_per_run(view.inner / W), groups(view.outer * groups_per_run) {
    splits = at_least_one(at_most(groups / (8 * kBlockThreads), 2048 / at_least_one(channels)));
  }

  // What thread `thread` of block (channel, split) adds up.
  template <class A, class Op>
  DATAGRAD_HD A accumulate(const Op& op, int64_t channel, int64_t split, int thread) const {
    A sum = A(0);
    for (int64_t j = split * kBlockThreads + thread; j < groups; j += splits * kBlockThreads) {
      const int64_t run = j / groups_per_run * channels + channel;
      A values[kGroup];
      op((run * groups_per_run + j % groups_per_run) * W, W, values);
      for (int k = 0; k < W; ++k) sum += values[k];
    }
    return sum;
  }
};

// The sum of a channel over the splits, in their order.
template <class A>
DATAGRAD_HD double finish_channel(const A* partials, int64_t splits, int64_t channels, int64_t channel) {
  double sum = 0;
  for (int64_t split = 0; split < splits; ++split) sum += static_cast<double>(partials[split * channels + channel]);
  return sum;
}

}  // namespace datagrad
