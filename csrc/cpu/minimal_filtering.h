// Winograd's minimal filtering in one dimension, some outputs y of a kernel g of `Taps` numbers at a time:
//
//   y = Aᵀ ((G g) ⊙ (Bᵀ d))        Outputs + Taps − 1 products instead of Outputs · Taps, for as many numbers d of the input
//
// and in two dimensions by both dimensions in turn. All three maps are transposed for the other sweeps. A map works in place
// on numbers that d(0), d(1), … refer to. The maps evaluate polynomials at points, here 0, 1, −1, 2, −2, as many as there must be,
// and at infinity; more outputs take fewer products and round more.
#pragma once

#include <math/scalar.h>

#include <type_traits>
#include <utility>

namespace datagrad {
namespace {

// v / k by a product: the compiler divides by what is no power of two.
template <class V>
DATAGRAD_ALWAYS_INLINE V over(const V& v, int k) {
  using T = std::decay_t<decltype(v[0])>;
  return v * (T(1) / static_cast<T>(k));
}

template <int Outputs, int Taps>
struct Minimal;

template <>
struct Minimal<2, 2> {
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
struct Minimal<2, 3> {
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

template <>
struct Minimal<4, 2> {
  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input(const D& d) {
    const auto third = d(3) - d(1), first = d(1) + d(2) - third;
    d(0) = 2 * (d(0) - d(2)) + third;
    d(4) -= d(2) + 2 * third;
    d(2) = 3 * (d(2) - d(1)) - third;
    d(1) = first;
    d(3) = third;
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input_transposed(const D& d) {
    const auto third = d(0) - d(1) - d(2) + d(3) - 2 * d(4), sum = d(1) + 3 * d(2);
    d(1) -= 3 * d(2) + third;
    d(2) = sum - 2 * d(0) - d(4);
    d(0) = 2 * d(0);
    d(3) = third;
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output(const D& d) {
    const auto even = d(1) + d(2), odd = d(1) - d(2), two = d(3);
    d(0) += even + two;
    d(1) = odd + 2 * two;
    d(2) = even + 4 * two;
    d(3) = odd + 8 * two + d(4);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output_transposed(const D& d) {
    const auto even = d(0) + d(2), odd = d(1) + d(3), two = d(0) + 2 * (d(1) + 2 * (d(2) + 2 * d(3)));
    d(4) = d(3);
    d(1) = even + odd;
    d(2) = even - odd;
    d(3) = two;
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel(const D& d) {
    const auto half = d(0) / 2, sixth = over(d(0), 6);
    d(4) = d(1);
    d(3) = sixth + over(d(1), 3);
    d(2) = sixth - over(d(1), 6);
    d(1) = half + d(1) / 2;
    d(0) = half;
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel_transposed(const D& d) {
    const auto first = (d(0) + d(1)) / 2 + over(d(2) + d(3), 6);
    d(1) = d(1) / 2 - over(d(2), 6) + over(d(3), 3) + d(4);
    d(0) = first;
  }
};

template <>
struct Minimal<4, 3> {
  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input(const D& d) {
    const auto ones = 4 * d(2) - d(4), odd_ones = 4 * d(1) - d(3), twos = d(4) - d(2), odd_twos = 2 * (d(3) - d(1));
    d(0) = 4 * d(0) - 5 * d(2) + d(4);
    d(5) += 4 * d(1) - 5 * d(3);
    at_points(d, ones, odd_ones, twos, odd_twos);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void input_transposed(const D& d) {
    const auto ones = d(1) + d(2), odd_ones = d(1) - d(2), twos = d(3) + d(4), odd_twos = 2 * (d(3) - d(4));
    d(2) = 4 * ones - 5 * d(0) - twos;
    d(4) = d(0) - ones + twos;
    d(0) = 4 * d(0);
    d(1) = 4 * (odd_ones + d(5)) - odd_twos;
    d(3) = odd_twos - odd_ones - 5 * d(5);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output(const D& d) {
    const auto ones = d(1) + d(2), odd_ones = d(1) - d(2), twos = d(3) + d(4), odd_twos = d(3) - d(4);
    d(0) += ones + twos;
    d(1) = odd_ones + 2 * odd_twos;
    d(2) = ones + 4 * twos;
    d(3) = odd_ones + 8 * odd_twos + d(5);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void output_transposed(const D& d) {
    const auto ones = d(0) + d(2), odd_ones = d(1) + d(3), twos = d(0) + 4 * d(2), odd_twos = 2 * d(1) + 8 * d(3);
    d(5) = d(3);
    at_points(d, ones, odd_ones, twos, odd_twos);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel(const D& d) {
    const auto ones = over(d(0) + d(2), 6), odd_ones = over(d(1), 6);
    const auto twos = over(d(0), 24) + over(d(2), 6), odd_twos = over(d(1), 12);
    d(5) = d(2);
    d(0) = d(0) / 4;
    at_points(d, ones, odd_ones, twos, odd_twos);
  }

  template <class D>
  static DATAGRAD_ALWAYS_INLINE void kernel_transposed(const D& d) {
    const auto ones = over(d(1) + d(2), 6), odd_ones = over(d(1) - d(2), 6), twos = d(3) + d(4), odd_twos = d(3) - d(4);
    d(0) = d(0) / 4 + ones + over(twos, 24);
    d(1) = odd_ones + over(odd_twos, 12);
    d(2) = ones + over(twos, 6) + d(5);
  }

 private:
  // Of polynomials, the values at 1, −1, 2, −2, of their even and odd parts there.
  template <class D, class V>
  static DATAGRAD_ALWAYS_INLINE void at_points(const D& d, const V& ones, const V& odd_ones, const V& twos, const V& odd_twos) {
    d(1) = ones + odd_ones;
    d(2) = ones - odd_ones;
    d(3) = twos + odd_twos;
    d(4) = twos - odd_twos;
  }
};

template <class F, int... I>
DATAGRAD_ALWAYS_INLINE void for_constants(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// A square of (Outputs + Taps − 1)² numbers or vectors of them, kept in registers as far as they go: nothing indexes it but constants.
template <int Outputs, int Taps, class V>
struct Square {
  using Maps = Minimal<Outputs, Taps>;
  static constexpr int n = Outputs + Taps - 1;
  V d[n * n];

  // f(row, column, element) for the first `Rows` rows and `Columns` columns.
  template <int Rows, int Columns, class F>
  DATAGRAD_ALWAYS_INLINE void each(const F& f) {
    for_constants([&](auto i) __attribute__((always_inline)) {
      f(i / Columns, i % Columns, d[i / Columns * n + i % Columns]);
    }, std::make_integer_sequence<int, Rows * Columns>());
  }

  DATAGRAD_ALWAYS_INLINE void input() {
    both<n, n>([](const auto& d) __attribute__((always_inline)) { Maps::input(d); });
  }
  DATAGRAD_ALWAYS_INLINE void input_transposed() {
    both<n, n>([](const auto& d) __attribute__((always_inline)) { Maps::input_transposed(d); });
  }
  DATAGRAD_ALWAYS_INLINE void output() {
    both<n, Outputs>([](const auto& d) __attribute__((always_inline)) { Maps::output(d); });
  }
  DATAGRAD_ALWAYS_INLINE void output_transposed() {
    both<Outputs, n>([](const auto& d) __attribute__((always_inline)) { Maps::output_transposed(d); });
  }
  DATAGRAD_ALWAYS_INLINE void kernel() {
    both<Taps, n>([](const auto& d) __attribute__((always_inline)) { Maps::kernel(d); });
  }
  DATAGRAD_ALWAYS_INLINE void kernel_transposed() {
    both<n, Taps>([](const auto& d) __attribute__((always_inline)) { Maps::kernel_transposed(d); });
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
