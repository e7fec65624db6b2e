// Elementary functions for float and double, on host and device. The float versions on the host are branch-free, so that
// loops over them vectorise, and are within 2 ulp; double and the device use the standard library. No torch header.
// The coefficients are weighted minimax fits on the interval named beside them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define DATAGRAD_HD __host__ __device__
#else
#define DATAGRAD_HD
#endif

namespace datagrad {

// The type arithmetic on elements of type T runs in: float for the 16-bit formats.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace datagrad

namespace datagrad::math {

namespace detail {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// x = k ln 2 + r with |r| <= ln 2 / 2 (and a little); q = expm1(r). NaN stays in q.
struct Reduced {
  int32_t k;
  float q;
};

inline Reduced reduce(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the last bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  const float p =
      5.000000097e-01f +
      r * (1.666651731e-01f + r * (4.166620105e-02f + r * (8.369073002e-03f + r * 1.395080832e-03f)));
  return {static_cast<int32_t>(to_bits(shifted) - to_bits(kRound)), r + r * r * p};
}

inline float power_of_two(int32_t k) { return from_bits(static_cast<uint32_t>(k + 127) << 23); }

inline float exp_host(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const Reduced e = reduce(x);
  const int32_t half = e.k >> 1;  // 2^k in two factors: k reaches beyond the normal exponents
  return ((1.0f + e.q) * power_of_two(half)) * power_of_two(e.k - half);
}

inline float expm1_host(float x) {
  x = x < -30.0f ? -30.0f : x;
  const Reduced e = reduce(x);
  const float scale = power_of_two(e.k);
  return scale * e.q + (scale - 1.0f);
}

inline float log1p_host(float u) {  // 2 atanh(s), s = u / (2 + u) in [0, 1/3]
  const float s = u / (2.0f + u);
  const float w = s * s;
  const float p = 6.666667591e-01f +
                  w * (3.999884825e-01f + w * (2.861779423e-01f + w * (2.141676727e-01f + w * 2.434536525e-01f)));
  return 2.0f * s + s * w * p;
}

// Φ(z) given e = exp(-z²/2): e (1/2 - u Q(t)) of -|z|, t = 1 / (1 + c |z|), u = 1 - t.
inline float normal_cdf_host(float z, float e) {
  const float a = std::fabs(z) > 16.0f ? 16.0f : std::fabs(z);  // e is 0 beyond
  const float t = 1.0f / (1.0f + 0.353553391f * a);
  const float u = 0.353553391f * a * t;
  const float high = 1.991760782e-01f + t * (-2.966325382e-01f + t * (1.443548193e-01f + t * -2.527191762e-02f));
  const float q = 5.001526124e-01f +
                  t * (3.561752553e-01f + t * (2.385933179e-01f + t * (1.183160719e-02f + t * high)));
  const float tail = e * (0.5f - u * q);
  return z > 0.0f ? 1.0f - tail : tail;
}

inline float tanh_host(float x) {
  const float e = expm1_host(-2.0f * std::fabs(x));
  return std::copysign(e / (2.0f + e), x);
}

}  // namespace detail

#ifdef __CUDA_ARCH__
#define DATAGRAD_FLOAT_FUNCTION(name, host, device) \
  DATAGRAD_HD inline float name(float x) { return device(x); }
#else
#define DATAGRAD_FLOAT_FUNCTION(name, host, device) \
  DATAGRAD_HD inline float name(float x) { return host(x); }
#endif

DATAGRAD_FLOAT_FUNCTION(exp, detail::exp_host, ::expf)
DATAGRAD_FLOAT_FUNCTION(tanh, detail::tanh_host, ::tanhf)
DATAGRAD_FLOAT_FUNCTION(expm1_nonpositive, detail::expm1_host, ::expm1f)  // x <= 0
DATAGRAD_FLOAT_FUNCTION(log1p_unit, detail::log1p_host, ::log1pf)         // 0 <= x <= 1
#undef DATAGRAD_FLOAT_FUNCTION

DATAGRAD_HD inline double exp(double x) { return ::exp(x); }
DATAGRAD_HD inline double tanh(double x) { return ::tanh(x); }
DATAGRAD_HD inline float erfc(float x) { return ::erfcf(x); }
DATAGRAD_HD inline double erfc(double x) { return ::erfc(x); }
DATAGRAD_HD inline double expm1_nonpositive(double x) { return ::expm1(x); }
DATAGRAD_HD inline double log1p_unit(double x) { return ::log1p(x); }

DATAGRAD_HD inline float abs(float x) { return ::fabsf(x); }
DATAGRAD_HD inline double abs(double x) { return ::fabs(x); }

// σ(x) = 1 / (1 + exp(-x)), σ(-x) = 1 - σ(x) and σ'(x) = σ(x) σ(-x), of one exponential, without overflow or cancellation.
template <class T>
struct Logistic {
  T value, complement, slope;

  DATAGRAD_HD explicit Logistic(T x) {
    const T e = exp(-abs(x));
    const T larger = T(1) / (T(1) + e), smaller = e * larger;
    value = x < T(0) ? smaller : larger;
    complement = x < T(0) ? larger : smaller;
    slope = smaller * larger;
  }
};

// log(1 + exp(x)) without overflow.
template <class T>
DATAGRAD_HD T softplus(T x) {
  return (x > T(0) ? x : T(0)) + log1p_unit(exp(-abs(x)));
}

// The standard normal distribution: its density at z and Φ(z).
template <class T>
struct Normal {
  T density, distribution;

  DATAGRAD_HD explicit Normal(T z) {
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
DATAGRAD_HD T clamp(T x, T bound) {
  x = x < -bound ? -bound : x;
  return x > bound ? bound : x;
}

}  // namespace datagrad::math
