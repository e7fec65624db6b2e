// Norms of a row as functors, for float and double, on host and device: how a row is summed, and the direction ∂R/∂x of an
// element. No torch header. A reduction has a Sum (zero-initialised), add() for an element, merge() for two parts of a row and
// value() for the result; names and formulas are those of datagrad_ext/ops/penalty.py.
#pragma once

#include <math/scalar.h>

#include <string_view>
#include <type_traits>

namespace datagrad {

// -1, 0 or 1; 0 for NaN, as in torch.
template <class A>
DATAGRAD_HD A sign(A x) {
  return static_cast<A>(int(x > A(0)) - int(x < A(0)));
}

// Σ x² in double that neither overflows nor underflows: large and small elements are scaled by powers of two and summed apart
// (Blue, A portable Fortran program to find the Euclidean norm of a vector, 1978; constants as in LAPACK's dnrm2).
struct ScaledSquares {
  static constexpr double kSmall = 0x1p-511, kLarge = 0x1p486, kUp = 0x1p537, kDown = 0x1p-538;
  double small, medium, large;

  DATAGRAD_HD void add(double x) {
    const double a = std::fabs(x);
    if (a > kLarge) {
      large += (a * kDown) * (a * kDown);
    } else if (a < kSmall) {
      small += (a * kUp) * (a * kUp);
    } else {
      medium += a * a;  // NaN, too
    }
  }
  DATAGRAD_HD void merge(const ScaledSquares& other) {
    small += other.small;
    medium += other.medium;
    large += other.large;
  }
  DATAGRAD_HD double root() const {
    if (large > 0) return std::sqrt(large + (medium * kDown) * kDown) / kDown;
    const double rest = std::sqrt(small) / kUp;
    return medium == 0 ? rest : std::sqrt(medium + rest * rest);
  }
};

// Σ x² of float and narrower: double has the range.
struct PlainSquares {
  double sum;

  DATAGRAD_HD void add(double x) { sum += x * x; }
  DATAGRAD_HD void merge(const PlainSquares& other) { sum += other.sum; }
  DATAGRAD_HD double root() const { return std::sqrt(sum); }
};

template <class A>
struct L1 {
  static constexpr const char* name = "l1";
  using Sum = double;

  DATAGRAD_HD void add(Sum& sum, A x) const { sum += std::fabs(static_cast<double>(x)); }
  DATAGRAD_HD static void merge(Sum& sum, Sum other) { sum += other; }
  DATAGRAD_HD static A value(Sum sum) { return static_cast<A>(sum); }
  DATAGRAD_HD static A direction(A x, A /*value*/, A /*share*/) { return sign(x); }
};

template <class A>
struct L2 {
  static constexpr const char* name = "l2";
  using Sum = std::conditional_t<std::is_same_v<A, double>, ScaledSquares, PlainSquares>;

  DATAGRAD_HD void add(Sum& sum, A x) const { sum.add(x); }
  DATAGRAD_HD static void merge(Sum& sum, const Sum& other) { sum.merge(other); }
  DATAGRAD_HD static A value(const Sum& sum) { return static_cast<A>(sum.root()); }
  DATAGRAD_HD static A direction(A x, A value, A /*share*/) { return value == A(0) ? A(0) : x / value; }
};

template <class A>
struct L2Squared {
  static constexpr const char* name = "l2_squared";
  using Sum = double;

  DATAGRAD_HD void add(Sum& sum, A x) const { sum += static_cast<double>(x) * static_cast<double>(x); }
  DATAGRAD_HD static void merge(Sum& sum, Sum other) { sum += other; }
  DATAGRAD_HD static A value(Sum sum) { return static_cast<A>(sum); }
  DATAGRAD_HD static A direction(A x, A /*value*/, A /*share*/) { return A(2) * x; }
};

template <class A>
struct Linf {
  static constexpr const char* name = "linf";
  // The bits of |x|, which are ordered as integers, with NaN above infinity: a maximum that NaN passes, without a branch.
  using Sum = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

  DATAGRAD_HD void add(Sum& sum, A x) const {
    x = std::fabs(x);
    Sum bits;
    std::memcpy(&bits, &x, sizeof bits);
    merge(sum, bits);
  }
  DATAGRAD_HD static void merge(Sum& sum, Sum other) { sum = other > sum ? other : sum; }
  DATAGRAD_HD static A value(Sum sum) {
    A largest;
    std::memcpy(&largest, &sum, sizeof largest);
    return largest;
  }
  // share = 1 / the number of entries with |x| = value; infinite, so that 0 * share is NaN, where the value is NaN.
  DATAGRAD_HD static A direction(A x, A value, A share) {
    return (std::fabs(x) == value ? sign(x) : A(0)) * share;
  }
};

// The share of one of the entries with |x| = largest.
template <class A>
struct Share {
  using Sum = double;
  A largest;

  DATAGRAD_HD void add(Sum& sum, A x) const { sum += std::fabs(x) == largest ? 1.0 : 0.0; }
  DATAGRAD_HD static void merge(Sum& sum, Sum other) { sum += other; }
  DATAGRAD_HD static A value(Sum sum) { return A(1) / static_cast<A>(sum); }
};

// Which reduction a row gets: the same for all rows, or one that knows the row's largest entry.
template <class Norm>
struct EveryRow {
  DATAGRAD_HD Norm operator()(int64_t /*row*/) const { return {}; }
};

template <class A>
struct ShareOfRow {
  const A* largest;
  DATAGRAD_HD Share<A> operator()(int64_t row) const { return {largest[row]}; }
};

template <class Norm>
inline constexpr bool kHasTies = false;
template <class A>
inline constexpr bool kHasTies<Linf<A>> = true;

// R = f(‖x‖): f and its derivative. NaN passes.
template <class A>
struct Identity {
  static constexpr const char* name = "";
  DATAGRAD_HD static A value(A norm, A /*c*/) { return norm; }
  DATAGRAD_HD static A first(A /*norm*/, A /*c*/) { return A(1); }
};

template <class A>
struct Centred {
  static constexpr const char* name = "centred";
  DATAGRAD_HD static A value(A norm, A c) { return (norm - c) * (norm - c); }
  DATAGRAD_HD static A first(A norm, A c) { return A(2) * (norm - c); }
};

template <class A>
struct OneSided {
  static constexpr const char* name = "one_sided";
  DATAGRAD_HD static A excess(A norm, A c) { return norm < c ? A(0) : norm - c; }
  DATAGRAD_HD static A value(A norm, A c) { return excess(norm, c) * excess(norm, c); }
  DATAGRAD_HD static A first(A norm, A c) { return A(2) * excess(norm, c); }
};

template <template <class> class... Rows>
struct NormRows {};

using Norms = NormRows<L1, L2, L2Squared, Linf>;
using NormFunctions = NormRows<Identity, Centred, OneSided>;

// Calls visit(row) with the norm or function that `kind` names, if there is one; says whether there is.
template <class A, class Visit, template <class> class... Rows>
bool visit_norm(NormRows<Rows...>, std::string_view kind, const Visit& visit) {
  const auto try_row = [&](auto row) {
    if (kind != decltype(row)::name) return false;
    visit(row);
    return true;
  };
  return (try_row(Rows<A>{}) || ...);
}

}  // namespace datagrad
