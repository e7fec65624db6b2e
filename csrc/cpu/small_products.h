// Products of matrices that stay in a core's cache, for which a call to a vendor's library costs as much as the work.
// The accumulators of a tile are vector registers: kRows rows of two vectors, which is what the arithmetic units need to be busy.
#pragma once

#include <cpu/lanes.h>
#include <cpu/thread_memory.h>
#include <math/scalar.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace datagrad {
namespace small {

// A matrix whose element (i, k) is at data[i * row + k * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;

  Strided from_row(int64_t r) const { return {data + r * row, row, column}; }
};

// The last columns of a dense matrix, those that do not fill a vector, in rows of one vector.
template <class T>
void copy_tail(const T* matrix, int64_t rows, int64_t columns, T* tail) {
  const int64_t width = columns % kLanes<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* last = matrix + (r + 1) * columns - width;
    for (int64_t c = 0; c < kLanes<T>; ++c) tail[r * kLanes<T> + c] = c < width ? last[c] : T(0);
  }
}

// A tile of R rows and V vectors in registers. All of it is inlined and unrolled: what a loop indexes would be in memory.
template <int R, int V, class T>
struct Tile {
  using L = Lanes<T>;
  using Vector = typename L::Vector;
  Vector sum[R * V];

  template <bool kAhead>
  DATAGRAD_ALWAYS_INLINE void multiply(const Strided<T>& a, const T* b, int64_t b_row, int64_t depth) {
    clear();
    add<kAhead>([&](int r, int64_t k) { return a.data[r * a.row + k * a.column]; }, b, b_row, depth);
  }

  DATAGRAD_ALWAYS_INLINE void clear() {
#pragma GCC unroll 32
    for (int i = 0; i < R * V; ++i) sum[i] = Vector{};
  }

  // Adds the product of the matrix a(row, k) and b. kAhead: brings the next columns of b to the cache meanwhile.
  template <bool kAhead = false, class At>
  DATAGRAD_ALWAYS_INLINE void add(const At& a, const T* b, int64_t b_row, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
      Vector right[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const T* from = b + k * b_row + v * kLanes<T>;
        right[v] = L::load(from);
        if constexpr (kAhead) __builtin_prefetch(from + V * kLanes<T>);
      }
#pragma GCC unroll 32
      for (int i = 0; i < R * V; ++i) sum[i] += a(i / V, k) * right[i % V];
    }
  }

  // out = the sums, plus the row that begins at `plus` and goes on `plus_row` further for the next one, if there is one.
  DATAGRAD_ALWAYS_INLINE void store(T* out, int64_t row, const T* plus, int64_t plus_row) {
#pragma GCC unroll 32
    for (int i = 0; i < R * V; ++i) {
      const int64_t r = i / V, c = i % V * kLanes<T>;
      const Vector total = plus == nullptr ? sum[i] : L::load(plus + r * plus_row + c) + sum[i];
      L::store(total, out + r * row + c);
    }
  }

  // The same for the first `width` columns only.
  DATAGRAD_ALWAYS_INLINE void store_part(T* out, int64_t row, const T* plus, int64_t plus_row, int64_t width) {
    T last[R * V * kLanes<T>];
#pragma GCC unroll 32
    for (int i = 0; i < R * V; ++i) L::store(sum[i], last + i * kLanes<T>);
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

// kAhead: a and b are large, so that what comes next, and what is written, is brought to the cache meanwhile.
template <int R, int V, bool kAhead, class T>
void tile(const Strided<T>& a, const Columns<T>& columns, int64_t first) {
  Tile<R, V, T> t;
  T* out = columns.out + first * columns.out_row;
  if constexpr (kAhead) {
    for (int r = 0; r < R * V; ++r) __builtin_prefetch(out + r / V * columns.out_row + r % V * kLanes<T>, 1);
  }
  t.template multiply<kAhead>(a.from_row(first), columns.b, columns.b_row, columns.depth);
  const Plus<T> plus = columns.plus;
  const T* row = plus.data == nullptr ? nullptr : plus.data + first * plus.row;
  if (columns.width == V * kLanes<T>) {
    t.store(out, columns.out_row, row, plus.row);
  } else {
    t.store_part(out, columns.out_row, row, plus.row, columns.width);
  }
}

constexpr auto kHeights = std::make_integer_sequence<int, kRows>();

// Tiles of as many rows as each other, or one less; at most as many as there are heights.
template <int V, bool kAhead = false, class T, int... I>
void tiles(const Strided<T>& a, const Columns<T>& columns, int64_t rows, std::integer_sequence<int, I...>) {
  using Run = void (*)(const Strided<T>&, const Columns<T>&, int64_t);
  static constexpr Run of_rows[] = {tile<I + 1, V, kAhead, T>...};
  constexpr int64_t kMost = sizeof...(I);
  const int64_t count = (rows + kMost - 1) / kMost;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = rows * i / count, end = rows * (i + 1) / count;
    of_rows[end - begin - 1](a, columns, begin);
  }
}

// Columns [begin, end) of out = a b, or of out += a b; rows of b have a multiple of kColumns to read.
template <class T>
void block(const Strided<T>& a, const T* b, int64_t b_row, T* out, int64_t out_row, int64_t rows, int64_t begin,
           int64_t end, int64_t depth, bool add) {
  constexpr int64_t kWide = 2 * kLanes<T>;
  for (int64_t c = begin; c < end; c += kWide) {
    const Plus<T> plus{add ? out + c : nullptr, out_row};
    const Columns<T> columns{b + c, b_row, out + c, out_row, plus, std::min(kWide, end - c), depth};
    columns.width > kLanes<T> ? tiles<2, true>(a, columns, rows, kHeights) : tiles<1, true>(a, columns, rows, kHeights);
  }
}

// out (rows, columns) = a b, or out += a b, for b (depth, columns) and out with dense rows.
template <class T>
void product(const Strided<T>& a, const T* b, T* out, int64_t rows, int64_t columns, int64_t depth, bool add) {
  const Plus<T> plus{add ? out : nullptr, columns};
  const auto at = [&](int64_t c, const T* right, int64_t right_row, int64_t width) {
    const Plus<T> here = {plus.data == nullptr ? nullptr : plus.data + c, plus.row};
    return Columns<T>{right, right_row, out + c, columns, here, width, depth};
  };
  int64_t c = 0;
  for (; c + 2 * kLanes<T> <= columns; c += 2 * kLanes<T>) {
    tiles<2>(a, at(c, b + c, columns, 2 * kLanes<T>), rows, kHeights);
  }
  if (c + kLanes<T> <= columns) {
    tiles<1>(a, at(c, b + c, columns, kLanes<T>), rows, kHeights);
    c += kLanes<T>;
  }
  if (c == columns) return;
  T* tail = thread_memory<Columns<T>, T>(depth * kLanes<T>);
  copy_tail(b, depth, columns, tail);
  tiles<1>(a, at(c, tail, kLanes<T>, columns - c), rows, kHeights);
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

constexpr int64_t kNear = 64;  // places at a time that are written in turns, while the first-level cache holds them

// target[c * target_row + r] = source[r * source_row + c]
template <class T>
void transpose(const T* source, int64_t source_row, int64_t rows, int64_t columns, T* target, int64_t target_row) {
  using L = Lanes<T>;
  constexpr int64_t n = L::kCount;
  const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
  for (int64_t r = 0; r < whole_rows; r += n) {
    for (int64_t c = 0; c < whole_columns; c += n) {
      typename L::Vector square[n];
      for (int64_t i = 0; i < n; ++i) square[i] = L::load(source + (r + i) * source_row + c);
      L::transpose(square);
      for (int64_t i = 0; i < n; ++i) L::store(square[i], target + (c + i) * target_row + r);
    }
  }
  for (int64_t c = whole_columns; c < columns; ++c) {
    for (int64_t r = 0; r < whole_rows; ++r) target[c * target_row + r] = source[r * source_row + c];
  }
  for (int64_t first = 0; first < columns; first += kNear) {
    for (int64_t r = whole_rows; r < rows; ++r) {
      const T* from = source + r * source_row;
      for (int64_t c = first; c < std::min(columns, first + kNear); ++c) target[c * target_row + r] = from[c];
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
