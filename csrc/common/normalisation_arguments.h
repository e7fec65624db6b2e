// What the ops of the normalisation family take, checked and brought into one layout, for CPU and CUDA alike.
#pragma once

#include <common/dtype.h>
#include <common/layout.h>
#include <math/normalisation.h>

#include <optional>
#include <vector>

namespace datagrad {

struct Normalised {
  const char* op;
  Tensor x;
  Layout layout;
  Sets sets;
  std::vector<int64_t> statistics_shape;

  Normalised(const char* op, const Tensor& input, int64_t groups) : op(op), x(input), layout(layout_of(input)) {
    check_floating(op, "x", input);
    const auto sizes = input.sizes();
    DATAGRAD_CHECK(sizes.size() >= 2, op, ": x must have shape (N, C, …), got ", text(sizes));
    sets.n = sizes[0], sets.c = sizes[1], sets.groups = groups;
    for (size_t d = 2; d < sizes.size(); ++d) sets.size *= sizes[d];
    DATAGRAD_CHECK(groups >= 0 && (groups == 0 || sets.c % groups == 0), op,
                   ": groups must be 0 (statistics over the batch) or divide C = ", sets.c, ", got ", groups);
    sets.channels_fastest = layout == Layout::channels_last || sets.size == 1;
    if (groups == 0) {
      statistics_shape = {sets.c};
    } else {
      statistics_shape = {sets.n, groups};
    }
    x = in_layout(input, layout);
  }

  ScalarType wide() const { return accumulation_dtype(x.scalar_type()); }

  Tensor empty() const { return empty_dense(x, x.sizes(), x.scalar_type(), layout); }
  Tensor empty_statistics() const { return empty_dense(x, statistics_shape, wide()); }

  // A place for one number a channel; for none if they are not `wanted`.
  Tensor empty_channels(bool wanted) const {
    const int64_t channels = wanted ? sets.c : 0;
    return empty_dense(x, IntHeaderOnlyArrayRef(&channels, 1), wide());
  }

  // A tensor like x, brought into x's layout.
  Tensor like_x(const char* name, const Tensor& t) const {
    check_alike(op, name, t, "x", x);
    check_shape(op, name, t, x.sizes());
    return in_layout(t, layout);
  }

  Tensor statistic(const char* name, const Tensor& t) const {
    DATAGRAD_CHECK(t.scalar_type() == wide() && same_device(t, x), op, ": ", name, " must be ", text(wide()),
                   " on x's device ", device_text(x), ", got ", text(t.scalar_type()), " on ", device_text(t));
    check_shape(op, name, t, statistics_shape);
    return in_layout(t, Layout::contiguous);
  }

  void check_channels(const char* name, const Tensor& t) const {
    if (t.scalar_type() != wide()) check_alike(op, name, t, "x", x);
    check_device(op, name, t, "x", x);
    check_shape(op, name, t, IntHeaderOnlyArrayRef(&sets.c, 1));
  }

  // One number a channel in the accumulation dtype, or none.
  std::optional<Tensor> channels(const char* name, const std::optional<Tensor>& t) const {
    if (!t.has_value()) return std::nullopt;
    check_channels(name, *t);
    const Tensor wide_t = t->scalar_type() == wide() ? *t : torch::stable::to(*t, wide());
    return in_layout(wide_t, Layout::contiguous);
  }
};

// A running statistic, in x's dtype or the accumulation dtype: what a kernel updates, and the user's own if that is not dense.
class Running {
 public:
  Running(const Normalised& in, const char* name, const std::optional<Tensor>& t) {
    if (!t.has_value()) return;
    in.check_channels(name, *t);
    if (!t->is_contiguous()) target_ = *t;
    values = in_layout(*t, Layout::contiguous);
  }

  void write_back() {
    if (target_.has_value()) torch::stable::copy_(*target_, *values);
  }

  std::optional<Tensor> values;

 private:
  std::optional<Tensor> target_;
};

// The point at which a normalisation is linearised.
struct Linearised {
  Normalised in;
  Tensor mean, rstd;
  std::optional<Tensor> weight;

  Linearised(const char* op, const Tensor& x, const Tensor& mean_, const Tensor& rstd_,
             const std::optional<Tensor>& weight_, int64_t groups)
      : in(op, x, groups),
        mean(in.statistic("mean", mean_)),
        rstd(in.statistic("rstd", rstd_)),
        weight(in.channels("weight", weight_)) {}
};

// The mask of a rectifier behind the norm.
struct Rectified {
  std::optional<Tensor> bits;
  double slope = 0;

  Rectified() = default;
  Rectified(const Normalised& in, const std::optional<Tensor>& b, double s) : slope(s) {
    if (!b.has_value()) return;
    check_dtype(in.op, "bits", *b, ScalarType::Byte);
    check_device(in.op, "bits", *b, "x", in.x);
    const int64_t bytes = (in.x.numel() + 7) / 8;
    check_shape(in.op, "bits", *b, IntHeaderOnlyArrayRef(&bytes, 1));
    bits = in_layout(*b, Layout::contiguous);
  }
};

// What a result is made of besides x: a cotangent (or, with the weight outside, a tangent), and pairs (t, delta). Cotangents
// are gated as they are read.
struct Terms {
  std::optional<Tensor> single;
  std::vector<Tensor> tangents, cotangents;
  Rectified rectified;
};

// The family's kernels, for CPU or CUDA, written into tensors that are there already. `outer`: the weight is applied last.
void normalise_forward_into(const Normalised& in, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                            const Running& running_mean, const Running& running_var, double momentum, double eps,
                            const Tensor& y, const Tensor& mean, const Tensor& rstd);
void normalise_map_into(const Linearised& at, const Terms& terms, bool outer, const Tensor* out,
                        const Tensor* weight_grad, const Tensor* bias_grad);

}  // namespace datagrad
