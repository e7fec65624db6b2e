// Cross-entropy, its gradient and its Hessian-vector product on the CPU: tiles of rows (cross_entropy_rows.h) run in parallel.
#include <common/parallel.h>
#include <cpu/cross_entropy_rows.h>

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace datagrad {
namespace {

// Calls f(tile, first row, end row) for tiles that cover all rows, in parallel.
template <class T, class F>
void for_each_tile(const Classified& in, const F& f) {
  const int64_t rows = std::max<int64_t>(1, kLogitTile / in.classes);
  const int64_t grain = std::max<int64_t>(1, kSerialElements / 4 / in.classes);  // an exponential costs several elements
  parallel_for(in.rows, grain, [&](int64_t begin, int64_t end) {
    LogitTile<T> tile(in.classes);
    for (int64_t row = begin; row < end; row += rows) f(tile, row, std::min(row + rows, end));
  });
}

std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& logits, const Tensor& target, double label_smoothing,
                                                 int64_t ignore_index) {
  const Classified in("cross_entropy_forward", logits, target, label_smoothing, ignore_index);
  const Tensor loss = in.per_row(), lse = in.per_row();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const CrossEntropyRows<T> of(in);
    auto *loss_data = mutable_data<Acc<T>>(loss), *lse_data = mutable_data<Acc<T>>(lse);
    for_each_tile<T>(in, [&](LogitTile<T>& tile, int64_t begin, int64_t end) {
      forward_tile(of, tile, begin, end, loss_data, lse_data);
    });
  });
  return {loss, lse};
}

// Calls f(row, e, y, out) for every row of the tile, where e and y are its exponentials and probabilities (or nullptr) and `out` is
// where its `classes` results go, which are then stored in `result`.
template <class T, class F>
void softmax_tile(const CrossEntropyRows<T>& of, LogitTile<T>& tile, int64_t begin, int64_t end, const Acc<T>* lse, T* result,
                  const F& f) {
  using A = Acc<T>;
  const int64_t classes = of.in.classes;
  A* e = of.exponentials(tile, lse, begin, end);
  const A* y = of.target(tile, begin, end);
  T* target = result + begin * classes;
  A* out = wide_target(target, e);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = (row - begin) * classes;
    f(row, e + offset, y == nullptr ? nullptr : y + offset, out + offset);
  }
  store(out, target, (end - begin) * classes);
}

// The same for all rows; f also gets the tile.
template <class T, class F>
void for_each_softmax(const CrossEntropyRows<T>& of, const Acc<T>* lse, const Tensor& result, const F& f) {
  using A = Acc<T>;
  for_each_tile<T>(of.in, [&](LogitTile<T>& tile, int64_t begin, int64_t end) {
    softmax_tile(of, tile, begin, end, lse, mutable_data<T>(result),
                 [&](int64_t row, const A* e, const A* y, A* out) { f(tile, row, e, y, out); });
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
    const CrossEntropyRows<T> of(in);
    const A* weights = data<A>(weight_dense);
    for_each_softmax(of, data<A>(lse_dense), delta, [&](LogitTile<T>&, int64_t row, const A* e, const A* y, A* out) {
      of.gradient(row, e, y, weights[row], out);
    });
  });
  return delta;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_head(const Tensor& logits, const Tensor& target,
                                                              double label_smoothing, int64_t ignore_index,
                                                              bool over_counted) {
  const Classified in("cross_entropy_head", logits, target, label_smoothing, ignore_index);
  const Tensor loss = in.per_row(), lse = in.per_row(), weight = in.per_row(), delta = in.like_logits();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    const CrossEntropyRows<T> of(in);
    const A share = static_cast<A>(over_counted ? of.targets.weight(in.rows) : 1);
    A *losses = mutable_data<A>(loss), *weights = mutable_data<A>(weight);
    for_each_tile<T>(in, [&](LogitTile<T>& tile, int64_t begin, int64_t end) {
      forward_tile(of, tile, begin, end, losses, mutable_data<A>(lse));
      for (int64_t row = begin; row < end; ++row) losses[row] *= share;
      std::fill(weights + begin, weights + end, share);
      softmax_tile(of, tile, begin, end, data<A>(lse), mutable_data<T>(delta),
                   [&](int64_t row, const A* e, const A* y, A* out) { of.gradient(row, e, y, share, out); });
    });
  });
  return {loss, lse, weight, delta};
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
    const CrossEntropyRows<T> of(in);
    const A* weights = data<A>(weight_dense);
    const T* v_data = data<T>(v_dense);
    A* dweight_data = mutable_data<A>(dweight);
    for_each_softmax(of, data<A>(lse_dense), hv, [&](LogitTile<T>& tile, int64_t row, const A* e, const A* y, A* out) {
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
  m.impl("cross_entropy_head", TORCH_BOX(&datagrad::cross_entropy_head));
  m.impl("cross_entropy_vjp", TORCH_BOX(&datagrad::cross_entropy_vjp));
  m.impl("cross_entropy_hvp", TORCH_BOX(&datagrad::cross_entropy_hvp));
}
