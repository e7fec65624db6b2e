// The loops over a run of elements that depend on the smooth activation, once per activation and arithmetic type.
#pragma once

#include <common/activation_arguments.h>

#include <algorithm>
#include <memory>

namespace datagrad {
namespace {

using math::detail::normal_or_zero;

template <class A>
struct Loops {
  virtual ~Loops() = default;
  // out = f(z); here and below a subnormal result is 0, or the products that read it would crawl
  virtual void value(const A* z, A* out, int64_t n) const = 0;
  // out = f'(z) zeta + f''(z) products, where a missing operand (nullptr) is a missing term
  virtual void combine(const A* z, const A* zeta, const A* products, A* out, int64_t n) const = 0;
};

template <class A, class Activation>
class LoopsOf final : public Loops<A> {
 public:
  explicit LoopsOf(const Activation& activation) : activation_(activation) {}

  void value(const A* z, A* out, int64_t n) const override {
    const Activation a = activation_;  // a copy that `out` cannot alias
    for (int64_t k = 0; k < n; ++k) out[k] = normal_or_zero(a.f(z[k]));
  }

  void combine(const A* z, const A* zeta, const A* products, A* out, int64_t n) const override {
    const Activation a = activation_;
    if (zeta != nullptr && products != nullptr) {
      for (int64_t k = 0; k < n; ++k) out[k] = normal_or_zero(a.first(z[k]) * zeta[k] + a.second(z[k]) * products[k]);
    } else if (zeta != nullptr) {
      for (int64_t k = 0; k < n; ++k) out[k] = normal_or_zero(a.first(z[k]) * zeta[k]);
    } else if (products != nullptr) {
      for (int64_t k = 0; k < n; ++k) out[k] = normal_or_zero(a.second(z[k]) * products[k]);
    } else {
      std::fill(out, out + n, A(0));
    }
  }

 private:
  Activation activation_;
};

template <class A>
std::unique_ptr<const Loops<A>> loops_of(const char* op, const std::string& kind, const std::vector<double>& constants) {
  std::unique_ptr<const Loops<A>> loops;
  dispatch_activation<A>(op, kind, constants, [&](const auto& activation) {
    loops = std::make_unique<LoopsOf<A, std::decay_t<decltype(activation)>>>(activation);
  });
  return loops;
}

}  // namespace
}  // namespace datagrad
