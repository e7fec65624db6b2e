// Squares of numbers in vector registers, transposed there.
#pragma once

#include <math/scalar.h>

#include <cstdint>
#include <cstring>
#include <utility>

namespace datagrad {
namespace small {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 8, kTall = 14;  // rows of a tile of a product, and of a large one
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRows = 6, kTall = 6;
#else
constexpr int kVectorBytes = 16, kRows = 6, kTall = 6;
#endif

constexpr int64_t kColumns = 2 * kVectorBytes / static_cast<int64_t>(sizeof(float));  // columns of a tile, for any type some tiles

template <class T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

template <class T>
struct Lanes {
  static constexpr int64_t kCount = kLanes<T>;
  typedef T Vector __attribute__((vector_size(kVectorBytes)));

  static DATAGRAD_ALWAYS_INLINE Vector load(const T* from) {
    Vector v;
    std::memcpy(&v, from, kVectorBytes);
    return v;
  }

  static DATAGRAD_ALWAYS_INLINE void store(const Vector& v, T* to) { std::memcpy(to, &v, kVectorBytes); }

  // square[i][l] becomes square[l][i]: blocks of 1, 2, 4, … lanes change places across the diagonal.
  template <int64_t Step = 1>
  static void transpose(Vector (&square)[kCount]) {
    if constexpr (Step < kCount) {
      for (int64_t i = 0; i < kCount; ++i) {
        if (i & Step) continue;
        const Vector a = square[i], b = square[i + Step];
        square[i] = mixed<Step, 0>(a, b, std::make_integer_sequence<int, kCount>());
        square[i + Step] = mixed<Step, Step>(a, b, std::make_integer_sequence<int, kCount>());
      }
      transpose<2 * Step>(square);
    }
  }

 private:
  // Lane l, counted through a and then b.
  static constexpr int source(int64_t l, int64_t step, int64_t shift) {
    return static_cast<int>(l & step ? kCount + l - step + shift : l + shift);
  }

  template <int64_t Step, int64_t Shift, int... L>
  static Vector mixed(const Vector& a, const Vector& b, std::integer_sequence<int, L...>) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, source(L, Step, Shift)...);
#else
    typedef decltype(a < b) Places;
    return __builtin_shuffle(a, b, Places{source(L, Step, Shift)...});
#endif
  }
};

}  // namespace small
}  // namespace datagrad
