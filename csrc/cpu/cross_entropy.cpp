// Cross-entropy, its gradient and its Hessian-vector product on the CPU; formulas in math/cross_entropy.h. Rows run in parallel, a
// tile of rows at a time: exp runs over the whole tile, so that it vectorises however few classes there are.
#include <common/cross_entropy_arguments.h>
#include <common/parallel.h>
#include <cpu/convert.h>
#include <math/cross_entropy.h>

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <tuple>

namespace datagrad {
namespace {

constexpr int64_t kTile = 2048;  // elements, or one row
constexpr int kLanes = 8;

// Σ f(c) for c < n in double, in lanes that vectorise.
template <class F>
double sum(int64_t n, const F& f) {
  double lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] += static_cast<double>(f(c + k));
  }
  for (int k = 0; c < n; ++c, ++k) lane[k] += static_cast<double>(f(c));
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

// The maximum of n numbers, -inf or a number for those with NaN: NaN shows in the sum of the exponentials.
template <class A>
A maximum(const A* x, int64_t n) {
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  A lane[kLanes];
  std::fill(lane, lane + kLanes, kLowest);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] = x[c + k] > lane[k] ? x[c + k] : lane[k];
  }
  for (int k = 0; c < n; ++c, ++k) lane[k] = x[c] > lane[k] ? x[c] : lane[k];
  return *std::max_element(lane, lane + kLanes);
}

// Memory of one thread for the tiles it works on.
template <class T>
class Tile {
 public:
  explicit Tile(int64_t classes) : size_(std::max(kTile, classes)), memory_(new Acc<T>[5 * size_]) {}

  Acc<T>* exponentials() { return memory_.get(); }
  Acc<T>* shifted() { return memory_.get() + 4 * size_; }
  const Acc<T>* logits(const T* source, int64_t n) { return widened(source, memory_.get() + size_, n); }
  const Acc<T>* target(const T* source, int64_t n) { return widened(source, memory_.get() + 2 * size_, n); }
  const Acc<T>* tangent(const T* source, int64_t n) { return widened(source, memory_.get() + 3 * size_, n); }

 private:
  int64_t size_;
  std::unique_ptr<Acc<T>[]> memory_;  // not initialised
};

// Calls f(tile, first row, end row) for tiles that cover all rows, in parallel.
template <class T, class F>
void for_each_tile(const Classified& in, const F& f) {
  const int64_t rows = std::max<int64_t>(1, kTile / in.classes);
  const int64_t grain = std::max<int64_t>(1, kSerialElements / 4 / in.classes);  // an exponential costs several elements
  parallel_for(in.rows, grain, [&](int64_t begin, int64_t end) {
    Tile<T> tile(in.classes);
    for (int64_t row = begin; row < end; row += rows) f(tile, row, std::min(row + rows, end));
  });
}

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
};

// The operands that all three ops have, and one row of them at a time.
template <class T>
struct Loss {
  using A = Acc<T>;
  const Classified& in;
  const Targets<T> targets;
  const Smoothing<A> smoothing;
  const T* logits;

  explicit Loss(const Classified& in)
      : in(in), targets(in), smoothing(in.label_smoothing, in.classes), logits(data<T>(in.logits)) {}

  // Probabilities of the tile's rows, or nullptr.
  const A* target(Tile<T>& tile, int64_t begin, int64_t end) const {
    if (in.indices) return nullptr;
    return tile.target(targets.probabilities + begin * in.classes, (end - begin) * in.classes);
  }

  // exp(z - lse) of the tile's rows: softmax but for a factor near 1, which the rounding of lse leaves.
  A* exponentials(Tile<T>& tile, const A* lse, int64_t begin, int64_t end) const {
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
      return static_cast<A>(sum(in.classes, [&](int64_t c) { return term(smoothing(y[c]), c); }));
    }
    const A target = term(smoothing.kept, targets.index[row]);
    if (smoothing.spread == A(0)) return target;
    return target + static_cast<A>(sum(in.classes, [&](int64_t c) { return term(smoothing.spread, c); }));
  }

  // weight (total p - y) for p = e / Σ e, in `out`, which may be e.
  void gradient(int64_t row, const A* e, const A* y, A weight, A* out) const {
    const int64_t classes = in.classes;
    if (targets.ignored(row)) {
      std::fill(out, out + classes, A(0));
      return;
    }
    const double e_sum = sum(classes, [&](int64_t c) { return e[c]; });
    const A inverse = static_cast<A>(1 / e_sum);
    if (y != nullptr) {
      const A total = static_cast<A>(sum(classes, [&](int64_t c) { return smoothing(y[c]); }));
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
    const double e_sum = sum(classes, [&](int64_t c) { return e[c]; });
    const double p_dot_v = sum(classes, [&](int64_t c) { return wide(e[c]) * wide(v[c]); }) / e_sum;
    double total = 1, y_dot_v;
    if (y != nullptr) {
      total = sum(classes, [&](int64_t c) { return smoothing(y[c]); });
      y_dot_v = sum(classes, [&](int64_t c) { return wide(smoothing(y[c])) * wide(v[c]); });
    } else {
      y_dot_v = wide(smoothing.kept) * wide(v[targets.index[row]]);
      if (smoothing.spread != A(0)) {
        y_dot_v += wide(smoothing.spread) * sum(classes, [&](int64_t c) { return v[c]; });
      }
    }
    const A inverse = static_cast<A>(1 / e_sum), y_sum = static_cast<A>(total);
    for (int64_t c = 0; c < classes; ++c) out[c] = curvature(weight, y_sum, e[c] * inverse, v[c], p_dot_v);
    return static_cast<A>(total * p_dot_v - y_dot_v);
  }
};

// Losses and log-sum-exps of the tile's rows.
template <class T>
void forward_tile(const Loss<T>& of, Tile<T>& tile, int64_t begin, int64_t end, Acc<T>* loss, Acc<T>* lse) {
  using A = Acc<T>;
  const int64_t classes = of.in.classes, n = (end - begin) * classes;
  const A* z = tile.logits(of.logits + begin * classes, n);
  const A* y = of.target(tile, begin, end);
  A *shifted = tile.shifted(), *e = tile.exponentials();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = (row - begin) * classes;
    const A m = maximum(z + offset, classes);
    for (int64_t c = 0; c < classes; ++c) shifted[offset + c] = z[offset + c] - m;
    lse[row] = m;
  }
  for (int64_t i = 0; i < n; ++i) e[i] = math::exp(shifted[i]);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = (row - begin) * classes;
    const A log_sum = std::log(static_cast<A>(sum(classes, [&](int64_t c) { return e[offset + c]; })));
    lse[row] += log_sum;
    loss[row] = of.value(row, shifted + offset, y == nullptr ? nullptr : y + offset, log_sum);
  }
}

std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& logits, const Tensor& target, double label_smoothing,
                                                 int64_t ignore_index) {
  const Classified in("cross_entropy_forward", logits, target, label_smoothing, ignore_index);
  const Tensor loss = in.per_row(), lse = in.per_row();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Loss<T> of(in);
    auto *loss_data = mutable_data<Acc<T>>(loss), *lse_data = mutable_data<Acc<T>>(lse);
    for_each_tile<T>(in, [&](Tile<T>& tile, int64_t begin, int64_t end) {
      forward_tile(of, tile, begin, end, loss_data, lse_data);
    });
  });
  return {loss, lse};
}

// Calls f(tile, row, e, y, out) for every row, where e and y are its exponentials and probabilities (or nullptr) and `out` is where its
// `classes` results go; each tile of them is then stored in `result`.
template <class T, class F>
void for_each_softmax(const Loss<T>& of, const Acc<T>* lse, const Tensor& result, const F& f) {
  using A = Acc<T>;
  const int64_t classes = of.in.classes;
  T* result_data = mutable_data<T>(result);
  for_each_tile<T>(of.in, [&](Tile<T>& tile, int64_t begin, int64_t end) {
    A* e = of.exponentials(tile, lse, begin, end);
    const A* y = of.target(tile, begin, end);
    T* target = result_data + begin * classes;
    A* out = wide_target(target, e);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t offset = (row - begin) * classes;
      f(tile, row, e + offset, y == nullptr ? nullptr : y + offset, out + offset);
    }
    store(out, target, (end - begin) * classes);
  });
}

Tensor cross_entropy_vjp(const Tensor& logits, const Tensor& target, const Tensor& lse, const Tensor& weight,
                         double label_smoothing, int64_t ignore_index) {
  const Classified in("cross_entropy_vjp", logits, target, label_smoothing, ignore_index);
  const Tensor lse_dense = in.check_per_row("lse", lse), weight_dense = in.check_per_row("weight", weight);
  const Tensor delta = in.like_logits();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    const Loss<T> of(in);
    const A* weights = data<A>(weight_dense);
    for_each_softmax(of, data<A>(lse_dense), delta, [&](Tile<T>&, int64_t row, const A* e, const A* y, A* out) {
      of.gradient(row, e, y, weights[row], out);
    });
  });
  return delta;
}

std::tuple<Tensor, Tensor> cross_entropy_hvp(const Tensor& logits, const Tensor& target, const Tensor& lse,
                                             const Tensor& weight, const Tensor& v, double label_smoothing,
                                             int64_t ignore_index) {
  const Classified in("cross_entropy_hvp", logits, target, label_smoothing, ignore_index);
  const Tensor lse_dense = in.check_per_row("lse", lse), weight_dense = in.check_per_row("weight", weight);
  const Tensor v_dense = in.check_like_logits("v", v);
  const Tensor hv = in.like_logits(), dweight = in.per_row();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    const Loss<T> of(in);
    const A* weights = data<A>(weight_dense);
    const T* v_data = data<T>(v_dense);
    A* dweight_data = mutable_data<A>(dweight);
    for_each_softmax(of, data<A>(lse_dense), hv, [&](Tile<T>& tile, int64_t row, const A* e, const A* y, A* out) {
      const A* v_row = tile.tangent(v_data + row * in.classes, in.classes);
      dweight_data[row] = of.hessian(row, e, y, weights[row], v_row, out);
    });
  });
  return {hv, dweight};
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&datagrad::cross_entropy_forward));
  m.impl("cross_entropy_vjp", TORCH_BOX(&datagrad::cross_entropy_vjp));
  m.impl("cross_entropy_hvp", TORCH_BOX(&datagrad::cross_entropy_hvp));
}
