// Penalties R = f(‖J‖) on the CPU, some rows of J at a time: Σ of their values and the seed v = Σ weight ∂R/∂J.
#pragma once

#include <common/check.h>
#include <cpu/penalty_rows.h>

#include <memory>
#include <string>
#include <vector>

namespace datagrad {
namespace {

template <class T>
struct Penalty {
  virtual ~Penalty() = default;
  // Σ of the values of `rows` rows; the seed into v, added to what is there with `more`; none if v is null.
  virtual double add(const T* J, int64_t rows, int64_t inner, T weight, T* v, bool more) const = 0;
};

template <class T, class Norm, class Function>
class PenaltyOf final : public Penalty<T> {
 public:
  explicit PenaltyOf(double constant) : constant_(static_cast<T>(constant)) {}

  double add(const T* J, int64_t rows, int64_t inner, T weight, T* v, bool more) const override {
    double total = 0;
    std::vector<T> seed(more ? inner : 0);
    for (int64_t row = 0; row < rows; ++row, J += inner) {
      const T norm = Norm::value(reduce_chunk(Norm{}, J, inner));
      total += static_cast<double>(Function::value(norm, constant_));
      if (v == nullptr) continue;
      T share = T(0);
      if constexpr (kHasTies<Norm>) share = Share<T>::value(reduce_chunk(Share<T>{norm}, J, inner));
      T* out = more ? seed.data() : v;
      seed_chunk<Norm>(J, norm, weight * Function::first(norm, constant_), share, out, inner);
      for (int64_t k = 0; more && k < inner; ++k) v[k] += seed[k];
      v += inner;
    }
    return total;
  }

 private:
  T constant_;
};

// The penalties that a text names, words "norm" or "norm:function", with a constant each.
template <class T>
std::vector<std::unique_ptr<const Penalty<T>>> penalties_of(const char* op, const std::string& text,
                                                            const std::vector<double>& constants) {
  std::vector<std::unique_ptr<const Penalty<T>>> found;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string_view word = std::string_view(text).substr(begin, end - begin);
    const size_t colon = std::min(word.find(':'), word.size());
    const std::string_view function = colon == word.size() ? "" : word.substr(colon + 1);
    DATAGRAD_CHECK(found.size() < constants.size(), op, ": needs a constant for every penalty, got ", constants.size());
    bool known = false;
    visit_norm<T>(Norms{}, word.substr(0, colon), [&](auto norm) {
      known = visit_norm<T>(NormFunctions{}, function, [&](auto f) {
        found.push_back(std::make_unique<PenaltyOf<T, decltype(norm), decltype(f)>>(constants[found.size()]));
      });
    });
    DATAGRAD_CHECK(known, op, ": a penalty must be l1, l2, l2_squared or linf, with :centred or :one_sided or nothing, got '",
                   word, "'");
    begin = end + 1;
  }
  return found;
}

}  // namespace
}  // namespace datagrad
