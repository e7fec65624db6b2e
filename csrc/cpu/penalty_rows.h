// Norms of a row and their seeds on the CPU; formulas in math/penalty.h. kRowLanes partial sums make the loops vectorise.
#pragma once

#include <cpu/convert.h>
#include <math/penalty.h>

#include <algorithm>

namespace datagrad {
namespace {

constexpr int64_t kRowBlock = 2048;  // elements converted and summed at a time: a block stays in the first-level cache
constexpr int kRowLanes = 16;

// The sum over n elements of a block.
template <class Reduction, class A>
typename Reduction::Sum reduce_block(const Reduction& reduction, const A* x, int64_t n) {
  typename Reduction::Sum lane[kRowLanes] = {};
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes) {
    for (int k = 0; k < kRowLanes; ++k) reduction.add(lane[k], x[i + k]);
  }
  for (; i < n; ++i) reduction.add(lane[0], x[i]);
  for (int width = kRowLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) Reduction::merge(lane[k], lane[k + width]);
  }
  return lane[0];
}

// Squares that can be summed as they are, which is the rule; element by element otherwise.
inline ScaledSquares reduce_block(const L2<double>& norm, const double* x, int64_t n) {
  const double plain = reduce_block(L2Squared<double>{}, x, n);
  if (plain > 0x1p-900 && plain < 0x1p960) return {0.0, plain, 0.0};
  ScaledSquares sum = {};
  for (int64_t i = 0; i < n; ++i) norm.add(sum, x[i]);
  return sum;
}

template <class T, class Reduction>
typename Reduction::Sum reduce_chunk(const Reduction& reduction, const T* x, int64_t n) {
  typename Reduction::Sum sum = {};
  Acc<T> buffer[kRowBlock];
  for (int64_t i = 0; i < n; i += kRowBlock) {
    const int64_t count = std::min(kRowBlock, n - i);
    Reduction::merge(sum, reduce_block(reduction, widened(x + i, buffer, count), count));
  }
  return sum;
}

// out = weight * direction(x), n elements of one row.
template <class Norm, class T>
void seed_chunk(const T* x, Acc<T> value, Acc<T> weight, Acc<T> share, T* out, int64_t n) {
  Acc<T> buffer[kRowBlock];
  for (int64_t i = 0; i < n; i += kRowBlock) {
    const int64_t count = std::min(kRowBlock, n - i);
    const Acc<T>* wide = widened(x + i, buffer, count);
    Acc<T>* target = wide_target(out + i, buffer);
    for (int64_t k = 0; k < count; ++k) target[k] = weight * Norm::direction(wide[k], value, share);
    store(target, out + i, count);
  }
}

}  // namespace
}  // namespace datagrad
