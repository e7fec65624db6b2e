// What the ops of the penalty family take, checked and brought into one layout, for CPU and CUDA alike.
#pragma once

#include <common/dtype.h>
#include <common/layout.h>
#include <math/penalty_total.h>

#include <optional>
#include <string>
#include <vector>

namespace datagrad {

// J as rows of one sample each. The batch dimension is the slowest in both layouts, so a row is dense.
struct Samples {
  const char* op;
  Layout layout;
  Tensor J;
  int64_t rows = 0;
  int64_t inner = 1;

  Samples(const char* op, const Tensor& j, const std::string& kind) : op(op), layout(layout_of(j)), J(j) {
    const bool known = visit_norm<float>(Norms{}, kind, [](auto) {});
    DATAGRAD_CHECK(known, op, ": kind must be one of l1, l2, l2_squared, linf, got '", kind, "'");
    check_floating(op, "J", j);
    DATAGRAD_CHECK(j.dim() > 0, op, ": J must have a batch dimension, shape (N, ...), got a scalar");
    J = in_layout(j, layout);
    const auto sizes = J.sizes();
    rows = sizes[0];
    for (size_t d = 1; d < sizes.size(); ++d) inner *= sizes[d];
  }

  ScalarType wide() const { return accumulation_dtype(J.scalar_type()); }

  // One number of the accumulation dtype for every sample.
  Tensor per_sample() const { return empty_dense(J, IntHeaderOnlyArrayRef(&rows, 1), wide()); }

  Tensor check_per_sample(const char* name, const Tensor& t) const {
    check_dtype(op, name, t, wide());
    check_device(op, name, t, "J", J);
    check_shape(op, name, t, IntHeaderOnlyArrayRef(&rows, 1));
    return in_layout(t, Layout::contiguous);
  }

  // weight[row] = c share f'(norms[row]).
  template <class A>
  SeedWeight<A> seed_weight(const Tensor& c, double share, const std::string& function, double constant) const {
    check_dtype(op, "c", c, wide());
    check_device(op, "c", c, "J", J);
    check_shape(op, "c", c, IntHeaderOnlyArrayRef());
    const int number = function_number(NormFunctions{}, function);
    DATAGRAD_CHECK(number >= 0, op, ": function must be empty, centred or one_sided, got '", function, "'");
    return {nullptr, data<A>(c), static_cast<A>(share), static_cast<A>(constant), number};
  }
};

// The lists of penalty_total, one number a sample, and its results.
struct Lists {
  std::vector<Tensor> values;
  std::vector<int> functions;
  Tensor total, means;

  Lists(const std::optional<Tensor>& loss, const std::vector<Tensor>& norms, const std::vector<std::string>& names,
        size_t constants, size_t weights) {
    const char* op = "penalty_total";
    if (loss) add(op, "loss", *loss, "");
    DATAGRAD_CHECK(names.size() == norms.size() && constants == norms.size() && weights == norms.size(), op,
                   ": needs a function, a constant and a weight for every penalty, got ", names.size(), ", ", constants,
                   " and ", weights, " for ", norms.size());
    for (size_t i = 0; i < norms.size(); ++i) add(op, "norms", norms[i], names[i]);
    constexpr int kMost = PenaltyTotal<float>::kMost;
    DATAGRAD_CHECK(!values.empty() && values.size() <= kMost, op, ": takes from 1 to ", kMost, " means, got ",
                   values.size());
    const int64_t count = static_cast<int64_t>(values.size());
    total = empty_dense(values[0], IntHeaderOnlyArrayRef(), values[0].scalar_type());
    means = empty_dense(values[0], IntHeaderOnlyArrayRef(&count, 1), values[0].scalar_type());
  }

  int64_t longest() const {
    int64_t size = 0;
    for (const Tensor& list : values) size = std::max(size, list.numel());
    return size;
  }

  template <class A>
  PenaltyTotal<A> of(double loss_weight, const std::vector<double>& constants, const std::vector<double>& weights) const {
    PenaltyTotal<A> job;
    job.lists = static_cast<int>(values.size());
    const size_t first = values.size() - weights.size();  // 1 with a loss
    for (size_t i = 0; i < values.size(); ++i) {
      const bool is_loss = i < first;
      job.list[i] = {data<A>(values[i]), values[i].numel(), is_loss ? loss_weight : weights[i - first],
                     is_loss ? A(0) : static_cast<A>(constants[i - first]), functions[i]};
    }
    job.total = mutable_data<A>(total);
    job.means = mutable_data<A>(means);
    return job;
  }

 private:
  void add(const char* op, const char* name, const Tensor& t, const std::string& function) {
    const ScalarType dtype = t.scalar_type();
    DATAGRAD_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", name,
                   " must be float32 or float64, got ", text(dtype));
    if (!values.empty()) check_alike(op, name, t, "the first list", values[0]);
    DATAGRAD_CHECK(t.dim() == 1, op, ": ", name, " must have one dimension, got shape ", text(t.sizes()));
    functions.push_back(function_number(NormFunctions{}, function));
    DATAGRAD_CHECK(functions.back() >= 0, op, ": function must be empty, centred or one_sided, got '", function, "'");
    values.push_back(in_layout(t, Layout::contiguous));
  }
};

}  // namespace datagrad
