// Cross-entropy of one row of logits as functors, for float and double, on host and device. No torch header. Letters and
// formulas are those of datagrad_ext/ops/cross_entropy.py: z logits, p softmax, y target distribution, total = Σ y.
#pragma once

#include <math/scalar.h>

namespace datagrad {

// y = (1 - s) target + s / C.
template <class A>
struct Smoothing {
  A kept, spread;
  A missing;  // 1 - y at the class index, not from the rounded y

  DATAGRAD_HD Smoothing(double s, int64_t classes)
      : kept(static_cast<A>(1 - s)),
        spread(static_cast<A>(s / static_cast<double>(classes))),
        missing(static_cast<A>(s - s / static_cast<double>(classes))) {}
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

// The gradient at the class index of the row, where p - y may cancel: with e the exponential that went into the sum,
// e - sum is minus the sum of the others, to the last bit in double.
template <class A>
DATAGRAD_HD A delta_at_index(A weight, A e, double sum, const Smoothing<A>& smoothing) {
  const double p_minus_one = (static_cast<double>(e) - sum) / sum;
  return weight * static_cast<A>(p_minus_one + static_cast<double>(smoothing.missing));
}

// One element of the Hessian-vector product. v - p·v cancels where p is near 1: it is taken in double.
template <class A>
DATAGRAD_HD A curvature(A weight, A total, A p, A v, double p_dot_v) {
  return weight * total * p * static_cast<A>(static_cast<double>(v) - p_dot_v);
}

}  // namespace datagrad
