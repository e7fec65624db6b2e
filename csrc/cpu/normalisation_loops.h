// Sums and maps of a normalisation over pieces of memory on the CPU: a run of elements of one channel, or one whose elements have
// a weight each; rows of all channels are in cpu/normalisation_rows.h. Formulas and the order of the sums in math/normalisation.h.
#pragma once

#include <common/dtype.h>
#include <cpu/convert.h>
#include <cpu/lanes.h>
#include <cpu/rectifier.h>
#include <math/normalisation.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace datagrad {
namespace {

constexpr int64_t kChunk = 1024;      // elements at a time: the operands of a chunk stay in the first-level cache

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
    if (at % 8 == 0) {
      gate_run(wide, buffer, n, rectifier.slope, bits + at / 8);
      return buffer;
    }
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

// Calls f(pair, number of its first sum, with the sums of u, where u is x - mean, with those of a pair) for every pair, the flags as
// constants; the sums of u are taken together with those of the first pair, if there is one.
template <class T, class F>
void for_each_pair(const Operands<T>& in, const F& f) {
  const std::false_type no;
  const std::true_type yes;
  const int64_t pairs = static_cast<int64_t>(in.pairs.size());
  if (in.own) return f(0, 0, yes, yes, no);
  if (in.single != nullptr && pairs == 0) return f(0, 0, yes, no, no);
  for (int64_t p = 0; p < pairs; ++p) {
    if (p == 0 && in.single != nullptr) {
      f(p, 0, yes, no, yes);
    } else {
      f(p, kSingleSums + kPairSums * p, no, no, yes);
    }
  }
}

// A vector of one element.
template <class A>
struct OneLane {
  using Vector = A;
  static constexpr int64_t kCount = 1;
  static DATAGRAD_ALWAYS_INLINE A load(const A* from) { return *from; }
  static DATAGRAD_ALWAYS_INLINE void store(A v, A* to) { *to = v; }
};

// The running sums of vectors of elements: kSingle: of u, which is x - mean itself if kOwn; kPair: of a pair.
template <class L, bool kSingle, bool kOwn, bool kPair>
struct RunningSums {
  using V = typename L::Vector;
  static constexpr int kCount = (kSingle ? kSingleSums : 0) + (kPair ? kPairSums : 0);
  V sum[kCount] = {};

  // x(), u(), t(), delta() are the elements; what is not summed is not asked for.
  template <class X, class U, class D, class W>
  DATAGRAD_ALWAYS_INLINE void add(const X& x, const U& u, const D& tangent, const W& cotangent, V mean) {
    const V centred = x() - mean;
    if constexpr (kSingle) {
      V value = centred;
      if constexpr (!kOwn) value = u();
      sum[0] += value;
      sum[1] += value * centred;
    }
    if constexpr (kPair) {
      constexpr int k = kCount - kPairSums;
      const V t = tangent(), delta = cotangent();
      sum[k] += delta;
      sum[k + 1] += delta * centred;
      sum[k + 2] += t;
      sum[k + 3] += t * centred;
      sum[k + 4] += delta * t;
    }
  }
};

// The sum of `Count` numbers that are a vector, by halves.
template <int64_t Count, class A, class V>
DATAGRAD_ALWAYS_INLINE A add_lanes(const V& v) {
  if constexpr (Count == 2) {
    return v[0] + v[1];
  } else {
    typedef A Half __attribute__((vector_size(Count / 2 * sizeof(A))));
    Half half[2];
    std::memcpy(half, &v, sizeof half);
    return add_lanes<Count / 2, A>(Half(half[0] + half[1]));
  }
}

template <class A>
constexpr int64_t kSumChunk = 64 * small::kLanes<A>;  // elements whose sums the arithmetic type holds

// Adds the sums over n elements, at most kSumChunk, to sums[0], sums[1], …
template <bool kSingle, bool kOwn, bool kPair, class A>
void add_chunk_sums(const A* x, const A* u, const A* t, const A* delta, int64_t n, A mean, double* sums) {
  using L = small::Lanes<A>;
  RunningSums<L, kSingle, kOwn, kPair> whole;
  RunningSums<OneLane<A>, kSingle, kOwn, kPair> rest;
  const typename L::Vector means = typename L::Vector{} + mean;
  int64_t i = 0;
  const auto at = [&](const A* data) { return [data, &i] { return L::load(data + i); }; };
  const auto one = [&](const A* data) { return [data, &i] { return data[i]; }; };
  for (; i + L::kCount <= n; i += L::kCount) whole.add(at(x), at(u), at(t), at(delta), means);
  for (; i < n; ++i) rest.add(one(x), one(u), one(t), one(delta), mean);
  for (int k = 0; k < whole.kCount; ++k) sums[k] += static_cast<double>(add_lanes<L::kCount, A>(whole.sum[k]) + rest.sum[k]);
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
  static_assert(kSumChunk<A> <= kChunk);
  for (int64_t i = 0; i < n; i += kSumChunk<A>) {
    const int64_t at = begin + i, count = std::min(kSumChunk<A>, n - i);
    const A* w = weight == nullptr ? nullptr : weight + i;
    A first[kChunk], second[kChunk], third[kChunk], fourth[kChunk];
    const A *x = widened(in.x + at, first, count), *u = x, *t = x, *h = x;
    if (in.single != nullptr) u = weighted(in.cotangent(in.single, at, count, second), w, second, count);
    for_each_pair(in, [&](int64_t p, int64_t sum, auto single, auto own, auto pair) {
      if constexpr (pair()) {
        t = widened(in.pairs[p].first + at, third, count);
        h = weighted(in.cotangent(in.pairs[p].second, at, count, fourth), w, fourth, count);
      }
      add_chunk_sums<single(), own(), pair()>(x, u, t, h, count, mean, sums + sum);
    });
  }
}

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
using InnerMap = Map<Weighted<A>, One<A>, One<A>, One<A>>;
template <class A>
using OuterMap = Map<Weighted<A>, Weighted<A>, Biased<A>, One<A>>;

template <class T, class M>
void map_run(const Operands<T>& in, int64_t begin, int64_t n, const M& m, T* out) {
  using A = Acc<T>;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t at = begin + i, count = std::min(kChunk, n - i);
    A buffer[kChunk], first[kChunk], second[kChunk], third[kChunk], fourth[kChunk];
    A* target = wide_target(out + at, buffer);
    const A *x = widened(in.x + at, first, count), *u = in.single == nullptr ? x : in.cotangent(in.single, at, count, second);
    const auto mean = m.mean + i;
    const auto alpha = m.alpha + i;
    const auto kappa = m.kappa + i;
    const auto lambda = m.lambda + i;
    const auto single = [&](int64_t k) { return alpha[k] * u[k] + (kappa[k] * (x[k] - mean[k]) + lambda[k]); };
    if (in.single != nullptr && in.pairs.empty()) {
#pragma GCC ivdep
      for (int64_t k = 0; k < count; ++k) target[k] = single(k);
    } else if (in.single == nullptr) {
#pragma GCC ivdep
      for (int64_t k = 0; k < count; ++k) target[k] = kappa[k] * (x[k] - mean[k]) + lambda[k];
    }
    for (size_t p = 0; p < in.pairs.size(); ++p) {
      const A* t = widened(in.pairs[p].first + at, third, count);
      const A* d = in.cotangent(in.pairs[p].second, at, count, fourth);
      const auto beta = m.pairs[p].first + i;
      const auto gamma = m.pairs[p].second + i;
      if (p == 0 && in.single != nullptr) {
#pragma GCC ivdep
        for (int64_t k = 0; k < count; ++k) target[k] = single(k) + (beta[k] * d[k] + gamma[k] * t[k]);
      } else {
#pragma GCC ivdep
        for (int64_t k = 0; k < count; ++k) target[k] += beta[k] * d[k] + gamma[k] * t[k];
      }
    }
    store(target, out + at, count);
  }
}

}  // namespace
}  // namespace datagrad
