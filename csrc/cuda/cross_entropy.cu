// Cross-entropy, its gradient and its Hessian-vector product on CUDA; formulas in math/cross_entropy.h, how rows are shared out
// in common/cuda_rows.cuh. A row is read from memory once and from the cache after that; neighbouring lanes read neighbouring
// classes.
#include <common/cross_entropy_arguments.h>
#include <common/cuda_rows.cuh>
#include <math/cross_entropy.h>

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

namespace datagrad {
namespace {

template <class A>
struct Maximum {
  __device__ static void merge(A& a, A b) { a = b > a ? b : a; }
};

// The sums over a row that the gradient and the Hessian-vector product need; in double, for their differences cancel.
struct Moments {
  double e, e_dot_v, y, y_dot_v;

  __device__ static void merge(Moments& a, const Moments& b) {
    a.e += b.e;
    a.e_dot_v += b.e_dot_v;
    a.y += b.y;
    a.y_dot_v += b.y_dot_v;
  }
};

template <class A>
struct Total {
  __device__ static void merge(A& a, A b) { a += b; }
};

// Logits and target of all rows; either index or probabilities is null.
template <class T>
struct Operands {
  const T* logits;
  const int64_t* index;
  const T* probabilities;
  int64_t rows, classes, ignore_index;
  Smoothing<Acc<T>> smoothing;

  explicit Operands(const Classified& in)
      : logits(data<T>(in.logits)),
        index(in.indices ? data<int64_t>(in.target) : nullptr),
        probabilities(in.indices ? nullptr : data<T>(in.target)),
        rows(in.rows),
        classes(in.classes),
        ignore_index(in.ignore_index),
        smoothing(in.label_smoothing, in.classes) {}

  __device__ Acc<T> z(int64_t row, int64_t c) const { return static_cast<Acc<T>>(logits[row * classes + c]); }
  __device__ Acc<T> y(int64_t row, int64_t c) const {
    if (index != nullptr) return smoothing(c == index[row] ? Acc<T>(1) : Acc<T>(0));
    return smoothing(static_cast<Acc<T>>(probabilities[row * classes + c]));
  }
  __device__ bool ignored(int64_t row) const { return index != nullptr && index[row] == ignore_index; }
  // 0 for a row that is ignored, NaN for one whose index is out of bounds, else 1.
  __device__ Acc<T> standing(int64_t row) const {
    if (index == nullptr) return Acc<T>(1);
    if (index[row] == ignore_index) return Acc<T>(0);
    return 0 <= index[row] && index[row] < classes ? Acc<T>(1) : static_cast<Acc<T>>(NAN);
  }
};

// The thread's share of a row: f(c) for its classes.
template <class Team, class F>
__device__ void for_each_class(const Team& team, int64_t classes, const F& f) {
  for (int64_t c = team.lane(); c < classes; c += team.lanes) f(c);
}

// What a row's loss is made of, the same in all threads of the team: its maximum m, log Σ exp(z - m), and the loss.
template <class A>
struct RowLoss {
  A m, log_sum, loss;
};

template <class Team, class T>
__device__ RowLoss<Acc<T>> loss_of_row(const Team& team, const Operands<T>& of, int64_t row, bool has_row) {
  using A = Acc<T>;
  const int64_t classes = has_row ? of.classes : 0;
  A m = static_cast<A>(-INFINITY);
  for_each_class(team, classes, [&](int64_t c) { Maximum<A>::merge(m, of.z(row, c)); });
  m = team.template reduce<Maximum<A>>(m);
  A sum = A(0);
  for_each_class(team, classes, [&](int64_t c) { sum += math::exp(of.z(row, c) - m); });
  const A log_sum = std::log(team.template reduce<Total<A>>(sum));
  A term = A(0);
  if (of.index == nullptr || of.smoothing.spread != A(0)) {
    for_each_class(team, classes, [&](int64_t c) { term += loss_term(of.y(row, c), log_sum, of.z(row, c) - m); });
  } else if (has_row && team.lane() == 0 && of.standing(row) == A(1)) {
    term = loss_term(of.smoothing.kept, log_sum, of.z(row, of.index[row]) - m);
  }
  term = team.template reduce<Total<A>>(term);
  return {m, log_sum, !has_row || of.ignored(row) ? A(0) : of.standing(row) * term};
}

// δ = weight (Y p - y) of a row; or, with kHessian, the Hessian-vector product for v, and (Y p - y)·v in dweight.
template <bool kHessian, class Team, class T>
__device__ void derivative_of_row(const Team& team, const Operands<T>& of, int64_t row, bool has_row, Acc<T> lse,
                                  Acc<T> weight, const T* v, T* out, Acc<T>* dweight) {
  using A = Acc<T>;
  const int64_t classes = has_row ? of.classes : 0;
  const auto e = [&](int64_t c) { return math::exp(of.z(row, c) - lse); };
  const auto tangent = [&](int64_t c) { return kHessian ? static_cast<A>(v[row * of.classes + c]) : A(0); };
  Moments sum = {};
  for_each_class(team, classes, [&](int64_t c) {
    const double e_c = e(c), y_c = of.y(row, c), v_c = tangent(c);
    Moments::merge(sum, {e_c, e_c * v_c, y_c, y_c * v_c});
  });
  sum = team.template reduce<Moments>(sum);
  if (!has_row) return;
  const bool ignored = of.ignored(row);
  const A standing = of.standing(row), row_weight = standing * weight;
  const double p_dot_v = sum.e_dot_v / sum.e;
  const A inverse = static_cast<A>(1 / sum.e), total = static_cast<A>(sum.y);
  for_each_class(team, classes, [&](int64_t c) {
    const A e_c = e(c);
    A value;
    if (kHessian) {
      value = curvature(row_weight, total, e_c * inverse, tangent(c), p_dot_v);
    } else if (of.index != nullptr && c == of.index[row]) {
      value = delta_at_index(row_weight, e_c, sum.e, of.smoothing);
    } else {
      value = delta(row_weight, total, e_c * inverse, of.y(row, c));
    }
    out[row * of.classes + c] = static_cast<T>(ignored ? A(0) : value);
  });
  if (kHessian && team.lane() == 0) {
    dweight[row] = ignored ? A(0) : standing * static_cast<A>(sum.y * p_dot_v - sum.y_dot_v);
  }
}

template <class Team, class T>
__global__ void __launch_bounds__(kThreads) forward_rows(Team team, Operands<T> of, Acc<T>* loss, Acc<T>* lse) {
  for_each_row(team, of.rows, [&](int64_t row, bool has_row) {
    const auto found = loss_of_row(team, of, row, has_row);
    if (!has_row || team.lane() != 0) return;
    lse[row] = found.m + found.log_sum;
    loss[row] = found.loss;
  });
}

template <bool kHessian, class Team, class T>
__global__ void __launch_bounds__(kThreads) derivative_rows(Team team, Operands<T> of, const Acc<T>* lse,
                                                            const Acc<T>* weight, const T* v, T* out, Acc<T>* dweight) {
  for_each_row(team, of.rows, [&](int64_t row, bool has_row) {
    const int64_t known = has_row ? row : 0;
    derivative_of_row<kHessian>(team, of, row, has_row, lse[known], weight[known], v, out, dweight);
  });
}

// How many rows are not ignored: `of_part` has the numbers of the blocks of count_rows, or is null, and then every block of the
// head looks at the whole target itself.
struct Counted {
  static constexpr int64_t kByEveryBlock = 4096;  // up to so many rows

  bool wanted;
  const int64_t* of_part;
  int64_t parts;

  template <class T>
  __device__ Acc<T> weight(const Operands<T>& of) const {
    if (!wanted) return Acc<T>(1);
    int64_t sum = 0;
    const int64_t end = of_part != nullptr ? parts : of.rows;
    for (int64_t i = threadIdx.x; i < end; i += kThreads) sum += of_part != nullptr ? of_part[i] : !of.ignored(i);
    sum = WideTeam{}.reduce<Total<int64_t>>(sum);
    return static_cast<Acc<T>>(static_cast<double>(of.rows) / static_cast<double>(sum));
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) count_rows(Operands<T> of, int64_t* of_part) {
  int64_t sum = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x; row < of.rows; row += stride) sum += !of.ignored(row);
  sum = WideTeam{}.reduce<Total<int64_t>>(sum);
  if (threadIdx.x == 0) of_part[blockIdx.x] = sum;
}

// Loss and δ, weighted by the row's share in the mean.
template <class Team, class T>
__global__ void __launch_bounds__(kThreads) head_rows(Team team, Operands<T> of, Counted counted, Acc<T>* loss, Acc<T>* lse,
                                                      Acc<T>* weight, T* delta) {
  const Acc<T> share = counted.weight(of);
  for_each_row(team, of.rows, [&](int64_t row, bool has_row) {
    const auto found = loss_of_row(team, of, row, has_row);
    const Acc<T> row_lse = found.m + found.log_sum;
    if (has_row && team.lane() == 0) {
      lse[row] = row_lse;
      loss[row] = share * found.loss;
      weight[row] = share;
    }
    derivative_of_row<false>(team, of, row, has_row, row_lse, share, static_cast<const T*>(nullptr), delta,
                             static_cast<Acc<T>*>(nullptr));
  });
}

// Calls f(team, blocks) with the team that a row of the operands gets.
template <class F>
void with_team(const Classified& in, const F& f) {
  if (in.classes <= kNarrowRow) {
    const NarrowTeam team = narrow_team(in.classes, 1);
    f(team, blocks_for_rows(team, in.rows));
  } else {
    f(WideTeam{}, blocks_for_rows(WideTeam{}, in.rows));
  }
}

std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& logits, const Tensor& target, double label_smoothing,
                                                 int64_t ignore_index) {
  const Classified in("cross_entropy_forward", logits, target, label_smoothing, ignore_index);
  const Launch launch(in.logits);
  const Tensor loss = in.per_row(), lse = in.per_row();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_team(in, [&](auto team, unsigned blocks) {
      launch(forward_rows<decltype(team), T>, blocks, kThreads, team, Operands<T>(in), mutable_data<Acc<T>>(loss),
             mutable_data<Acc<T>>(lse));
    });
  });
  return {loss, lse};
}

Tensor cross_entropy_vjp(const Tensor& logits, const Tensor& target, const Tensor& lse, const Tensor& weight,
                         double label_smoothing, int64_t ignore_index) {
  const Classified in("cross_entropy_vjp", logits, target, label_smoothing, ignore_index);
  const Tensor lse_dense = in.check_per_row("lse", lse), weight_dense = in.check_per_row("weight", weight);
  const Launch launch(in.logits);
  const Tensor delta = in.like_logits();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    with_team(in, [&](auto team, unsigned blocks) {
      launch(derivative_rows<false, decltype(team), T>, blocks, kThreads, team, Operands<T>(in), data<A>(lse_dense),
             data<A>(weight_dense), static_cast<const T*>(nullptr), mutable_data<T>(delta), static_cast<A*>(nullptr));
    });
  });
  return delta;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_head(const Tensor& logits, const Tensor& target,
                                                              double label_smoothing, int64_t ignore_index,
                                                              bool over_counted) {
  const Classified in("cross_entropy_head", logits, target, label_smoothing, ignore_index);
  const Launch launch(in.logits);
  const Tensor loss = in.per_row(), lse = in.per_row(), weight = in.per_row(), delta = in.like_logits();
  const bool wanted = over_counted && in.indices;
  const int64_t parts = wanted && in.rows > Counted::kByEveryBlock ? grid_for(in.rows, 8 * kThreads) : 0;
  const Tensor of_part = empty_dense(in.logits, IntHeaderOnlyArrayRef(&parts, 1), ScalarType::Long);
  const Counted counted{wanted, parts > 0 ? data<int64_t>(of_part) : nullptr, parts};
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    const Operands<T> of(in);
    launch(count_rows<T>, static_cast<unsigned>(parts), kThreads, of, mutable_data<int64_t>(of_part));
    with_team(in, [&](auto team, unsigned blocks) {
      launch(head_rows<decltype(team), T>, blocks, kThreads, team, of, counted, mutable_data<A>(loss), mutable_data<A>(lse),
             mutable_data<A>(weight), mutable_data<T>(delta));
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
  const Launch launch(in.logits);
  const Tensor hv = in.like_logits(), dweight = in.per_row();
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    with_team(in, [&](auto team, unsigned blocks) {
      launch(derivative_rows<true, decltype(team), T>, blocks, kThreads, team, Operands<T>(in), data<A>(lse_dense),
             data<A>(weight_dense), data<T>(v_dense), mutable_data<T>(hv), mutable_data<A>(dweight));
    });
  });
  return {hv, dweight};
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&datagrad::cross_entropy_forward));
  m.impl("cross_entropy_head", TORCH_BOX(&datagrad::cross_entropy_head));
  m.impl("cross_entropy_vjp", TORCH_BOX(&datagrad::cross_entropy_vjp));
  m.impl("cross_entropy_hvp", TORCH_BOX(&datagrad::cross_entropy_hvp));
}
