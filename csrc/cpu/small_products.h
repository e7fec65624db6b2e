// Matrix products too small to pay for a call to a vendor's library: below kSmall multiplications the call costs as much as
// the work. Accumulators of a tile stay in registers; the loops over its columns are vectorised by the compiler.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace datagrad {
namespace small {

constexpr int64_t kSmall = 1 << 18;

inline bool pays(int64_t rows, int64_t columns, int64_t depth) {
  return rows * columns * depth <= kSmall && columns <= 1024 && depth <= 1024;
}

#ifdef __AVX512F__
constexpr int64_t kColumns = 32;
#else
constexpr int64_t kColumns = 16;
#endif
constexpr int64_t kRows = 4;

// A matrix whose element (i, k) is at data[i * row + k * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;
};

// Rows [0, R) and columns [0, columns) of out (+)= a b; b and out have dense rows. `columns` is C if the tile is full.
template <int64_t R, int64_t C, class T>
void tile(const Strided<T>& a, const T* b, int64_t b_row, T* out, int64_t out_row, int64_t depth, int64_t columns,
          bool add) {
  T sum[R][C] = {};
  if (columns == C) {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t r = 0; r < R; ++r) {
        const T factor = a.data[r * a.row + k * a.column];
        for (int64_t c = 0; c < C; ++c) sum[r][c] += factor * b[k * b_row + c];
      }
    }
  } else {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t r = 0; r < R; ++r) {
        const T factor = a.data[r * a.row + k * a.column];
        for (int64_t c = 0; c < columns; ++c) sum[r][c] += factor * b[k * b_row + c];
      }
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    T* target = out + r * out_row;
    for (int64_t c = 0; c < columns; ++c) target[c] = add ? target[c] + sum[r][c] : sum[r][c];
  }
}

// out (rows, columns) = a b, or out += a b.
template <class T>
void product(const Strided<T>& a, const T* b, T* out, int64_t rows, int64_t columns, int64_t depth, bool add) {
  for (int64_t c = 0; c < columns; c += kColumns) {
    const int64_t width = std::min(kColumns, columns - c);
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      tile<kRows, kColumns>(Strided<T>{a.data + r * a.row, a.row, a.column}, b + c, columns, out + r * columns + c,
                            columns, depth, width, add);
    }
    for (; r < rows; ++r) {
      tile<1, kColumns>(Strided<T>{a.data + r * a.row, a.row, a.column}, b + c, columns, out + r * columns + c, columns,
                        depth, width, add);
    }
  }
}

// Σ_k a[k] b[k], with partial sums that fill the vector registers.
template <class T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kLanes = 32;
  T lane[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    for (int64_t c = 0; c < kLanes; ++c) lane[c] += a[k + c] * b[k + c];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t c = 0; c < half; ++c) lane[c] += lane[c + half];
  }
  T sum = lane[0];
  for (; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// out (rows, columns) = a bᵀ plus the bias in every row (or null), for a (rows, depth) and b (columns, depth) with dense rows.
template <class T>
void product_transposed(const T* a, const T* b, const T* bias, T* out, int64_t rows, int64_t columns, int64_t depth) {
  constexpr int64_t kFewRows = 4;
  if (rows <= kFewRows) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        out[r * columns + c] = dot(a + r * depth, b + c * depth, depth) + (bias == nullptr ? T(0) : bias[c]);
      }
    }
    return;
  }
  thread_local std::vector<T> turned;
  turned.resize(depth * columns);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t c = 0; c < columns; ++c) turned[k * columns + c] = b[c * depth + k];
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = bias == nullptr ? T(0) : bias[c];
  }
  product(Strided<T>{a, depth, 1}, turned.data(), out, rows, columns, depth, true);
}

}  // namespace small
}  // namespace datagrad
