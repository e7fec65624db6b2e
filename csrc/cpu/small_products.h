// Products of matrices that stay in a core's cache, for which a call to a vendor's library costs as much as the work.
// Accumulators of a tile stay in registers; the loops over its columns are vectorised by the compiler.
#pragma once

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

// Columns [begin, end) of out = a b, or of out += a b; rows of b have whole tiles of columns to read.
template <class T>
void block(const Strided<T>& a, const T* b, int64_t b_row, T* out, int64_t out_row, int64_t rows, int64_t begin,
           int64_t end, int64_t depth, bool add) {
  for (int64_t c = begin; c < end; c += kColumns) {
    tiles_of_rows(a, b + c, b_row, out + c, out_row, rows, depth, std::min(kColumns, end - c), add);
  }
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

// target[c * target_row + r] = source[r * source_row + c]. Eight rows at a time: more may not fit where all begin at the
// same set of the cache.
template <class T>
void transpose(const T* source, int64_t source_row, int64_t rows, int64_t columns, T* target, int64_t target_row) {
  constexpr int64_t kBlock = 8;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = std::min(rows, r0 + kBlock);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = r0; r < r1; ++r) target[c * target_row + r] = source[r * source_row + c];
    }
  }
}

// target (columns, rows) = source (rows, columns) transposed.
template <class T>
void transpose(const T* source, int64_t rows, int64_t columns, T* target) {
  transpose(source, columns, rows, columns, target, rows);
}

}  // namespace small
}  // namespace datagrad
