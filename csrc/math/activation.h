// Activations as functors: f, f' (first) and f'' (second) of z, for float and double, on host and device. No torch header.
// The smooth ones are the rows of `Activations`; name and constants are those of datagrad_ext/ops/activation.py.
#pragma once

#include <math/scalar.h>

#include <string_view>
#include <type_traits>

namespace datagrad {

// ReLU (slope 0) and LeakyReLU: the bit says which piece an element is on. A NaN passes.
template <class T>
struct Rectifier {
  T slope;

  DATAGRAD_MATH bool bit(T z) const { return slope == T(0) ? !(z <= T(0)) : z > T(0); }
  DATAGRAD_MATH T gate(bool bit, T g) const { return bit ? g : slope == T(0) ? T(0) : slope * g; }
};

template <class T>
struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr int constants = 2;
  T beta, threshold, inverse;

  DATAGRAD_MATH explicit Softplus(const double* c) : beta(T(c[0])), threshold(T(c[1])), inverse(T(1 / c[0])) {}
  DATAGRAD_MATH T f(T z) const { return math::select(beta * z > threshold, z, math::softplus(beta * z) * inverse); }
  DATAGRAD_MATH T first(T z) const { return math::select(beta * z > threshold, T(1), math::Logistic<T>(beta * z).value); }
  DATAGRAD_MATH T second(T z) const {
    return math::select(beta * z >= threshold, T(0), beta * math::Logistic<T>(beta * z).slope);
  }
};

template <class T>
struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr int constants = 0;

  DATAGRAD_MATH explicit Tanh(const double*) {}
  DATAGRAD_MATH T f(T z) const { return math::tanh(z); }
  DATAGRAD_MATH T first(T z) const { return T(4) * math::Logistic<T>(T(2) * z).slope; }
  DATAGRAD_MATH T second(T z) const {
    const math::Logistic<T> s(T(2) * z);
    return T(8) * s.slope * (s.complement - s.value);
  }
};

template <class T>
struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr int constants = 0;

  DATAGRAD_MATH explicit Sigmoid(const double*) {}
  DATAGRAD_MATH T f(T z) const { return math::Logistic<T>(z).value; }
  DATAGRAD_MATH T first(T z) const { return math::Logistic<T>(z).slope; }
  DATAGRAD_MATH T second(T z) const {
    const math::Logistic<T> s(z);
    return s.slope * (s.complement - s.value);
  }
};

template <class T>
struct Elu {
  static constexpr const char* name = "elu";
  static constexpr int constants = 1;
  T alpha;

  DATAGRAD_MATH explicit Elu(const double* c) : alpha(T(c[0])) {}
  // exp(z) of z <= 0 is written exp(-|z|), which stays finite where it is not taken.
  DATAGRAD_MATH T f(T z) const { return math::select(z <= T(0), alpha * math::expm1_nonpositive(-math::abs(z)), z); }
  DATAGRAD_MATH T first(T z) const { return math::select(z > T(0), T(1), alpha * math::exp(-math::abs(z))); }
  DATAGRAD_MATH T second(T z) const { return math::select(z >= T(0), T(0), alpha * math::exp(-math::abs(z))); }
};

template <class T>
struct Silu {
  static constexpr const char* name = "silu";
  static constexpr int constants = 0;

  DATAGRAD_MATH explicit Silu(const double*) {}
  DATAGRAD_MATH T f(T z) const { return z * math::Logistic<T>(z).value; }
  DATAGRAD_MATH T first(T z) const {
    const math::Logistic<T> s(z);
    return s.value * (T(1) + z * s.complement);
  }
  DATAGRAD_MATH T second(T z) const {
    const math::Logistic<T> s(z);
    return s.slope * (T(2) + z * (s.complement - s.value));
  }
};

template <class T>
struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr int constants = 0;

  DATAGRAD_MATH explicit Gelu(const double*) {}
  DATAGRAD_MATH T f(T z) const { return z * math::Normal<T>(z).distribution; }
  DATAGRAD_MATH T first(T z) const {
    const math::Normal<T> normal(z);
    return normal.distribution + z * normal.density;
  }
  DATAGRAD_MATH T second(T z) const {
    z = math::clamp(z, T(1e4));  // the density is 0 beyond, and must not meet an infinite square
    return (T(2) - z * z) * math::Normal<T>(z).density;
  }
};

// z (1 + tanh(u)) / 2 = z σ(2u) with u = sqrt(2 / pi) (z + 0.044715 z^3).
template <class T>
struct GeluTanh {
  static constexpr const char* name = "gelu_tanh";
  static constexpr int constants = 0;
  static constexpr T k = T(1.59576912160573071176);  // 2 sqrt(2 / pi)
  static constexpr T a = T(0.044715);

  DATAGRAD_MATH explicit GeluTanh(const double*) {}
  DATAGRAD_MATH static T inner(T z) { return k * (z + a * z * z * z); }
  DATAGRAD_MATH static T inner_slope(T z) { return k * (T(1) + T(3) * a * z * z); }
  DATAGRAD_MATH T f(T z) const { return z * math::Logistic<T>(inner(z)).value; }
  DATAGRAD_MATH T first(T z) const {
    z = math::clamp(z, T(50));  // σ is 0 or 1 beyond, and must not meet an infinite power
    const math::Logistic<T> s(inner(z));
    return s.value + z * s.slope * inner_slope(z);
  }
  DATAGRAD_MATH T second(T z) const {
    z = math::clamp(z, T(50));
    const math::Logistic<T> s(inner(z));
    const T w = inner_slope(z);
    return s.slope * (T(2) * w + T(6) * k * a * z * z + z * w * w * (s.complement - s.value));
  }
};

// The activation that `kind` names, for dispatch_activation: one row each.
template <template <class> class... Rows>
struct ActivationRows {};

using Activations = ActivationRows<Softplus, Tanh, Sigmoid, Elu, Silu, Gelu, GeluTanh>;

// Calls visit(row) with a row of element type T, not yet constructed, if `kind` names one; says whether it did.
template <class T, class Visit, template <class> class... Rows>
bool visit_activation(ActivationRows<Rows...>, std::string_view kind, const Visit& visit) {
  const auto try_row = [&](auto* row) {
    using Row = std::remove_pointer_t<decltype(row)>;
    if (kind != Row::name) return false;
    visit(row);
    return true;
  };
  return (try_row(static_cast<Rows<T>*>(nullptr)) || ...);
}

}  // namespace datagrad
