// Winograd's minimal filtering in one dimension, two outputs y of a kernel g of `Taps` numbers at a time:
//
//   y = Aᵀ ((G g) ⊙ (Bᵀ d))        Taps + 1 products instead of 2 Taps, for Taps + 1 numbers d of the input
//
// and in two dimensions by both dimensions in turn. All three maps are transposed for the other sweeps. A map works in place
// on numbers that d(0), d(1), … refer to.
#pragma once

#include <math/scalar.h>

#include <utility>

namespace datagrad {
namespace {

template <int Taps>
struct Minimal;

template <>
struct Minimal<2> {
  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input(const D& d) {
    d(0) -= d(1);
    d(2) -= d(1);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input_transposed(const D& d) {
    d(1) -= d(0) + d(2);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output(const D& d) {
    d(0) += d(1);
    d(1) += d(2);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output_transposed(const D& d) {
    d(2) = d(1);
    d(1) += d(0);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel(const D& d) {
    output_transposed(d);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel_transposed(const D& d) {
    output(d);
  }
};

template <>
struct Minimal<3> {
  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input(const D& d) {
    const auto sum = d(1) + d(2);
    d(0) -= d(2);
    d(3) = d(1) - d(3);
    d(2) -= d(1);
    d(1) = sum;
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input_transposed(const D& d) {
    const auto second = d(1) - d(2) + d(3);
    d(2) += d(1) - d(0);
    d(1) = second;
    d(3) = -d(3);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output(const D& d) {
    d(0) += d(1) + d(2);
    d(1) -= d(2) + d(3);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output_transposed(const D& d) {
    d(3) = -d(1);
    d(2) = d(0) - d(1);
    d(1) += d(0);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel(const D& d) {
    const auto even = (d(0) + d(2)) / 2, odd = d(1) / 2;
    d(3) = d(2);
    d(2) = even - odd;
    d(1) = even + odd;
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel_transposed(const D& d) {
    const auto even = (d(1) + d(2)) / 2, odd = (d(1) - d(2)) / 2;
    d(2) = even + d(3);
    d(1) = odd;
    d(0) += even;
  }
};

template <class F, int... I>
DATAGRAD_ALWAYS_INLINE void for_constants(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// A square of (Taps + 1)² numbers or vectors of them, kept in registers: nothing indexes it but constants.
template <int Taps, class V>
struct Square {
  static constexpr int n = Taps + 1;
  V d[n * n];

  // f(row, column, element) for the first `Rows` rows and `Columns` columns.
  template <int Rows, int Columns, class F>
  DATAGRAD_ALWAYS_INLINE void each(const F& f) {
    for_constants([&](auto i) __attribute__((always_inline)) {
      f(i / Columns, i % Columns, d[i / Columns * n + i % Columns]);
    }, std::make_integer_sequence<int, Rows * Columns>());
  }

  DATAGRAD_ALWAYS_INLINE void input() {
    both<n, n>([](const auto& d) __attribute__((always_inline)) { Minimal<Taps>::input(d); });
  }
  DATAGRAD_ALWAYS_INLINE void input_transposed() {
    both<n, n>([](const auto& d) __attribute__((always_inline)) { Minimal<Taps>::input_transposed(d); });
  }
  DATAGRAD_ALWAYS_INLINE void output() {
    both<n, 2>([](const auto& d) __attribute__((always_inline)) { Minimal<Taps>::output(d); });
  }
  DATAGRAD_ALWAYS_INLINE void output_transposed() {
    both<2, n>([](const auto& d) __attribute__((always_inline)) { Minimal<Taps>::output_transposed(d); });
  }
  DATAGRAD_ALWAYS_INLINE void kernel() {
    both<Taps, n>([](const auto& d) __attribute__((always_inline)) { Minimal<Taps>::kernel(d); });
  }
  DATAGRAD_ALWAYS_INLINE void kernel_transposed() {
    both<n, Taps>([](const auto& d) __attribute__((always_inline)) { Minimal<Taps>::kernel_transposed(d); });
  }

 private:
  // f on each of the first `Columns` columns, then on each of the first `Rows` rows.
  template <int Columns, int Rows, class F>
  DATAGRAD_ALWAYS_INLINE void both(const F& f) {
    for_constants([&](auto j) __attribute__((always_inline)) {
      f([&](int i) __attribute__((always_inline)) -> V& { return d[i * n + j]; });
    }, std::make_integer_sequence<int, Columns>());
    for_constants([&](auto i) __attribute__((always_inline)) {
      f([&](int j) __attribute__((always_inline)) -> V& { return d[i * n + j]; });
    }, std::make_integer_sequence<int, Rows>());
  }
};

}  // namespace
}  // namespace datagrad
