// Tiles of minimal filtering (cpu/minimal_filtering.h) between images, whose channels are the fastest dimension, and matrices with
// one row a tile, one matrix for each element of a tile. Matrices lie in panels as wide as a tile of a product.
#pragma once

#include <cpu/minimal_filtering.h>
#include <cpu/small_products.h>

#include <vector>

namespace datagrad {
namespace {
namespace winograd {

// A matrix in panels of kWide columns; the last may be one vector wide.
template <class T>
struct Matrix {
  static constexpr int64_t kWide = 2 * small::kLanes<T>;
  T* data;
  int64_t rows, columns;

  int64_t width(int64_t column) const { return std::min(kWide, columns - column / kWide * kWide); }
  T* at(int64_t row, int64_t column) const {
    return data + column / kWide * kWide * rows + row * width(column) + column % kWide;
  }
};

// One matrix for each element of a tile. They do not lie whole powers of two apart, for all of them are written at once.
template <class T>
struct Matrices {
  T* data;
  int64_t rows, columns;

  static int64_t step(int64_t rows, int64_t columns) { return rows * columns + 3 * kCacheLine / static_cast<int64_t>(sizeof(T)); }
  Matrix<T> operator[](int64_t i) const { return {data + i * step(rows, columns), rows, columns}; }
  int64_t step() const { return step(rows, columns); }
};

template <class T>
struct Product {
  Matrix<T> a, b, out;
};

template <int R, int V, class T>
void tile(const Product<T>& m, int64_t column, int64_t row) {
  constexpr int64_t n = small::kLanes<T>, wide = Matrix<T>::kWide;
  small::Tile<R, V, T> t;
  t.clear();
  const T* b = m.b.at(0, column);
  for (int64_t k = 0; k < m.a.columns; k += wide, b += wide * V * n) {
    const T* a = m.a.at(row, k);
    if (m.a.columns - k >= wide) {
      t.add([&](int r, int64_t i) { return a[r * wide + i]; }, b, V * n, wide);
    } else {
      t.add([&](int r, int64_t i) { return a[r * n + i]; }, b, V * n, n);
    }
  }
  t.store(m.out.at(row, column), V * n, nullptr, 0);
}

// The sum is over the rows of both.
template <int R, int V, class T>
void gradient_tile(const Product<T>& m, int64_t column, int64_t row, bool add) {
  constexpr int64_t n = small::kLanes<T>;
  small::Tile<R, V, T> t;
  t.clear();
  const T* a = m.a.at(0, row);
  const int64_t width = m.a.width(row);
  t.add([&](int r, int64_t i) { return a[i * width + r]; }, m.b.at(0, column), V * n, m.b.rows);
  T* out = m.out.at(row, column);
  t.store(out, V * n, add ? out : nullptr, V * n);
}

// Calls f(rows of a tile, first row) for tiles that cover [begin, end), as many rows each as the others or one less.
template <class F>
void for_each_tile(int64_t begin, int64_t end, const F& f) {
  const int64_t rows = end - begin, count = (rows + small::kRows - 1) / small::kRows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = begin + rows * i / count, last = begin + rows * (i + 1) / count;
    f(last - first, first);
  }
}

template <int V, class T, int... I>
auto tile_of(int64_t rows, std::integer_sequence<int, I...>) {
  using Run = void (*)(const Product<T>&, int64_t, int64_t);
  static constexpr Run of_rows[] = {tile<I + 1, V, T>...};
  return of_rows[rows - 1];
}

template <int V, class T, int... I>
auto gradient_tile_of(int64_t rows, std::integer_sequence<int, I...>) {
  using Run = void (*)(const Product<T>&, int64_t, int64_t, bool);
  static constexpr Run of_rows[] = {gradient_tile<I + 1, V, T>...};
  return of_rows[rows - 1];
}

// out = a b
template <class T>
void multiply(const Product<T>& m) {
  for (int64_t c = 0; c < m.out.columns; c += Matrix<T>::kWide) {
    const bool two = m.out.width(c) > small::kLanes<T>;
    for_each_tile(0, m.out.rows, [&](int64_t rows, int64_t first) {
      (two ? tile_of<2, T>(rows, small::kHeights) : tile_of<1, T>(rows, small::kHeights))(m, c, first);
    });
  }
}

// Rows [begin, end) of out = aᵀ b, or of out += aᵀ b; begin is a multiple of kWide.
template <class T>
void gradient(const Product<T>& m, int64_t begin, int64_t end, bool add) {
  for (int64_t c = 0; c < m.out.columns; c += Matrix<T>::kWide) {
    const bool two = m.out.width(c) > small::kLanes<T>;
    for (int64_t panel = begin; panel < end; panel += Matrix<T>::kWide) {
      for_each_tile(panel, std::min(end, panel + Matrix<T>::kWide), [&](int64_t rows, int64_t first) {
        (two ? gradient_tile_of<2, T>(rows, small::kHeights) : gradient_tile_of<1, T>(rows, small::kHeights))(m, c, first, add);
      });
    }
  }
}

// Where a line of tiles lies in an image: its first pixel, and from one row and one pixel to the next.
template <class T>
struct Line {
  T* data;
  int64_t row, pixel;
};

// The tiles of `lines` lines, `count` each, of images of `channels` channels. A tile of the input has n² pixels of each phase of the
// stride and is Outputs · Stride pixels from the next; one of the output has Outputs².
template <class T, int Outputs, int Taps, int Stride>
struct Tiles {
  using L = small::Lanes<T>;
  using Registers = Square<Outputs, Taps, typename L::Vector>;
  static constexpr int n = Registers::n;

  const std::vector<Line<T>>& lines;
  int64_t first, last, count;

  // to[i][tile, (phase, c)] = Bᵀ d
  void input(int64_t channels, const Matrices<T>& to) const {
    const int64_t matrix = to.step();
    for_each_input(channels, to, [=](const T* pixel, int64_t row, int64_t step, T* out) __attribute__((always_inline)) {
      Registers s;
      s.template each<n, n>([&](int i, int j, auto& d) __attribute__((always_inline)) { d = L::load(pixel + i * row + j * step); });
      s.input();
      s.template each<n, n>([&](int i, int j, auto& d) __attribute__((always_inline)) { L::store(d, out + (i * n + j) * matrix); });
    });
  }

  // Adds B of from[i][tile, (phase, c)] to the images.
  void add_input(int64_t channels, const Matrices<T>& from) const {
    const int64_t matrix = from.step();
    for_each_input(channels, from, [=](T* pixel, int64_t row, int64_t step, const T* in) __attribute__((always_inline)) {
      Registers s;
      s.template each<n, n>([&](int i, int j, auto& d) __attribute__((always_inline)) { d = L::load(in + (i * n + j) * matrix); });
      s.input_transposed();
      s.template each<n, n>([&](int i, int j, auto& d) __attribute__((always_inline)) {
        T* to = pixel + i * row + j * step;
        L::store(L::load(to) + d, to);
      });
    });
  }

  // The images = Aᵀ of from[i][tile, c], plus bias[c] if there is one.
  void output(int64_t channels, const Matrices<T>& from, const T* bias) const {
    const int64_t matrix = from.step();
    for_each_output(channels, from, [=](T* pixel, int64_t row, int64_t step, const T* in, int64_t c) __attribute__((always_inline)) {
      Registers s;
      s.template each<n, n>([&](int i, int j, auto& d) __attribute__((always_inline)) { d = L::load(in + (i * n + j) * matrix); });
      s.output();
      const typename L::Vector plus = bias == nullptr ? typename L::Vector{} : L::load(bias + c);
      s.template each<Outputs, Outputs>([&](int i, int j, auto& d) __attribute__((always_inline)) { L::store(d + plus, pixel + i * row + j * step); });
    });
  }

  // to[i][tile, c] = A g
  void cotangent(int64_t channels, const Matrices<T>& to) const {
    const int64_t matrix = to.step();
    for_each_output(channels, to, [=](const T* pixel, int64_t row, int64_t step, T* out, int64_t) __attribute__((always_inline)) {
      Registers s;
      s.template each<Outputs, Outputs>([&](int i, int j, auto& d) __attribute__((always_inline)) { d = L::load(pixel + i * row + j * step); });
      s.output_transposed();
      s.template each<n, n>([&](int i, int j, auto& d) __attribute__((always_inline)) { L::store(d, out + (i * n + j) * matrix); });
    });
  }

 private:
  // f(pixel, from one row and pixel of the tile to the next, element of the first matrix).
  template <class F>
  DATAGRAD_ALWAYS_INLINE void for_each_input(int64_t channels, const Matrices<T>& matrices, const F& f) const {
    const Matrix<T> matrix = matrices[0];
    for (int64_t phase = 0; phase < Stride * Stride; ++phase) {
      for (int64_t c = 0; c < channels; c += small::kLanes<T>) {
        T* element = matrix.at(0, phase * channels + c);
        const int64_t width = matrix.width(phase * channels + c);
        for (int64_t l = first; l < last; ++l) {
          const Line<T> line = lines[l];
          T* pixel = line.data + phase / Stride * line.row + phase % Stride * line.pixel + c;
          for (int64_t t = 0; t < count; ++t, element += width, pixel += Outputs * Stride * line.pixel) {
            f(pixel, Stride * line.row, Stride * line.pixel, element);
          }
        }
      }
    }
  }

  template <class F>
  DATAGRAD_ALWAYS_INLINE void for_each_output(int64_t channels, const Matrices<T>& matrices, const F& f) const {
    const Matrix<T> matrix = matrices[0];
    for (int64_t c = 0; c < channels; c += small::kLanes<T>) {
      T* element = matrix.at(0, c);
      const int64_t width = matrix.width(c);
      for (int64_t l = first; l < last; ++l) {
        const Line<T> line = lines[l];
        T* pixel = line.data + c;
        for (int64_t t = 0; t < count; ++t, element += width, pixel += Outputs * line.pixel) {
          f(pixel, line.row, line.pixel, element, c);
        }
      }
    }
  }
};

}  // namespace winograd
}  // namespace
}  // namespace datagrad
