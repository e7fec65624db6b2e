// Products of matrices that stay in a core's cache, for which a call to a vendor's library costs as much as the work.
// Accumulators of a tile stay in registers; the loops over its columns are vectorised by the compiler.
#pragma once

#include <cpu/lanes.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace datagrad {
namespace small {

#ifdef __AVX512F__
constexpr int64_t kRows = 8, kColumns = 32;
#else
constexpr int64_t kRows = 4, kColumns = 16;
#endif

// A matrix whose element (i, k) is at data[i * row + k * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;

  Strided from_row(int64_t r) const { return {data + r * row, row, column}; }
};

// Rows [0, R), columns [0, width) of out (+)= a b, where b has kColumns columns to read.
template <int64_t R, class T>
void tile(const Strided<T>& a, const T* b, int64_t b_row, T* out, int64_t out_row, int64_t depth, int64_t width,
          bool add) {
  T sum[R][kColumns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t r = 0; r < R; ++r) {
      const T factor = a.data[r * a.row + k * a.column];
      for (int64_t c = 0; c < kColumns; ++c) sum[r][c] += factor * b[k * b_row + c];
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    T* target = out + r * out_row;
    if (width == kColumns) {
      for (int64_t c = 0; c < kColumns; ++c) target[c] = add ? target[c] + sum[r][c] : sum[r][c];
    } else {
      for (int64_t c = 0; c < width; ++c) target[c] = add ? target[c] + sum[r][c] : sum[r][c];
    }
  }
}

template <class T>
void tiles_of_rows(const Strided<T>& a, const T* b, int64_t b_row, T* out, int64_t out_row, int64_t rows, int64_t depth,
                   int64_t width, bool add) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    tile<kRows>(a.from_row(r), b, b_row, out + r * out_row, out_row, depth, width, add);
  }
  for (; r + 2 <= rows; r += 2) tile<2>(a.from_row(r), b, b_row, out + r * out_row, out_row, depth, width, add);
  if (r < rows) tile<1>(a.from_row(r), b, b_row, out + r * out_row, out_row, depth, width, add);
}

// out (rows, columns) = a b, or out += a b, for b (depth, columns) and out with dense rows.
template <class T>
void product(const Strided<T>& a, const T* b, T* out, int64_t rows, int64_t columns, int64_t depth, bool add) {
  int64_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) {
    tiles_of_rows(a, b + c, columns, out + c, columns, rows, depth, kColumns, add);
  }
  if (c == columns) return;
  // The last columns from a copy of b that has a whole tile of them.
  thread_local std::vector<T> padded;
  const int64_t width = columns - c;
  padded.assign(depth * kColumns, T(0));
  for (int64_t k = 0; k < depth; ++k) std::copy_n(b + k * columns + c, width, padded.data() + k * kColumns);
  tiles_of_rows(a, padded.data(), kColumns, out + c, columns, rows, depth, width, add);
}

// out[c] = Σ_k row[k] b[c, k] for b (columns, depth): one row times a transposed matrix, as many columns at a time as a vector
// register has lanes.
template <class T>
void row_times_transposed(const T* row, const T* b, T* out, int64_t columns, int64_t depth) {
  using L = Lanes<T>;
  constexpr int64_t n = L::kCount;
  int64_t c = 0;
  for (; c + n <= columns; c += n) {
    typename L::Vector sum[n] = {};
    int64_t k = 0;
    for (; k + n <= depth; k += n) {
      const typename L::Vector x = L::load(row + k);
      for (int64_t j = 0; j < n; ++j) sum[j] += x * L::load(b + (c + j) * depth + k);
    }
    L::transpose(sum);
    for (int64_t j = 1; j < n; ++j) sum[0] += sum[j];
    L::store(sum[0], out + c);
    for (int64_t j = 0; k < depth && j < n; ++j) {
      for (int64_t rest = k; rest < depth; ++rest) out[c + j] += row[rest] * b[(c + j) * depth + rest];
    }
  }
  for (; c < columns; ++c) {
    T sum = 0;
    for (int64_t k = 0; k < depth; ++k) sum += row[k] * b[c * depth + k];
    out[c] = sum;
  }
}

// target (columns, rows) = source (rows, columns) transposed.
template <class T>
void transpose(const T* source, int64_t rows, int64_t columns, T* target) {
  using L = Lanes<T>;
  constexpr int64_t n = L::kCount;
  const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
  for (int64_t r = 0; r < whole_rows; r += n) {
    for (int64_t c = 0; c < whole_columns; c += n) {
      typename L::Vector square[n];
      for (int64_t i = 0; i < n; ++i) square[i] = L::load(source + (r + i) * columns + c);
      L::transpose(square);
      for (int64_t i = 0; i < n; ++i) L::store(square[i], target + (c + i) * rows + r);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) target[c * rows + r] = source[r * columns + c];
  }
}

}  // namespace small
}  // namespace datagrad
