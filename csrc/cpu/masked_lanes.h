// Rectifiers where a comparison of vectors is a mask of bits (AVX-512): a mask's bits are those in memory. Each function does as
// many whole vectors as there are, and returns how many elements these are; 0 elsewhere.
#pragma once

#include <math/activation.h>

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace datagrad {
namespace {
namespace masked {

#ifdef __AVX512F__

constexpr bool kHasMasks = true;

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  using Mask = __mmask16;
  using Vector = __m512;
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
  static Mask not_below_or_zero(Vector z) { return _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NLE_UQ); }
  static Mask above_zero(Vector z) { return _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ); }
  static Vector or_zero(Mask mask, Vector g) { return _mm512_maskz_mov_ps(mask, g); }
  static Vector or_scaled(Mask mask, Vector g, float slope) {
    return _mm512_mask_mul_ps(g, static_cast<Mask>(~mask), g, _mm512_set1_ps(slope));
  }
};

template <>
struct Lanes<double> {
  using Mask = __mmask8;
  using Vector = __m512d;
  static Vector load(const double* from) { return _mm512_loadu_pd(from); }
  static void store(double* to, Vector v) { _mm512_storeu_pd(to, v); }
  static Mask not_below_or_zero(Vector z) { return _mm512_cmp_pd_mask(z, _mm512_setzero_pd(), _CMP_NLE_UQ); }
  static Mask above_zero(Vector z) { return _mm512_cmp_pd_mask(z, _mm512_setzero_pd(), _CMP_GT_OQ); }
  static Vector or_zero(Mask mask, Vector g) { return _mm512_maskz_mov_pd(mask, g); }
  static Vector or_scaled(Mask mask, Vector g, double slope) {
    return _mm512_mask_mul_pd(g, static_cast<Mask>(~mask), g, _mm512_set1_pd(slope));
  }
};

template <class T>
constexpr int64_t kCount = 64 / sizeof(T);

template <class T>
typename Lanes<T>::Vector gated(typename Lanes<T>::Mask mask, typename Lanes<T>::Vector g, const Rectifier<T>& relu) {
  return relu.slope == T(0) ? Lanes<T>::or_zero(mask, g) : Lanes<T>::or_scaled(mask, g, relu.slope);
}

// One vector behind the gate.
template <class T>
typename Lanes<T>::Vector gate(const T* g, const uint8_t* bits, const Rectifier<T>& relu) {
  typename Lanes<T>::Mask mask;
  std::memcpy(&mask, bits, sizeof(mask));
  return gated(mask, Lanes<T>::load(g), relu);
}

template <class T>
int64_t rectify(const T* z, T* out, int64_t count, const Rectifier<T>& relu, uint8_t* bits) {
  using L = Lanes<T>;
  int64_t i = 0;
  for (; i + kCount<T> <= count; i += kCount<T>) {
    const auto v = L::load(z + i);
    const typename L::Mask mask = relu.slope == T(0) ? L::not_below_or_zero(v) : L::above_zero(v);
    std::memcpy(bits + i / 8, &mask, sizeof(mask));
    L::store(out + i, gated(mask, v, relu));
  }
  return i;
}

template <class T>
int64_t gate(const T* g, T* out, int64_t count, const Rectifier<T>& relu, const uint8_t* bits) {
  using L = Lanes<T>;
  int64_t i = 0;
  for (; i + kCount<T> <= count; i += kCount<T>) L::store(out + i, gate(g + i, bits + i / 8, relu));
  return i;
}

#else

constexpr bool kHasMasks = false;

template <class T>
int64_t rectify(const T*, T*, int64_t, const Rectifier<T>&, uint8_t*) {
  return 0;
}

template <class T>
int64_t gate(const T*, T*, int64_t, const Rectifier<T>&, const uint8_t*) {
  return 0;
}

#endif

}  // namespace masked
}  // namespace
}  // namespace datagrad
