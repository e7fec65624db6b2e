// Elementary functions for float and double, on host and device. On the host they are branch-free, so that loops over them
// vectorise, and within 3 ulp (float Φ: 1e-7); the device, and Φ of double, use the standard library. No torch header.
// Float coefficients are weighted minimax fits on the interval named beside them; those of double are Taylor's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#define DATAGRAD_HD __host__ __device__
#else
#define DATAGRAD_HD
#endif

// A loop over a function vectorises only if the function is inlined, however large.
#define DATAGRAD_ALWAYS_INLINE inline __attribute__((always_inline))
#define DATAGRAD_MATH DATAGRAD_HD DATAGRAD_ALWAYS_INLINE

namespace datagrad {

// The type arithmetic on elements of type T runs in: float for the 16-bit formats.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace datagrad

namespace datagrad::math {

namespace detail {

DATAGRAD_ALWAYS_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DATAGRAD_ALWAYS_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

DATAGRAD_ALWAYS_INLINE double from_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DATAGRAD_ALWAYS_INLINE uint64_t to_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// condition ? a : b without a branch, which the compiler would not always turn back into one vector select.
template <class T>
DATAGRAD_ALWAYS_INLINE T select_host(bool condition, T a, T b) {
  const auto mask = -static_cast<decltype(to_bits(a))>(condition);
  return from_bits((to_bits(a) & mask) | (to_bits(b) & ~mask));
}

// 0 for a value below the normal numbers. Processors are slow in arithmetic on subnormal operands.
template <class T>
DATAGRAD_ALWAYS_INLINE T normal_or_zero(T value) {
  return select_host(std::fabs(value) < std::numeric_limits<T>::min(), T(0), value);
}

// x = k ln 2 + r with |r| <= ln 2 / 2 (and a little); q = expm1(r). NaN stays in q.
struct Reduced {
  int32_t k;
  float q;
};

DATAGRAD_ALWAYS_INLINE Reduced reduce(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the last bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  const float p =
      5.000000097e-01f +
      r * (1.666651731e-01f + r * (4.166620105e-02f + r * (8.369073002e-03f + r * 1.395080832e-03f)));
  return {static_cast<int32_t>(to_bits(shifted) - to_bits(kRound)), r + r * r * p};
}

DATAGRAD_ALWAYS_INLINE float power_of_two(int32_t k) { return from_bits(static_cast<uint32_t>(k + 127) << 23); }

DATAGRAD_ALWAYS_INLINE float exp_host(float x) {
  const bool vanishes = x < -87.3365f;  // the result is below the normal numbers
  x = select_host(vanishes, 0.0f, x);
  x = select_host(x > 89.0f, 89.0f, x);
  const Reduced e = reduce(x);
  const int32_t half = e.k >> 1;  // 2^k in two factors: k reaches beyond the normal exponents
  return select_host(vanishes, 0.0f, ((1.0f + e.q) * power_of_two(half)) * power_of_two(e.k - half));
}

// As for float; k counts modulo 2^64.
struct WideReduced {
  uint64_t k;
  double q;
};

DATAGRAD_ALWAYS_INLINE WideReduced reduce(double x) {
  constexpr double kRound = 0x1.8p52;
  const double shifted = x * 1.4426950408889634074 + kRound;
  const double n = shifted - kRound;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  return {to_bits(shifted) - to_bits(kRound), r + r * r * p};
}

DATAGRAD_ALWAYS_INLINE double power_of_two(uint64_t k) { return from_bits((k + 1023) << 52); }

DATAGRAD_ALWAYS_INLINE double exp_host(double x) {
  const bool vanishes = x < -708.3964;
  x = select_host(vanishes, 0.0, x);
  x = select_host(x > 710.0, 710.0, x);
  const WideReduced e = reduce(x);
  const uint64_t half = ((e.k + 2048) >> 1) - 1024;  // no vector has an arithmetic shift of 64 bits: shift a positive number
  return select_host(vanishes, 0.0, ((1.0 + e.q) * power_of_two(half)) * power_of_two(e.k - half));
}

DATAGRAD_ALWAYS_INLINE double expm1_host(double x) {
  x = select_host(x < -60.0, -60.0, x);
  const WideReduced e = reduce(x);
  const double scale = power_of_two(e.k);
  return scale * e.q + (scale - 1.0);
}

DATAGRAD_ALWAYS_INLINE double log1p_host(double u) {  // as for float: the series of atanh to s^33
  const double s = u / (2.0 + u);
  const double w = s * s;
  double p = 2.0 / 33.0;
  p = p * w + 2.0 / 31.0;
  p = p * w + 2.0 / 29.0;
  p = p * w + 2.0 / 27.0;
  p = p * w + 2.0 / 25.0;
  p = p * w + 2.0 / 23.0;
  p = p * w + 2.0 / 21.0;
  p = p * w + 2.0 / 19.0;
  p = p * w + 2.0 / 17.0;
  p = p * w + 2.0 / 15.0;
  p = p * w + 2.0 / 13.0;
  p = p * w + 2.0 / 11.0;
  p = p * w + 2.0 / 9.0;
  p = p * w + 2.0 / 7.0;
  p = p * w + 2.0 / 5.0;
  p = p * w + 2.0 / 3.0;
  return 2.0 * s + s * w * p;
}

DATAGRAD_ALWAYS_INLINE float expm1_host(float x) {
  x = select_host(x < -30.0f, -30.0f, x);
  const Reduced e = reduce(x);
  const float scale = power_of_two(e.k);
  return scale * e.q + (scale - 1.0f);
}

DATAGRAD_ALWAYS_INLINE float log1p_host(float u) {  // 2 atanh(s), s = u / (2 + u) in [0, 1/3]
  const float s = u / (2.0f + u);
  const float w = s * s;
  const float p = 6.666667591e-01f +
                  w * (3.999884825e-01f + w * (2.861779423e-01f + w * (2.141676727e-01f + w * 2.434536525e-01f)));
  return 2.0f * s + s * w * p;
}

// Φ(z) given e = exp(-z²/2): e (1/2 - u Q(t)) of -|z|, t = 1 / (1 + c |z|), u = 1 - t.
DATAGRAD_ALWAYS_INLINE float normal_cdf_host(float z, float e) {
  const float a = select_host(std::fabs(z) > 16.0f, 16.0f, std::fabs(z));  // e is 0 beyond
  const float t = 1.0f / (1.0f + 0.353553391f * a);
  const float u = 0.353553391f * a * t;
  const float high = 1.991760782e-01f + t * (-2.966325382e-01f + t * (1.443548193e-01f + t * -2.527191762e-02f));
  const float q = 5.001526124e-01f +
                  t * (3.561752553e-01f + t * (2.385933179e-01f + t * (1.183160719e-02f + t * high)));
  const float tail = e * (0.5f - u * q);
  return select_host(z > 0.0f, 1.0f - tail, tail);
}

template <class T>
DATAGRAD_ALWAYS_INLINE T tanh_host(T x) {
  const T e = expm1_host(T(-2) * std::fabs(x));
  return std::copysign(e / (T(2) + e), x);
}

}  // namespace detail

#ifdef __CUDA_ARCH__
#define DATAGRAD_FUNCTION(name, host, device)               \
  DATAGRAD_MATH float name(float x) { return device##f(x); } \
  DATAGRAD_MATH double name(double x) { return device(x); }
#else
#define DATAGRAD_FUNCTION(name, host, device)          \
  DATAGRAD_MATH float name(float x) { return host(x); } \
  DATAGRAD_MATH double name(double x) { return host(x); }
#endif

DATAGRAD_FUNCTION(exp, detail::exp_host, ::exp)
DATAGRAD_FUNCTION(tanh, detail::tanh_host, ::tanh)
DATAGRAD_FUNCTION(expm1_nonpositive, detail::expm1_host, ::expm1)  // x <= 0
DATAGRAD_FUNCTION(log1p_unit, detail::log1p_host, ::log1p)         // 0 <= x <= 1
#undef DATAGRAD_FUNCTION

DATAGRAD_MATH float erfc(float x) { return ::erfcf(x); }
DATAGRAD_MATH double erfc(double x) { return ::erfc(x); }

template <class T>
DATAGRAD_MATH T select(bool condition, T a, T b) {
#ifdef __CUDA_ARCH__
  return condition ? a : b;
#else
  return detail::select_host(condition, a, b);
#endif
}

DATAGRAD_MATH float abs(float x) { return ::fabsf(x); }
DATAGRAD_MATH double abs(double x) { return ::fabs(x); }

// σ(x) = 1 / (1 + exp(-x)), σ(-x) = 1 - σ(x) and σ'(x) = σ(x) σ(-x), of one exponential, without overflow or cancellation.
template <class T>
struct Logistic {
  T value, complement, slope;

  DATAGRAD_MATH explicit Logistic(T x) {
    const T e = exp(-abs(x));
    const T larger = T(1) / (T(1) + e), smaller = e * larger;
    value = select(x < T(0), smaller, larger);
    complement = select(x < T(0), larger, smaller);
    slope = smaller * larger;
  }
};

// log(1 + exp(x)) without overflow.
template <class T>
DATAGRAD_MATH T softplus(T x) {
  return select(x > T(0), x, T(0)) + log1p_unit(exp(-abs(x)));
}

// The standard normal distribution: its density at z and Φ(z).
template <class T>
struct Normal {
  T density, distribution;

  DATAGRAD_MATH explicit Normal(T z) {
    const T e = exp(T(-0.5) * z * z);
    density = T(0.39894228040143267794) * e;
#ifndef __CUDA_ARCH__
    if constexpr (std::is_same_v<T, float>) {
      distribution = detail::normal_cdf_host(z, e);
      return;
    }
#endif
    distribution = T(0.5) * erfc(z * T(-0.70710678118654752440));
  }
};

template <class T>
DATAGRAD_MATH T clamp(T x, T bound) {
  return select(x > bound, bound, select(x < -bound, -bound, x));
}

}  // namespace datagrad::math
