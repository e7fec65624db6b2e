// A rectifier on a run of elements: its value and the bits of its mask, or the gate by bits written before. A result may take the
// place of what it is made of.
#pragma once

#include <cpu/bits.h>
#include <cpu/masked_lanes.h>
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

constexpr int64_t kMaskRun = 1024;  // a multiple of 8

// out = f(z)
template <class T>
void rectify(const T* z, T* out, int64_t count, T slope, uint8_t* bits) {
  with_slope<T>(slope, [&](auto rectifier) {
    const auto relu = rectifier();
    for (int64_t i = masked::rectify(z, out, count, relu, bits); i < count; i += kMaskRun) {
      const int64_t n = std::min(kMaskRun, count - i);
      uint8_t mask[kMaskRun];
      for (int64_t k = 0; k < n; ++k) mask[k] = relu.bit(z[i + k]);
      for (int64_t k = n; k % 8 != 0; ++k) mask[k] = 0;
      pack(mask, n, bits + i / 8);
#pragma GCC ivdep
      for (int64_t k = 0; k < n; ++k) out[i + k] = relu.gate(relu.bit(z[i + k]), z[i + k]);
    }
  });
}

// out = f'(z) g
template <class T>
void gate_run(const T* g, T* out, int64_t count, T slope, const uint8_t* bits) {
  with_slope<T>(slope, [&](auto rectifier) {
    const auto relu = rectifier();
    for (int64_t i = masked::gate(g, out, count, relu, bits); i < count; i += kMaskRun) {
      const int64_t n = std::min(kMaskRun, count - i);
      uint8_t mask[kMaskRun];
      unpack(bits + i / 8, n, mask);
#pragma GCC ivdep
      for (int64_t k = 0; k < n; ++k) out[i + k] = relu.gate(mask[k] != 0, g[i + k]);
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
    if (bits != nullptr) gate_run(values, values, count, slope, bits + place / 8);
  }
};

}  // namespace
}  // namespace datagrad
