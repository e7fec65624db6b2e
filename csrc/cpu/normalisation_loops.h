// Sums and maps of a normalisation over pieces of memory on the CPU: a run of elements of one channel, rows of all channels, or a
// run whose elements have a weight each. Formulas and the order of the sums in math/normalisation.h.
#pragma once

#include <common/dtype.h>
#include <cpu/bits.h>
#include <cpu/convert.h>
#include <math/activation.h>
#include <math/normalisation.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace datagrad {
namespace {

constexpr int64_t kChunk = 1024;      // elements at a time: the operands of a chunk stay in the first-level cache
constexpr int64_t kNarrowRows = 32;   // rows summed in the arithmetic type before double takes over

// The operands: x, a cotangent or tangent (or x itself, for its own statistics), pairs (t, delta), and the mask that gates
// cotangents.
template <class T>
struct Operands {
  const T* x = nullptr;
  const T* single = nullptr;
  const uint8_t* bits = nullptr;
  Rectifier<Acc<T>> rectifier{0};
  bool own = false;
  std::vector<std::pair<const T*, const T*>> pairs;

  bool has_single() const { return own || single != nullptr; }
  // Elements at ... at + n - 1 of a cotangent as the norm gets it; in `buffer` if they are not as they are in memory.
  const Acc<T>* cotangent(const T* source, int64_t at, int64_t n, Acc<T>* buffer) const {
    const Acc<T>* wide = widened(source + at, buffer, n);
    if (bits == nullptr) return wide;
    uint8_t octets[kChunk + 16];
    const int64_t offset = at % 8;
    unpack(bits + at / 8, offset + n, octets);
    const uint8_t* mask = octets + offset;
    const auto gate = rectifier;
    for (int64_t k = 0; k < n; ++k) buffer[k] = gate.gate(mask[k] != 0, wide[k]);
    return buffer;
  }

  int64_t n_sums() const { return kSingleSums + kPairSums * static_cast<int64_t>(pairs.size()); }
};

constexpr int kLanes = 32;

// The sum of running sums, in pairs: a chunk has few enough elements for the arithmetic type.
template <class A>
double add_lanes(A* lane) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  }
  return static_cast<double>(lane[0]);
}

template <class A>
double sum(const A* a, int64_t n) {
  A lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] += a[i + k];
  }
  double total = i > 0 ? add_lanes(lane) : 0;
  for (; i < n; ++i) total += static_cast<double>(a[i]);
  return total;
}

template <class A>
double dot(const A* a, const A* b, int64_t n) {
  A lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] += a[i + k] * b[i + k];
  }
  double total = i > 0 ? add_lanes(lane) : 0;
  for (; i < n; ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return total;
}

// target = source * weight, or the source itself without a weight.
template <class A>
const A* weighted(const A* source, const A* weight, A* target, int64_t n) {
  if (weight == nullptr) return source;
  for (int64_t k = 0; k < n; ++k) target[k] = source[k] * weight[k];
  return target;
}

// Adds the sums over elements begin ... begin + n - 1, all centred by one mean; `weight`, if any, has one number for each.
template <class T>
void add_run_sums(const Operands<T>& in, int64_t begin, int64_t n, Acc<T> mean, const Acc<T>* weight, double* sums) {
  using A = Acc<T>;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t at = begin + i, count = std::min(kChunk, n - i);
    const A* w = weight == nullptr ? nullptr : weight + i;
    A centred[kChunk], first[kChunk], second[kChunk], product[kChunk];
    const A* x = widened(in.x + at, first, count);
    for (int64_t k = 0; k < count; ++k) centred[k] = x[k] - mean;
    if (in.has_single()) {
      const A* u = in.own ? centred : weighted(in.cotangent(in.single, at, count, first), w, product, count);
      sums[0] += sum(u, count);
      sums[1] += dot(u, centred, count);
    }
    double* s = sums + kSingleSums;
    for (const auto& [tangent, cotangent] : in.pairs) {
      const A* t = widened(tangent + at, first, count);
      const A* h = weighted(in.cotangent(cotangent, at, count, second), w, product, count);
      s[0] += sum(h, count);
      s[1] += dot(h, centred, count);
      s[2] += sum(t, count);
      s[3] += dot(t, centred, count);
      s[4] += dot(h, t, count);
      s += kPairSums;
    }
  }
}

// How often short rows are repeated, so that the loops over them are long.
inline int64_t repeats(int64_t columns, int64_t rows) {
  return std::clamp<int64_t>(kChunk / 4 / std::max<int64_t>(1, columns), 1, std::max<int64_t>(1, rows));
}

// One number a channel as one a column: each `run` times, and the row of these `times` times.
template <class A>
void spread(const A* numbers, int64_t channels, int64_t run, int64_t times, A* columns) {
  const int64_t row = channels * run;
  for (int64_t c = 0; c < channels; ++c) std::fill_n(columns + c * run, run, numbers[c]);
  for (int64_t k = 1; k < times; ++k) std::copy_n(columns, row, columns + k * row);
}

// Adds u and u (x - mean) of each column; without a u it is x - mean.
template <class A>
void add_single(const A* x, const A* u, const A* mean, A* __restrict s0, A* __restrict s1, int64_t n) {
  for (int64_t k = 0; k < n && u != nullptr; ++k) {
    s0[k] += u[k];
    s1[k] += u[k] * (x[k] - mean[k]);
  }
  for (int64_t k = 0; k < n && u == nullptr; ++k) {
    const A centred = x[k] - mean[k];
    s0[k] += centred;
    s1[k] += centred * centred;
  }
}

// The same for the five sums of a pair.
template <class A>
void add_pair(const A* x, const A* t, const A* d, const A* mean, A* __restrict sd, A* __restrict sdx, A* __restrict st,
              A* __restrict stx, A* __restrict sdt, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    const A centred = x[k] - mean[k];
    sd[k] += d[k];
    sdx[k] += d[k] * centred;
    st[k] += t[k];
    stx[k] += t[k] * centred;
    sdt[k] += d[k] * t[k];
  }
}

// Sums per channel over rows of all channels, each a run of `run` elements: for each column in the arithmetic type for a few
// rows, then added to sums[k * stride + channel]. Several short rows are one wide row, whose parts are added up at last.
template <class T>
class RowSums {
  using A = Acc<T>;

 public:
  RowSums(const Operands<T>& in, int64_t channels, int64_t run, const A* mean, int64_t rows)
      : in_(in), channels_(channels), run_(run), times_(repeats(channels * run, rows)),
        width_(channels * run * times_), mean_(width_), narrow_(in.n_sums() * width_) {
    spread(mean, channels, run, times_, mean_.data());
  }

  void add(int64_t first_row, int64_t rows, double* sums, int64_t stride) {
    const int64_t begin = first_row * channels_ * run_, end = begin + rows * channels_ * run_;
    for (int64_t block = begin; block < end; block += kNarrowRows * width_) {
      const int64_t stop = std::min(end, block + kNarrowRows * width_);
      std::fill(narrow_.begin(), narrow_.end(), A(0));
      for (int64_t i = block; i < stop; i += width_) add_row(i, std::min(width_, stop - i));
      for (int64_t s = 0; s < in_.n_sums(); ++s) flush(narrow(s, 0), sums + s * stride);
    }
  }

 private:
  void add_row(int64_t begin, int64_t n) {
    for (int64_t c = 0; c < n; c += kChunk) {
      const int64_t at = begin + c, count = std::min(kChunk, n - c);
      A first[kChunk], second[kChunk], third[kChunk];
      const A *x = widened(in_.x + at, first, count), *mean = mean_.data() + c;
      if (in_.has_single()) {
        const A* u = in_.own ? nullptr : in_.cotangent(in_.single, at, count, second);
        add_single(x, u, mean, narrow(0, c), narrow(1, c), count);
      }
      int64_t s = kSingleSums;
      for (const auto& [tangent, cotangent] : in_.pairs) {
        const A *t = widened(tangent + at, second, count), *d = in_.cotangent(cotangent, at, count, third);
        add_pair(x, t, d, mean, narrow(s, c), narrow(s + 1, c), narrow(s + 2, c), narrow(s + 3, c), narrow(s + 4, c), count);
        s += kPairSums;
      }
    }
  }

  // Adds the sums of columns to those of their channels.
  void flush(const A* columns, double* sums) const {
    for (int64_t k = 0; k < times_; ++k, columns += channels_ * run_) {
      if (run_ == 1) {
        for (int64_t c = 0; c < channels_; ++c) sums[c] += static_cast<double>(columns[c]);
        continue;
      }
      for (int64_t c = 0; c < channels_; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < run_; ++i) sum += static_cast<double>(columns[c * run_ + i]);
        sums[c] += sum;
      }
    }
  }

  A* narrow(int64_t sum, int64_t k) { return narrow_.data() + sum * width_ + k; }

  const Operands<T>& in_;
  int64_t channels_, run_, times_, width_;
  std::vector<A> mean_, narrow_;
};

// A coefficient of an element of a piece: one for all, a number of each (a pointer), one times the element's weight, the same
// plus its bias.
template <class A>
struct One {
  A value;
  A operator[](int64_t) const { return value; }
  One operator+(int64_t) const { return *this; }
};

template <class A>
struct Weighted {
  A value;
  const A* weight;
  A operator[](int64_t k) const { return value * weight[k]; }
  Weighted operator+(int64_t i) const { return {value, weight + i}; }
};

template <class A>
struct Biased {
  A value;
  const A *weight, *bias;
  A operator[](int64_t k) const { return value * weight[k] + bias[k]; }
  Biased operator+(int64_t i) const { return {value, weight + i, bias + i}; }
};

// out = alpha u + kappa (x - mean) + lambda + sum of beta delta + gamma t, each coefficient of its own kind.
template <class Alpha, class Kappa, class Lambda, class Plain>
struct Map {
  Plain mean;
  Alpha alpha;
  Kappa kappa;
  Lambda lambda;
  std::vector<std::pair<Alpha, Plain>> pairs;  // beta, gamma
};

template <class A>
using RunMap = Map<One<A>, One<A>, One<A>, One<A>>;
template <class A>
using RowMap = Map<const A*, const A*, const A*, const A*>;
template <class A>
using InnerMap = Map<Weighted<A>, One<A>, One<A>, One<A>>;
template <class A>
using OuterMap = Map<Weighted<A>, Weighted<A>, Biased<A>, One<A>>;

template <class T, class M>
void map_run(const Operands<T>& in, int64_t begin, int64_t n, const M& m, T* out) {
  using A = Acc<T>;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t at = begin + i, count = std::min(kChunk, n - i);
    A buffer[kChunk], first[kChunk], second[kChunk];
    A* target = wide_target(out + at, buffer);
    const A* x = widened(in.x + at, first, count);
    const auto mean = m.mean + i;
    const auto alpha = m.alpha + i;
    const auto kappa = m.kappa + i;
    const auto lambda = m.lambda + i;
    if (in.single != nullptr) {
      const A* u = in.cotangent(in.single, at, count, second);
      for (int64_t k = 0; k < count; ++k) target[k] = alpha[k] * u[k] + (kappa[k] * (x[k] - mean[k]) + lambda[k]);
    } else {
      for (int64_t k = 0; k < count; ++k) target[k] = kappa[k] * (x[k] - mean[k]) + lambda[k];
    }
    for (size_t p = 0; p < in.pairs.size(); ++p) {
      const A* t = widened(in.pairs[p].first + at, first, count);
      const A* d = in.cotangent(in.pairs[p].second, at, count, second);
      const auto beta = m.pairs[p].first + i;
      const auto gamma = m.pairs[p].second + i;
      for (int64_t k = 0; k < count; ++k) target[k] += beta[k] * d[k] + gamma[k] * t[k];
    }
    store(target, out + at, count);
  }
}

}  // namespace
}  // namespace datagrad
