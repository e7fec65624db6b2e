// Large products of matrices, from the tiles of small_products.h. Some panels of the right operand, each as wide as a tile, are
// copied to where they stay in a core's cache, and the rows of the left one go by; so the rows of the result are written in
// runs. A left operand that is transposed is copied, too, some rows at a time: one element of a cache line after the other
// would be read, and where the lines lie a power of two apart they push each other out of the cache.
// How an element is summed up depends on the sizes alone.
#pragma once

#include <common/parallel.h>
#include <cpu/small_products.h>

namespace datagrad {
namespace small {

// out (rows, columns) = a (rows, depth) b (depth, columns) + plus, where plus may be out itself. Rows of out are dense, and
// rows or columns of b.
template <class T>
class PanelProduct {
 public:
  PanelProduct(const Strided<T>& a, const Strided<T>& b, int64_t depth, T* out, int64_t rows, int64_t columns, Plus<T> plus)
      : a_(a),
        b_(b),
        out_(out),
        plus_(plus),
        rows_(rows),
        columns_(columns),
        depths_(even(depth, kDepth)) {}

  // The threads share out what there is more of. Two that write to the same rows disturb each other.
  void run() const {
    const Blocks rows(rows_, kRows, kRows), columns(columns_, kLanes<T>, 1);
    const bool by_rows = rows_ >= columns_;
    const int64_t each = rows_ * columns_ * depths_.n / (by_rows ? rows.count() : columns.count());
    parallel_for((by_rows ? rows : columns).count(), kSerialProducts / each + 1, [&](int64_t first, int64_t last) {
      if (by_rows) {
        multiply(rows.begin(first), rows.end(last - 1), 0, columns_);
      } else {
        multiply(0, rows_, columns.begin(first), columns.end(last - 1));
      }
    });
  }

 private:
  static constexpr int64_t kWide = 2 * kLanes<T>;
  static constexpr int64_t kTurned = 2;                      // tiles whose rows of a transposed operand are copied together
  static constexpr int64_t kDepth = 512;                     // of a panel
  static constexpr int64_t kCopied = (1 << 18) / sizeof(T);  // elements of panels that stay in the cache
  static constexpr int64_t kSerialProducts = 1 << 18;        // multiplications below which one thread is enough
  static constexpr auto kTallHeights = std::make_integer_sequence<int, kTall>();

  // As few blocks as there are of at most so many, each as large as the others but for the last one.
  static Blocks even(int64_t n, int64_t most) {
    const int64_t count = (n + most - 1) / most;
    return Blocks(n, (n + count - 1) / count, 1);
  }

  // Rows [first, last) and columns [begin, end) of the result.
  void multiply(int64_t first, int64_t last, int64_t begin, int64_t end) const {
    const int64_t wide = std::max<int64_t>(1, kCopied / (depths_.size * kWide)) * kWide;
    T* panels = thread_memory<PanelProduct, T>(depths_.size * (wide + kTurned * kTall));
    T* turned = panels + depths_.size * wide;
    for (int64_t piece = 0; piece < depths_.count(); ++piece) {
      for (int64_t c = begin; c < end; c += wide) {
        rows_times_panels(piece, first, last, c, std::min(end, c + wide), panels, turned);
      }
    }
  }

  void rows_times_panels(int64_t piece, int64_t first, int64_t last, int64_t begin, int64_t end, T* panels, T* turned) const {
    const int64_t k = depths_.begin(piece), depth = depths_.end(piece) - k;
    const Plus<T> plus = piece == 0 ? plus_ : Plus<T>{out_, columns_};
    copy_panels(b_.data + k * b_.row + begin * b_.column, depth, end - begin, panels);
    const Blocks tall = even(last - first, kTall);
    for (int64_t i = 0; i < tall.count(); ++i) {
      const int64_t row = first + tall.begin(i), count = tall.end(i) - tall.begin(i);
      Strided<T> left{a_.data + row * a_.row + k * a_.column, a_.row, a_.column};
      if (a_.row == 1) {
        if (i % kTurned == 0) copy_turned(left, last - row, tall.size, depth, turned);
        left = {turned + i % kTurned * kTall * depth, 1, kTall};
      }
      for (int64_t c = begin; c < end; c += kWide) {
        const int64_t width = std::min(kWide, end - c);
        const Plus<T> here{plus.data == nullptr ? nullptr : plus.data + row * plus.row + c, plus.row};
        const Columns<T> right{panels + (c - begin) * depth, kWide, out_ + row * columns_ + c, columns_, here, width, depth};
        if (width > kLanes<T>) {
          tiles<2>(left, right, count, kTallHeights);
        } else {
          tiles<1>(left, right, count, kTallHeights);
        }
      }
    }
  }

  // Row by row, as a dense one lies in memory. Columns of the last panel beyond those there are, are not defined.
  void copy_panels(const T* source, int64_t depth, int64_t columns, T* panels) const {
    using L = Lanes<T>;
    if (b_.column != 1) {
      for (int64_t c = 0; c < columns; c += kWide) {
        transpose(source + c * b_.column, b_.column, std::min(kWide, columns - c), depth, panels + c * depth, kWide);
      }
      return;
    }
    const int64_t whole = columns / kWide * kWide;
    for (int64_t r = 0; r < depth; ++r) {
      const T* from = source + r * b_.row;
      T* to = panels + r * kWide;
      for (int64_t c = 0; c < whole; c += kWide, to += depth * kWide) {
        for (int64_t v = 0; v < kWide; v += kLanes<T>) L::store(L::load(from + c + v), to + v);
      }
      if (whole < columns) std::copy_n(from + whole, columns - whole, to);
    }
  }

  // The rows of each tile, of `rows` that are left, column by column.
  static void copy_turned(const Strided<T>& a, int64_t rows, int64_t height, int64_t depth, T* turned) {
    for (int64_t tile = 0; tile < kTurned && tile * height < rows; ++tile) {
      const T* from = a.data + tile * height;
      T* to = turned + tile * kTall * depth;
      const int64_t there = rows - tile * height;
      for (int64_t c = 0; c < depth; ++c, from += a.column, to += kTall) {
        if (there >= kTall) {
          std::copy_n(from, kTall, to);
        } else {
          std::copy_n(from, there, to);
        }
      }
    }
  }

  Strided<T> a_, b_;
  T* out_;
  Plus<T> plus_;
  int64_t rows_, columns_;
  Blocks depths_;
};

}  // namespace small
}  // namespace datagrad
