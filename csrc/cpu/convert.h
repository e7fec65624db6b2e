// Between a tensor's element type and the type arithmetic runs in, for runs of elements on the CPU. Where the two are one
// type nothing is copied.
#pragma once

#include <common/dtype.h>

#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace datagrad {

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(Half value) { return static_cast<float>(value); }

inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <class T>
void narrow(float value, T& target) {
  target = static_cast<T>(value);
}

// Round to nearest even; branch-free, so that loops vectorise.
inline void narrow(float value, BFloat16& target) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  target.x = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

template <class T>
void widen(const T* source, Acc<T>* target, int64_t n) {
  int64_t i = 0;
#ifdef __F16C__
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + 8 <= n; i += 8) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
      _mm256_storeu_ps(target + i, _mm256_cvtph_ps(eight));
    }
  }
#endif
  for (; i < n; ++i) target[i] = widen(source[i]);
}

template <class T>
void narrow(const Acc<T>* source, T* target, int64_t n) {
  int64_t i = 0;
#ifdef __F16C__
  if constexpr (std::is_same_v<T, Half>) {
    for (; i + 8 <= n; i += 8) {
      const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), eight);
    }
  }
#endif
  for (; i < n; ++i) narrow(source[i], target[i]);
}

// The n elements at `source` in the accumulation type: themselves, or converted into `buffer`.
template <class T>
const Acc<T>* widened(const T* source, Acc<T>* buffer, int64_t n) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return source;
  } else {
    widen(source, buffer, n);
    return buffer;
  }
}

// Where to write results that store() then brings to `target`.
template <class T>
Acc<T>* wide_target(T* target, Acc<T>* buffer) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return target;
  } else {
    return buffer;
  }
}

template <class T>
void store(const Acc<T>* source, T* target, int64_t n) {
  if constexpr (!std::is_same_v<T, Acc<T>>) narrow(source, target, n);
}

}  // namespace datagrad
