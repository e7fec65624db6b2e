// Products of matrices that stay in a core's cache, for which a call to a vendor's library costs as much as the work.
// Accumulators of a tile stay in registers; the loops over its columns are vectorised by the compiler.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

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

// Rows [r0, r1) and columns [c0, c1) of a transposition.
template <class T>
void transpose_part(const T* source, int64_t rows, int64_t columns, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                    T* target) {
  for (int64_t c = c0; c < c1; ++c) {
    for (int64_t r = r0; r < r1; ++r) target[c * rows + r] = source[r * columns + c];
  }
}

// 4 x 4 elements, from and to rows that are so many elements apart.
template <class T>
void transpose_block(const T* source, int64_t columns, T* target, int64_t rows) {
  for (int64_t c = 0; c < 4; ++c) {
    for (int64_t r = 0; r < 4; ++r) target[c * rows + r] = source[r * columns + c];
  }
}

#ifdef __SSE__
inline void transpose_block(const float* source, int64_t columns, float* target, int64_t rows) {
  __m128 a = _mm_loadu_ps(source), b = _mm_loadu_ps(source + columns);
  __m128 c = _mm_loadu_ps(source + 2 * columns), d = _mm_loadu_ps(source + 3 * columns);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(target, a);
  _mm_storeu_ps(target + rows, b);
  _mm_storeu_ps(target + 2 * rows, c);
  _mm_storeu_ps(target + 3 * rows, d);
}
#endif

// target (columns, rows) = source (rows, columns) transposed.
template <class T>
void transpose(const T* source, int64_t rows, int64_t columns, T* target) {
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t c = 0; c < whole_columns; c += 4) {
    for (int64_t r = 0; r < whole_rows; r += 4) {
      transpose_block(source + r * columns + c, columns, target + c * rows + r, rows);
    }
  }
  transpose_part(source, rows, columns, 0, whole_rows, whole_columns, columns, target);
  transpose_part(source, rows, columns, whole_rows, rows, 0, columns, target);
}

}  // namespace small
}  // namespace datagrad
