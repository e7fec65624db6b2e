// Large products of matrices, from the tiles of small_products.h. Some panels of the right operand, each as wide as a tile, are
// copied to where they stay in a core's cache, and the rows of the left one go by; so the rows of the result are written in
// runs. How an element is summed up depends on the sizes alone.
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
        depths_(depth, (depth - 1) / ((depth - 1) / kDepth + 1) + 1, 1) {}

  // The threads share out what there is more of. Two that write to the same rows disturb each other.
  void run() const {
    const Blocks rows(rows_, 2 * kRows, kRows), columns(columns_, kWide, kWide);
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
  static constexpr int64_t kDepth = 512;                     // of a panel
  static constexpr int64_t kCopied = (1 << 18) / sizeof(T);  // elements of panels that stay in the cache
  static constexpr int64_t kSerialProducts = 1 << 18;        // multiplications below which one thread is enough

  // Rows [first, last) and columns [begin, end) of the result.
  void multiply(int64_t first, int64_t last, int64_t begin, int64_t end) const {
    const int64_t wide = std::max<int64_t>(1, kCopied / (depths_.size * kWide)) * kWide;
    T* panels = thread_memory<PanelProduct, T>(depths_.size * wide);
    for (int64_t piece = 0; piece < depths_.count(); ++piece) {
      for (int64_t c = begin; c < end; c += wide) rows_times_panels(piece, first, last, c, std::min(end, c + wide), panels);
    }
  }

  void rows_times_panels(int64_t piece, int64_t first, int64_t last, int64_t begin, int64_t end, T* panels) const {
    const int64_t k = depths_.begin(piece), depth = depths_.end(piece) - k;
    const Plus<T> plus = piece == 0 ? plus_ : Plus<T>{out_, columns_};
    for (int64_t c = begin; c < end; c += kWide) {
      copy_panel(b_.data + k * b_.row + c * b_.column, depth, std::min(kWide, end - c), panels + (c - begin) * depth);
    }
    for (int64_t row = first; row < last; row += kRows) {
      const int64_t count = std::min<int64_t>(kRows, last - row);
      const Strided<T> left{a_.data + row * a_.row + k * a_.column, a_.row, a_.column};
      for (int64_t c = begin; c < end; c += kWide) {
        const int64_t width = std::min(kWide, end - c);
        const Plus<T> here{plus.data == nullptr ? nullptr : plus.data + row * plus.row + c, plus.row};
        const Columns<T> right{panels + (c - begin) * depth, kWide, out_ + row * columns_ + c, columns_, here, width, depth};
        if (width > kLanes<T>) {
          tiles<2>(left, right, count, kHeights);
        } else {
          tiles<1>(left, right, count, kHeights);
        }
      }
    }
  }

  // Columns beyond the width are not defined.
  void copy_panel(const T* source, int64_t depth, int64_t width, T* panel) const {
    if (b_.column != 1) {
      transpose(source, b_.column, width, depth, panel, kWide);
    } else if (width == kWide) {
      for (int64_t r = 0; r < depth; ++r) std::copy_n(source + r * b_.row, kWide, panel + r * kWide);
    } else {
      for (int64_t r = 0; r < depth; ++r) std::copy_n(source + r * b_.row, width, panel + r * kWide);
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
