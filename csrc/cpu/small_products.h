// Products of matrices that stay in a core's cache, for which a call to a vendor's library costs as much as the work.
// The accumulators of a tile are vector registers: kRows rows of two vectors, which is what the arithmetic units need to be busy.
#pragma once

#include <math/scalar.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace datagrad {
namespace small {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 8;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRows = 6;
#else
constexpr int kVectorBytes = 16, kRows = 6;
#endif

template <class T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

// A matrix whose element (i, k) is at data[i * row + k * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;

  Strided from_row(int64_t r) const { return {data + r * row, row, column}; }
};

// A dense matrix on the right of a product. Its last columns, if they do not fill a vector, are read from `tail`: a copy, in
// rows of one vector.
template <class T>
struct Right {
  const T *data, *tail;
};

// Elements of the tail of a matrix.
template <class T>
int64_t tail_size(int64_t rows, int64_t columns) {
  return columns % kLanes<T> == 0 ? 0 : rows * kLanes<T>;
}

// A matrix with its tail, which is written to `memory`.
template <class T>
Right<T> with_tail(const T* matrix, int64_t rows, int64_t columns, T* memory) {
  const int64_t width = columns % kLanes<T>;
  for (int64_t r = 0; width != 0 && r < rows; ++r) {
    const T* last = matrix + (r + 1) * columns - width;
    for (int64_t c = 0; c < kLanes<T>; ++c) memory[r * kLanes<T> + c] = c < width ? last[c] : T(0);
  }
  return {matrix, memory};
}

// A tile of R rows and V vectors in registers. All of it is inlined and unrolled: what a loop indexes would be in memory.
template <int R, int V, class T>
struct Tile {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  Vector sum[R * V];

  static DATAGRAD_ALWAYS_INLINE Vector load(const T* source) {
    Vector v;
    std::memcpy(&v, source, sizeof v);
    return v;
  }

  DATAGRAD_ALWAYS_INLINE void multiply(const Strided<T>& a, const T* b, int64_t b_row, int64_t depth) {
#pragma GCC unroll 16
    for (int i = 0; i < R * V; ++i) sum[i] = Vector{};
    for (int64_t k = 0; k < depth; ++k) {
      Vector right[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) right[v] = load(b + k * b_row + v * kLanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < R * V; ++i) sum[i] += a.data[i / V * a.row + k * a.column] * right[i % V];
    }
  }

  // out = the sums, plus the row that begins at `plus` and goes on `plus_row` further for the next one, if there is one.
  DATAGRAD_ALWAYS_INLINE void store(T* out, int64_t row, const T* plus, int64_t plus_row) {
#pragma GCC unroll 16
    for (int i = 0; i < R * V; ++i) {
      const int64_t r = i / V, c = i % V * kLanes<T>;
      const Vector total = plus == nullptr ? sum[i] : load(plus + r * plus_row + c) + sum[i];
      std::memcpy(out + r * row + c, &total, sizeof total);
    }
  }

  // The same for the first `width` columns only.
  DATAGRAD_ALWAYS_INLINE void store_part(T* out, int64_t row, const T* plus, int64_t plus_row, int64_t width) {
    T last[R * V * kLanes<T>];
#pragma GCC unroll 16
    for (int i = 0; i < R * V; ++i) std::memcpy(last + i * kLanes<T>, &sum[i], sizeof(Vector));
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const T product = last[r * V * kLanes<T> + c];
        out[r * row + c] = plus == nullptr ? product : plus[r * plus_row + c] + product;
      }
    }
  }
};

// What is added to a product: nothing, one row to all rows (a bias), or a matrix.
template <class T>
struct Plus {
  const T* data = nullptr;
  int64_t row = 0;
};

// What the tiles of some columns share: `width` of them, at most V vectors, of out = a b + plus.
template <class T>
struct Columns {
  const T* b;
  int64_t b_row;
  T* out;
  int64_t out_row;
  Plus<T> plus;
  int64_t width, depth;
};

template <int R, int V, class T>
void tile(const Strided<T>& a, const Columns<T>& columns, int64_t first) {
  Tile<R, V, T> t;
  t.multiply(a.from_row(first), columns.b, columns.b_row, columns.depth);
  T* out = columns.out + first * columns.out_row;
  const Plus<T> plus = columns.plus;
  const T* row = plus.data == nullptr ? nullptr : plus.data + first * plus.row;
  if (columns.width == V * kLanes<T>) {
    t.store(out, columns.out_row, row, plus.row);
  } else {
    t.store_part(out, columns.out_row, row, plus.row, columns.width);
  }
}

// Tiles of as many rows as each other, or one less.
template <int V, class T, int... I>
void tiles(const Strided<T>& a, const Columns<T>& columns, int64_t rows, std::integer_sequence<int, I...>) {
  using Run = void (*)(const Strided<T>&, const Columns<T>&, int64_t);
  static constexpr Run of_rows[] = {tile<I + 1, V, T>...};
  const int64_t count = (rows + kRows - 1) / kRows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = rows * i / count, end = rows * (i + 1) / count;
    of_rows[end - begin - 1](a, columns, begin);
  }
}

// out (rows, columns) = a b + plus, for b (depth, columns) and out with dense rows; plus may be out.
template <class T>
void product(const Strided<T>& a, const Right<T>& b, Plus<T> plus, T* out, int64_t rows, int64_t columns, int64_t depth) {
  constexpr auto kHeights = std::make_integer_sequence<int, kRows>();
  const auto at = [&](int64_t c, const T* right, int64_t right_row, int64_t width) {
    const Plus<T> here = {plus.data == nullptr ? nullptr : plus.data + c, plus.row};
    return Columns<T>{right, right_row, out + c, columns, here, width, depth};
  };
  int64_t c = 0;
  for (; c + 2 * kLanes<T> <= columns; c += 2 * kLanes<T>) {
    tiles<2>(a, at(c, b.data + c, columns, 2 * kLanes<T>), rows, kHeights);
  }
  if (c + kLanes<T> <= columns) {
    tiles<1>(a, at(c, b.data + c, columns, kLanes<T>), rows, kHeights);
    c += kLanes<T>;
  }
  if (c < columns) tiles<1>(a, at(c, b.tail, kLanes<T>, columns - c), rows, kHeights);
}

// Asks for n elements that will be read soon.
template <class T>
void fetch(const T* data, int64_t n) {
  for (int64_t k = 0; k < n; k += 64 / sizeof(T)) __builtin_prefetch(data + k);
}

// Σ_k a[k] b[k], with partial sums that fill the vector registers.
template <class T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kPartial = 32;
  T lane[kPartial] = {};
  int64_t k = 0;
  for (; k + kPartial <= n; k += kPartial) {
    for (int64_t c = 0; c < kPartial; ++c) lane[c] += a[k + c] * b[k + c];
  }
  for (int64_t half = kPartial / 2; half > 0; half /= 2) {
    for (int64_t c = 0; c < half; ++c) lane[c] += lane[c + half];
  }
  T sum = lane[0];
  for (; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// target (columns, rows) = source (rows, columns) transposed.
template <class T>
void transpose(const T* source, int64_t rows, int64_t columns, T* target) {
  constexpr int64_t kBlock = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = std::min(rows, r0 + kBlock);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = r0; r < r1; ++r) target[c * rows + r] = source[r * columns + c];
    }
  }
}

}  // namespace small
}  // namespace datagrad
