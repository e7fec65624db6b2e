// What the ops of the cross-entropy family take, checked and made contiguous, for CPU and CUDA alike.
#pragma once

#include <common/dtype.h>
#include <common/layout.h>

namespace datagrad {

// Logits and their target, row by row.
struct Classified {
  const char* op;
  bool indices;  // class indices; else probabilities
  Tensor logits, target;
  int64_t rows, classes;
  double label_smoothing;
  int64_t ignore_index;

  Classified(const char* op, const Tensor& logits_in, const Tensor& target_in, double label_smoothing, int64_t ignore_index)
      : op(op),
        indices(target_in.scalar_type() == ScalarType::Long),
        logits(logits_in),
        target(target_in),
        label_smoothing(label_smoothing),
        ignore_index(ignore_index) {
    check_floating(op, "logits", logits);
    DATAGRAD_CHECK(logits.dim() == 2 && logits.size(1) > 0, op,
                   ": logits must have shape [N, C] with at least one class, got ", text(logits.sizes()));
    DATAGRAD_CHECK(0 <= label_smoothing && label_smoothing <= 1, op, ": label_smoothing must be from 0 to 1, got ",
                   label_smoothing);
    DATAGRAD_CHECK(indices || target.scalar_type() == logits.scalar_type(), op,
                   ": target must be int64 class indices or probabilities of the logits' dtype ",
                   text(logits.scalar_type()), ", got ", text(target.scalar_type()));
    check_device(op, "target", target, "logits", logits);
    rows = logits.size(0);
    classes = logits.size(1);
    const int64_t shape[] = {rows, classes};
    check_shape(op, "target", target, IntHeaderOnlyArrayRef(shape, indices ? 1 : 2));
    logits = in_layout(logits, Layout::contiguous);
    target = in_layout(target, Layout::contiguous);
  }

  ScalarType wide() const { return accumulation_dtype(logits.scalar_type()); }

  // One number of the accumulation dtype for every row.
  Tensor per_row() const { return empty_dense(logits, IntHeaderOnlyArrayRef(&rows, 1), wide()); }
  Tensor like_logits() const { return empty_dense(logits, logits.sizes(), logits.scalar_type()); }

  Tensor check_per_row(const char* name, const Tensor& t) const {
    check_dtype(op, name, t, wide());
    check_device(op, name, t, "logits", logits);
    check_shape(op, name, t, IntHeaderOnlyArrayRef(&rows, 1));
    return in_layout(t, Layout::contiguous);
  }

  Tensor check_like_logits(const char* name, const Tensor& t) const {
    check_alike(op, name, t, "logits", logits);
    check_shape(op, name, t, logits.sizes());
    return in_layout(t, Layout::contiguous);
  }
};

}  // namespace datagrad
