// a bᵀ for matrices whose rows are as long as vector registers: both are read along their rows.
#pragma once

#include <cpu/lanes.h>

namespace datagrad {
namespace {

#ifdef __AVX512F__
constexpr int64_t kDotRows = 4, kDotColumns = 4;
#else
constexpr int64_t kDotRows = 4, kDotColumns = 2;
#endif

template <class T, int64_t bytes>
struct Register {
  typedef T type __attribute__((vector_size(bytes)));
};

// Σ of the elements of v, by halves.
template <class T, int64_t bytes>
inline T total(const typename Register<T, bytes>::type& v) {
  if constexpr (bytes == 16) {
    T lane[16 / sizeof(T)];
    std::memcpy(lane, &v, 16);
    return sizeof(T) == 8 ? lane[0] + lane[1] : (lane[0] + lane[2]) + (lane[1] + lane[3]);
  } else {
    typename Register<T, bytes / 2>::type low, high;
    std::memcpy(&low, &v, bytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + bytes / 2, bytes / 2);
    low += high;
    return total<T, bytes / 2>(low);
  }
}

// Calls store(row, column, Σ) for R rows of a and C of b, which are `stride` apart; depth is a multiple of the lanes.
template <int64_t R, int64_t C, class T, class Store>
inline void dot_tile(const T* a, const T* b, int64_t stride, int64_t depth, const Store& store) {
  using L = small::Lanes<T>;
  typename L::Vector sum[R][C] = {};
  for (int64_t k = 0; k < depth; k += L::kCount) {
    typename L::Vector left[R];
    for (int64_t r = 0; r < R; ++r) left[r] = L::load(a + r * stride + k);
    for (int64_t c = 0; c < C; ++c) {
      const typename L::Vector right = L::load(b + c * stride + k);
      for (int64_t r = 0; r < R; ++r) sum[r][c] += left[r] * right;
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) store(r, c, total<T, small::kVectorBytes>(sum[r][c]));
  }
}

// The products of rows [row, row_end) of a and [column, column_end) of b.
template <class T, class Store>
void dot_block(const T* a, const T* b, int64_t stride, int64_t depth, int64_t row, int64_t row_end, int64_t column,
               int64_t column_end, const Store& store) {
  const auto tiles = [&](auto rows, auto columns, int64_t r, int64_t c) {
    dot_tile<decltype(rows)::value, decltype(columns)::value>(
        a + r * stride, b + c * stride, stride, depth,
        [&](int64_t i, int64_t j, T sum) { store(r + i, c + j, sum); });
  };
  constexpr std::integral_constant<int64_t, kDotRows> many_rows;
  constexpr std::integral_constant<int64_t, kDotColumns> many_columns;
  constexpr std::integral_constant<int64_t, 1> one;
  for (int64_t c = column; c < column_end;) {
    const bool whole = c + kDotColumns <= column_end;
    int64_t r = row;
    for (; r + kDotRows <= row_end; r += kDotRows) {
      if (whole) {
        tiles(many_rows, many_columns, r, c);
      } else {
        tiles(many_rows, one, r, c);
      }
    }
    for (; r < row_end; ++r) {
      if (whole) {
        tiles(one, many_columns, r, c);
      } else {
        tiles(one, one, r, c);
      }
    }
    c += whole ? kDotColumns : 1;
  }
}

}  // namespace
}  // namespace datagrad
