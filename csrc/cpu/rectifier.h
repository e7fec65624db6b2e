// A rectifier on a run of elements in place: its value and the bits of its mask, or the gate by bits written before.
#pragma once

#include <cpu/bits.h>
#include <math/activation.h>

#include <algorithm>

namespace datagrad {
namespace {

// Calls f(constant) with Rectifier's slope known to be zero at compile time, or not.
template <class A, class F>
void with_slope(double slope, const F& f) {
  if (slope == 0) {
    f([] { return Rectifier<A>{A(0)}; });
  } else {
    f([slope] { return Rectifier<A>{static_cast<A>(slope)}; });
  }
}

constexpr int64_t kRun = 1024;  // a multiple of 8

template <class T>
void rectify(T* values, int64_t count, T slope, uint8_t* bits) {
  with_slope<T>(slope, [&](auto rectifier) {
    for (int64_t i = 0; i < count; i += kRun) {
      const int64_t n = std::min(kRun, count - i);
      uint8_t mask[kRun];
      T* z = values + i;
      const auto relu = rectifier();
      for (int64_t k = 0; k < n; ++k) mask[k] = relu.bit(z[k]);
      for (int64_t k = n; k % 8 != 0; ++k) mask[k] = 0;
      pack(mask, n, bits + i / 8);
      for (int64_t k = 0; k < n; ++k) z[k] = relu.gate(relu.bit(z[k]), z[k]);
    }
  });
}

template <class T>
void gate_run(T* values, int64_t count, T slope, const uint8_t* bits) {
  with_slope<T>(slope, [&](auto rectifier) {
    for (int64_t i = 0; i < count; i += kRun) {
      const int64_t n = std::min(kRun, count - i);
      uint8_t mask[kRun];
      T* g = values + i;
      const auto relu = rectifier();
      unpack(bits + i / 8, n, mask);
      for (int64_t k = 0; k < n; ++k) g[k] = relu.gate(mask[k] != 0, g[k]);
    }
  });
}

// The mask that gates a tensor as it is read; by default none does.
template <class T>
struct Gate {
  const uint8_t* bits = nullptr;  // in the tensor's memory order
  T slope = 0;

  // Gates so many elements from `place` on, a multiple of 8.
  void apply(T* values, int64_t place, int64_t count) const {
    if (bits != nullptr) gate_run(values, count, slope, bits + place / 8);
  }
};

}  // namespace
}  // namespace datagrad
