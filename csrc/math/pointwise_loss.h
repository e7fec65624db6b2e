// Losses of one output y and its target t, with two derivatives by y, for float and double, on host and device. No torch header.
// Names and formulas are those of datagrad_ext/ops/_heads.py.
#pragma once

#include <math/penalty.h>
#include <math/scalar.h>

namespace datagrad {

template <class A>
struct SquaredError {
  static constexpr const char* name = "squared";
  static constexpr bool curved = true;
  DATAGRAD_HD static A value(A y, A t) { return (y - t) * (y - t); }
  DATAGRAD_HD static A first(A y, A t) { return A(2) * (y - t); }
  DATAGRAD_HD static A second(A /*y*/, A /*t*/) { return A(2); }
};

template <class A>
struct AbsoluteError {
  static constexpr const char* name = "absolute";
  static constexpr bool curved = false;
  DATAGRAD_HD static A value(A y, A t) { return std::fabs(y - t); }
  DATAGRAD_HD static A first(A y, A t) { return sign(y - t); }
  DATAGRAD_HD static A second(A /*y*/, A /*t*/) { return A(0); }
};

// Binary cross-entropy of the logit y: log(1 + exp y) - t y.
template <class A>
struct Logistic {
  static constexpr const char* name = "logistic";
  static constexpr bool curved = true;
  DATAGRAD_HD static A value(A y, A t) { return (y > A(0) ? y : A(0)) - t * y + std::log1p(std::exp(-std::fabs(y))); }
  DATAGRAD_HD static A sigmoid(A y) { return A(1) / (A(1) + std::exp(-y)); }
  DATAGRAD_HD static A first(A y, A t) { return sigmoid(y) - t; }
  DATAGRAD_HD static A second(A y, A /*t*/) { return sigmoid(y) * sigmoid(-y); }
};

template <template <class> class... Rows>
struct PointwiseRows {};

using PointwiseLosses = PointwiseRows<SquaredError, AbsoluteError, Logistic>;

// Calls visit(row) with the loss that `name` names, if there is one; says whether there is.
template <class A, class Visit, template <class> class... Rows>
bool visit_pointwise(PointwiseRows<Rows...>, std::string_view name, const Visit& visit) {
  const auto try_row = [&](auto row) {
    if (name != decltype(row)::name) return false;
    visit(row);
    return true;
  };
  return (try_row(Rows<A>{}) || ...);
}

}  // namespace datagrad
