// Rows of cross-entropy on the CPU; formulas in math/cross_entropy.h. A tile of rows at a time: exp runs over the whole tile, so that
// it vectorises however few classes there are.
#pragma once

#include <common/cross_entropy_arguments.h>
#include <cpu/convert.h>
#include <cpu/thread_memory.h>
#include <math/cross_entropy.h>

#include <algorithm>
#include <limits>
#include <memory>

namespace datagrad {
namespace {

constexpr int64_t kLogitTile = 2048;  // elements, or one row
constexpr int kClassLanes = 8;

// Σ f(c) for c < n in double, in lanes that vectorise.
template <class F>
double lane_sum(int64_t n, const F& f) {
  double lane[kClassLanes] = {};
  int64_t c = 0;
  for (; c + kClassLanes <= n; c += kClassLanes) {
    for (int k = 0; k < kClassLanes; ++k) lane[k] += static_cast<double>(f(c + k));
  }
  for (int k = 0; c < n; ++c, ++k) lane[k] += static_cast<double>(f(c));
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

// The maximum of n numbers, -inf or a number for those with NaN: NaN shows in the sum of the exponentials.
template <class A>
A lane_maximum(const A* x, int64_t n) {
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  A lane[kClassLanes];
  std::fill(lane, lane + kClassLanes, kLowest);
  int64_t c = 0;
  for (; c + kClassLanes <= n; c += kClassLanes) {
    for (int k = 0; k < kClassLanes; ++k) lane[k] = x[c + k] > lane[k] ? x[c + k] : lane[k];
  }
  for (int k = 0; c < n; ++c, ++k) lane[k] = x[c] > lane[k] ? x[c] : lane[k];
  return *std::max_element(lane, lane + kClassLanes);
}

// Memory of one thread for the tiles it works on.
template <class T>
class LogitTile {
 public:
  explicit LogitTile(int64_t classes)
      : size_(std::max(kLogitTile, classes)), memory_(thread_memory<LogitTile, Acc<T>>(5 * size_)) {}

  Acc<T>* exponentials() { return memory_; }
  Acc<T>* shifted() { return memory_ + 4 * size_; }
  const Acc<T>* logits(const T* source, int64_t n) { return widened(source, memory_ + size_, n); }
  const Acc<T>* target(const T* source, int64_t n) { return widened(source, memory_ + 2 * size_, n); }
  const Acc<T>* tangent(const T* source, int64_t n) { return widened(source, memory_ + 3 * size_, n); }

 private:
  int64_t size_;
  Acc<T>* memory_;
};

// Where the rows' targets are, and which rows count.
template <class T>
struct Targets {
  const int64_t* index;
  const T* probabilities;
  int64_t ignore_index;

  explicit Targets(const Classified& in)
      : index(in.indices ? data<int64_t>(in.target) : nullptr),
        probabilities(in.indices ? nullptr : data<T>(in.target)),
        ignore_index(in.ignore_index) {
    for (int64_t row = 0; index != nullptr && row < in.rows; ++row) {
      DATAGRAD_CHECK(ignored(row) || (0 <= index[row] && index[row] < in.classes), in.op, ": target[", row, "] is ",
                     index[row], ", out of bounds for ", in.classes, " classes (ignore_index is ", ignore_index, ")");
    }
  }

  bool ignored(int64_t row) const { return index != nullptr && index[row] == ignore_index; }

  // `rows` over the number of those that are not ignored.
  double weight(int64_t rows) const {
    int64_t counted = rows;
    for (int64_t row = 0; row < rows; ++row) counted -= ignored(row) ? 1 : 0;
    return static_cast<double>(rows) / static_cast<double>(counted);
  }
};

// The operands that all three ops have, and one row of them at a time.
template <class T>
struct CrossEntropyRows {
  using A = Acc<T>;
  const Classified& in;
  const Targets<T> targets;
  const Smoothing<A> smoothing;
  const T* logits;

  explicit CrossEntropyRows(const Classified& in)
      : in(in), targets(in), smoothing(in.label_smoothing, in.classes), logits(data<T>(in.logits)) {}

  // Probabilities of the tile's rows, or nullptr.
  const A* target(LogitTile<T>& tile, int64_t begin, int64_t end) const {
    if (in.indices) return nullptr;
    return tile.target(targets.probabilities + begin * in.classes, (end - begin) * in.classes);
  }

  // exp(z - lse) of the tile's rows: softmax but for a factor near 1, which the rounding of lse leaves.
  A* exponentials(LogitTile<T>& tile, const A* lse, int64_t begin, int64_t end) const {
    const int64_t classes = in.classes, n = (end - begin) * classes;
    const A* z = tile.logits(logits + begin * classes, n);
    A* e = tile.exponentials();
    for (int64_t row = begin; row < end; ++row) {
      const int64_t offset = (row - begin) * classes;
      for (int64_t c = 0; c < classes; ++c) e[offset + c] = z[offset + c] - lse[row];
    }
    for (int64_t i = 0; i < n; ++i) e[i] = math::exp(e[i]);
    return e;
  }

  // The loss of a row from shifted = z - m.
  A value(int64_t row, const A* shifted, const A* y, A log_sum) const {
    if (targets.ignored(row)) return A(0);
    const auto term = [&](A weight, int64_t c) { return loss_term(weight, log_sum, shifted[c]); };
    if (y != nullptr) {
      return static_cast<A>(lane_sum(in.classes, [&](int64_t c) { return term(smoothing(y[c]), c); }));
    }
    const A target = term(smoothing.kept, targets.index[row]);
    if (smoothing.spread == A(0)) return target;
    return target + static_cast<A>(lane_sum(in.classes, [&](int64_t c) { return term(smoothing.spread, c); }));
  }

  // weight (total p - y) for p = e / Σ e, in `out`, which may be e.
  void gradient(int64_t row, const A* e, const A* y, A weight, A* out) const {
    const int64_t classes = in.classes;
    if (targets.ignored(row)) {
      std::fill(out, out + classes, A(0));
      return;
    }
    const double e_sum = lane_sum(classes, [&](int64_t c) { return e[c]; });
    const A inverse = static_cast<A>(1 / e_sum);
    if (y != nullptr) {
      const A total = static_cast<A>(lane_sum(classes, [&](int64_t c) { return smoothing(y[c]); }));
      for (int64_t c = 0; c < classes; ++c) out[c] = delta(weight, total, e[c] * inverse, smoothing(y[c]));
    } else {
      const int64_t index = targets.index[row];
      const A at_index = delta_at_index(weight, e[index], e_sum, smoothing);
      for (int64_t c = 0; c < classes; ++c) out[c] = delta(weight, A(1), e[c] * inverse, smoothing(A(0)));
      out[index] = at_index;
    }
  }

  // The Hessian-vector product in `out`, which may be e; returns (total p - y)·v.
  A hessian(int64_t row, const A* e, const A* y, A weight, const A* v, A* out) const {
    const int64_t classes = in.classes;
    if (targets.ignored(row)) {
      std::fill(out, out + classes, A(0));
      return A(0);
    }
    const auto wide = [](A x) { return static_cast<double>(x); };
    const double e_sum = lane_sum(classes, [&](int64_t c) { return e[c]; });
    const double p_dot_v = lane_sum(classes, [&](int64_t c) { return wide(e[c]) * wide(v[c]); }) / e_sum;
    double total = 1, y_dot_v;
    if (y != nullptr) {
      total = lane_sum(classes, [&](int64_t c) { return smoothing(y[c]); });
      y_dot_v = lane_sum(classes, [&](int64_t c) { return wide(smoothing(y[c])) * wide(v[c]); });
    } else {
      y_dot_v = wide(smoothing.kept) * wide(v[targets.index[row]]);
      if (smoothing.spread != A(0)) {
        y_dot_v += wide(smoothing.spread) * lane_sum(classes, [&](int64_t c) { return v[c]; });
      }
    }
    const A inverse = static_cast<A>(1 / e_sum), y_sum = static_cast<A>(total);
    for (int64_t c = 0; c < classes; ++c) out[c] = curvature(weight, y_sum, e[c] * inverse, v[c], p_dot_v);
    return static_cast<A>(total * p_dot_v - y_dot_v);
  }
};

// Losses and log-sum-exps of the tile's rows.
template <class T>
void forward_tile(const CrossEntropyRows<T>& of, LogitTile<T>& tile, int64_t begin, int64_t end, Acc<T>* loss, Acc<T>* lse) {
  using A = Acc<T>;
  const int64_t classes = of.in.classes, n = (end - begin) * classes;
  const A* z = tile.logits(of.logits + begin * classes, n);
  const A* y = of.target(tile, begin, end);
  A *shifted = tile.shifted(), *e = tile.exponentials();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = (row - begin) * classes;
    const A m = lane_maximum(z + offset, classes);
    for (int64_t c = 0; c < classes; ++c) shifted[offset + c] = z[offset + c] - m;
    lse[row] = m;
  }
  for (int64_t i = 0; i < n; ++i) e[i] = math::exp(shifted[i]);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = (row - begin) * classes;
    const A log_sum = std::log(static_cast<A>(lane_sum(classes, [&](int64_t c) { return e[offset + c]; })));
    lse[row] += log_sum;
    loss[row] = of.value(row, shifted + offset, y == nullptr ? nullptr : y + offset, log_sum);
  }
}

}  // namespace
}  // namespace datagrad
