// Folding of a norm into the layer before it, on the CPU: ops and letters as in datagrad_ext/ops/folding.py.
#include <common/dtype.h>
#include <common/layout.h>
#include <common/parallel.h>
#include <cpu/direct_ops.h>
#include <cpu/lanes.h>

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>

namespace datagrad {
namespace {

constexpr int64_t kKept = 5;  // rows: r, s, c − μ, μ, var

void check_weight(const char* op, const Tensor& weight) {
  DATAGRAD_CHECK(weight.scalar_type() == ScalarType::Float || weight.scalar_type() == ScalarType::Double, op,
                 ": weight must be float32 or float64, got ", text(weight.scalar_type()), "; convert it first");
  DATAGRAD_CHECK(weight.dim() > 1, op, ": weight must have outputs and inputs, got shape ", text(weight.sizes()));
}

// A dense vector, or none.
std::optional<Tensor> vector_of(const char* op, const char* name, const std::optional<Tensor>& t, const Tensor& weight) {
  if (!t) return std::nullopt;
  const int64_t outputs = weight.size(0);
  check_alike(op, name, *t, "weight", weight);
  check_shape(op, name, *t, IntHeaderOnlyArrayRef(&outputs, 1));
  return in_layout(*t, Layout::contiguous);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

Tensor vector_like(const Tensor& weight) {
  const int64_t outputs = weight.size(0);
  return empty_dense(weight, IntHeaderOnlyArrayRef(&outputs, 1), weight.scalar_type());
}

// Calls f(Tag<T>{}, outputs, elements of each) in the weight's type.
template <class F>
void with_sizes(const Tensor& weight, const F& f) {
  const int64_t outputs = weight.size(0), inner = outputs == 0 ? 0 : weight.numel() / outputs;
  if (weight.scalar_type() == ScalarType::Float) {
    f(Tag<float>{}, outputs, inner);
  } else {
    f(Tag<double>{}, outputs, inner);
  }
}

// Calls f(output) for all outputs.
template <class F>
void for_each_output(int64_t outputs, int64_t inner, const F& f) {
  parallel_for(outputs, kSerialElements / std::max<int64_t>(1, inner) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) f(o);
  });
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  using L = small::Lanes<T>;
  typename L::Vector sums = {};
  int64_t k = 0;
  for (; k + L::kCount <= n; k += L::kCount) sums += L::load(a + k) * L::load(b + k);
  T sum = 0;
  for (int64_t i = 0; i < L::kCount; ++i) sum += sums[i];
  for (; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

Tensors fold_norm(const Tensor& weight, std::optional<Tensor> bias, const Tensor& mean, const Tensor& var,
                              std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, double eps) {
  const char* op = "fold_norm";
  check_weight(op, weight);
  const auto c = vector_of(op, "bias", bias, weight), mu = vector_of(op, "mean", mean, weight),
             variance = vector_of(op, "var", var, weight), w = vector_of(op, "norm_weight", norm_weight, weight),
             b = vector_of(op, "norm_bias", norm_bias, weight);
  const Layout layout = layout_of(weight);
  const Tensor dense = in_layout(weight, layout);
  const Tensor folded = empty_dense(weight, weight.sizes(), weight.scalar_type(), layout), moved = vector_like(weight);
  const int64_t kept_shape[] = {kKept, weight.size(0)};
  const Tensor kept = empty_dense(weight, IntHeaderOnlyArrayRef(kept_shape, 2), weight.scalar_type());
  with_sizes(weight, [&](auto tag, int64_t outputs, int64_t inner) {
    using T = typename decltype(tag)::type;
    const T *own = data<T>(dense), *of_layer = data_or_null<T>(c), *scale = data_or_null<T>(w), *offset = data_or_null<T>(b);
    const T *means = data<T>(*mu), *variances = data<T>(*variance);
    T *target = mutable_data<T>(folded), *target_bias = mutable_data<T>(moved), *rows = mutable_data<T>(kept);
    for_each_output(outputs, inner, [&](int64_t o) {
      const T r = T(1) / std::sqrt(variances[o] + static_cast<T>(eps)), s = scale == nullptr ? r : scale[o] * r;
      const T shift = (of_layer == nullptr ? T(0) : of_layer[o]) - means[o];
      target_bias[o] = offset == nullptr ? s * shift : s * shift + offset[o];
      const T column[kKept] = {r, s, shift, means[o], variances[o]};
      for (int64_t k = 0; k < kKept; ++k) rows[k * outputs + o] = column[k];
      for (int64_t k = o * inner; k < (o + 1) * inner; ++k) target[k] = own[k] * s;
    });
  });
  return {folded, moved, kept};
}

Tensors unfold_norm(const Tensor& weight_bar, std::optional<Tensor> bias_bar, const Tensor& weight,
                                const Tensor& kept) {
  const char* op = "unfold_norm";
  check_weight(op, weight);
  const int64_t kept_shape[] = {kKept, weight.size(0)};
  check_alike(op, "weight_bar", weight_bar, "weight", weight);
  check_shape(op, "weight_bar", weight_bar, weight.sizes());
  const auto of_bias = vector_of(op, "bias_bar", bias_bar, weight);
  check_alike(op, "kept", kept, "weight", weight);
  check_shape(op, "kept", kept, IntHeaderOnlyArrayRef(kept_shape, 2));
  const Layout layout = layout_of(weight);
  const Tensor dense = in_layout(weight, layout), dense_bar = in_layout(weight_bar, layout);
  const Tensor dense_kept = in_layout(kept, Layout::contiguous);
  std::vector<Tensor> found = {empty_dense(weight, weight.sizes(), weight.scalar_type(), layout), vector_like(weight)};
  if (bias_bar) found.push_back(vector_like(weight));
  with_sizes(weight, [&](auto tag, int64_t outputs, int64_t inner) {
    using T = typename decltype(tag)::type;
    const T *own = data<T>(dense), *bar = data<T>(dense_bar), *b_bar = data_or_null<T>(of_bias);
    const T *r = data<T>(dense_kept), *s = r + outputs, *shift = s + outputs;
    T *target = mutable_data<T>(found[0]), *scale_bar = mutable_data<T>(found[1]);
    T* own_bias_bar = b_bar == nullptr ? nullptr : mutable_data<T>(found[2]);
    for_each_output(outputs, inner, [&](int64_t o) {
      const T *row = own + o * inner, *row_bar = bar + o * inner;
      T s_bar = dot(row, row_bar, inner);
      if (b_bar != nullptr) {
        s_bar += shift[o] * b_bar[o];
        own_bias_bar[o] = s[o] * b_bar[o];
      }
      scale_bar[o] = r[o] * s_bar;
      for (int64_t k = 0; k < inner; ++k) target[o * inner + k] = row_bar[k] * s[o];
    });
  });
  return found;
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("fold_norm", TORCH_BOX(&datagrad::fold_norm));
  m.impl("unfold_norm", TORCH_BOX(&datagrad::unfold_norm));
}
