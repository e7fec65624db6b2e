// What the ops of the penalty family take, checked and brought into one layout, for CPU and CUDA alike.
#pragma once

#include <common/dtype.h>
#include <common/layout.h>
#include <math/penalty.h>

#include <string>

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
};

}  // namespace datagrad
