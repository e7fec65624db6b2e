// Products that read images where they lie, with no matrix of patches. Channels are the fastest dimension of an image, so that
// what a kernel sees of one of its rows is one run of memory:
//
//   y[p, o] = Σ_runs Σ_k image[place(p) + run + k] w[(run, k), o]        w̄[o, (run, k)] = Σ_p g[p, o] image[place(p) + run + k]
#pragma once

#include <cpu/patches.h>
#include <cpu/small_products.h>

#include <vector>

namespace datagrad {
namespace {

// How many parts, at most so many but for two, a sum over samples has: halves of `all`, so that threads have as many each.
inline int64_t halved_parts(int64_t all, int64_t most) {
  while (all > 2 && all > most) all /= 2;
  return all;
}

namespace direct {

template <class T>
constexpr int64_t kWide = 2 * small::kLanes<T>;

// A matrix (depth, columns) in dense panels of kWide columns. What is beyond the last column is zero.
template <class T>
struct Panels {
  const T* data;
  int64_t depth, columns;

  static int64_t size(int64_t depth, int64_t columns) { return depth * rounded_up(columns, kWide<T>); }
};

// Runs of memory that an output pixel reads, from its place in the image.
struct Runs {
  std::vector<int64_t> offsets;
  int64_t length = 0;
};

// out[to[p] + c] = Σ image[from[p] + run + k] matrix[(run, k), c] + bias[c] for `count` pixels p.
template <class T>
struct Product {
  const T* image;
  const int64_t *from, *to;
  int64_t count;
  const Runs& runs;
  Panels<T> matrix;
  const T* bias;  // as long as the panels, or nullptr
  T* out;
};

template <int R, int V, class T>
void tile(const Product<T>& m, int64_t column, int64_t first) {
  using L = small::Lanes<T>;
  constexpr int64_t n = L::kCount;
  small::Tile<R, V, T> t;
  t.clear();
  const T* panel = m.matrix.data + column * m.matrix.depth;
  for (const int64_t run : m.runs.offsets) {
    const T* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = m.image + m.from[first + r] + run;
    t.add([&](int r, int64_t k) { return a[r][k]; }, panel, kWide<T>, m.runs.length);
    panel += m.runs.length * kWide<T>;
  }
  const int64_t width = m.matrix.columns - column;
#pragma GCC unroll 16
  for (int i = 0; i < R * V; ++i) {
    const int64_t c = i % V * n;
    if (m.bias != nullptr) t.sum[i] += L::load(m.bias + column + c);
    T* out = m.out + m.to[first + i / V] + column + c;
    if (width >= c + n) {
      L::store(t.sum[i], out);
    } else {
      T last[n];
      L::store(t.sum[i], last);
      std::copy_n(last, width - c, out);
    }
  }
}

template <int V, class T, int... I>
void tiles(const Product<T>& m, int64_t column, std::integer_sequence<int, I...>) {
  using Run = void (*)(const Product<T>&, int64_t, int64_t);
  static constexpr Run of_rows[] = {tile<I + 1, V, T>...};
  const int64_t count = (m.count + small::kRows - 1) / small::kRows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = m.count * i / count, end = m.count * (i + 1) / count;
    of_rows[end - begin - 1](m, column, begin);
  }
}

template <class T>
void multiply(const Product<T>& m) {
  for (int64_t c = 0; c < m.matrix.columns; c += kWide<T>) {
    if (m.matrix.columns - c > small::kLanes<T>) {
      tiles<2>(m, c, small::kHeights);
    } else {
      tiles<1>(m, c, small::kHeights);
    }
  }
}

// A sample's rows [begin, end) with zeros around it, `left` of them (pixels) before a row of `padded`.
template <class T>
void copy_rows(const T* x, const Image& at, int64_t channels, int64_t height, int64_t width, int64_t begin, int64_t end,
               int64_t left, int64_t padded, T* image) {
  for (int64_t h = begin; h < end; ++h, image += padded * channels) {
    if (h < 0 || h >= height) {
      std::fill_n(image, padded * channels, T(0));
      continue;
    }
    const T* row = x + h * at.h;
    T* inside = image + left * channels;
    std::fill(image, inside, T(0));
    std::fill(inside + width * channels, image + padded * channels, T(0));
    if (at.c == 1 && at.w == channels) {
      std::copy_n(row, width * channels, inside);
    } else if (at.w == 1) {
      small::transpose(row, at.c, channels, width, inside, channels);
    } else {
      for (int64_t w = 0; w < width; ++w) {
        for (int64_t c = 0; c < channels; ++c) *inside++ = row[w * at.w + c * at.c];
      }
    }
  }
}

// The inverse for whole rows without zeros: `rows` rows of pixels to where a tensor has them.
template <class T>
void put_rows(const T* rows, int64_t channels, int64_t begin, int64_t end, int64_t width, T* x, const Image& at) {
  for (int64_t h = begin; h < end; ++h, rows += width * channels) {
    T* row = x + h * at.h;
    if (at.w == 1) {
      small::transpose(rows, channels, width, channels, row, at.c);
    } else {
      for (int64_t w = 0; w < width; ++w) {
        for (int64_t c = 0; c < channels; ++c) row[w * at.w + c * at.c] = rows[w * channels + c];
      }
    }
  }
}

// target[o, (run, k)] = Σ_pixels cotangents[p, o] images[place(p) + run + k], or += that.
template <class T>
struct Gradient {
  const T *cotangents, *images;  // samples one after the other: rows of pixels, and padded images
  int64_t samples, out_channels, out_height, out_width;
  int64_t image_size, row, step;  // from one sample, row and pixel of the output to the next
  T* target;
  int64_t depth;
  bool add;
};

template <int R, int V, class T>
void gradient_tile(const Gradient<T>& m, int64_t channel, const T* images, int64_t place, int64_t width) {
  small::Tile<R, V, T> t;
  t.clear();
  const T* cotangents = m.cotangents + channel;
  for (int64_t s = 0; s < m.samples; ++s, images += m.image_size) {
    for (int64_t h = 0; h < m.out_height; ++h) {
      t.add([&](int r, int64_t k) { return cotangents[k * m.out_channels + r]; }, images + h * m.row, m.step,
            m.out_width);
      cotangents += m.out_width * m.out_channels;
    }
  }
  T* out = m.target + channel * m.depth + place;
  const T* plus = m.add ? out : nullptr;
  if (width >= V * small::kLanes<T>) {
    t.store(out, m.depth, plus, m.depth);
  } else {
    t.store_part(out, m.depth, plus, m.depth, width);
  }
}

// Rows [begin, end) of the target, `width` columns from `place` on, which lie `run` behind a pixel's place in the images.
template <int V, class T, int... I>
void gradient_tiles(const Gradient<T>& m, int64_t begin, int64_t end, int64_t run, int64_t place, int64_t width,
                    std::integer_sequence<int, I...>) {
  using Run = void (*)(const Gradient<T>&, int64_t, const T*, int64_t, int64_t);
  static constexpr Run of_rows[] = {gradient_tile<I + 1, V, T>...};
  const int64_t rows = end - begin, count = (rows + small::kRows - 1) / small::kRows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = rows * i / count, last = rows * (i + 1) / count;
    of_rows[last - first - 1](m, begin + first, m.images + run, place, width);
  }
}

}  // namespace direct
}  // namespace
}  // namespace datagrad
