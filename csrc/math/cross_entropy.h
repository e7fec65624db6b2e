// Cross-entropy of one row of logits as functors, for float and double, on host and device. No torch header. Letters and
// formulas are those of datagrad_ext/ops/cross_entropy.py: z logits, p softmax, y target distribution, total = Σ y.
#pragma once

#include <math/scalar.h>

namespace datagrad {

// y = (1 - s) target + s / C.
template <class A>
struct Smoothing {
  A kept, spread;

  DATAGRAD_HD Smoothing(double s, int64_t classes)
      : kept(static_cast<A>(1 - s)), spread(static_cast<A>(s / static_cast<double>(classes))) {}
  DATAGRAD_HD A operator()(A target) const { return kept * target + spread; }
};

// One class of the loss, log_sum = log Σ exp(z - m) and shifted = z - m with the row's maximum m. Not for classes that a class
// index gives y = 0: one that is ruled out (logit -inf) must not make the loss NaN.
template <class A>
DATAGRAD_HD A loss_term(A y, A log_sum, A shifted) {
  return y * (log_sum - shifted);
}

// One element of the gradient with respect to the logits.
template <class A>
DATAGRAD_HD A delta(A weight, A total, A p, A y) {
  return weight * (total * p - y);
}

// One element of the Hessian-vector product.
template <class A>
DATAGRAD_HD A curvature(A weight, A total, A p, A v, A p_dot_v) {
  return weight * total * p * (v - p_dot_v);
}

}  // namespace datagrad
