// Products with cuBLASLt's epilogues, element by element on the host. Interface of csrc/cuda/cublas_lt.h.
#pragma once

#include <common/dtype.h>
#include <cuda/lt_product.h>

#include <vector>

namespace datagrad {
namespace lt {

constexpr int64_t kWorkspace = 16;  // bytes

class Products {
 public:
  static Products get() { return {}; }

  void run(const Product& p, int, void*, void*) const {
    p.type == kFloat ? run<float>(p) : p.type == kHalf ? run<Half>(p) : run<BFloat16>(p);
  }

 private:
  template <class T>
  static void run(const Product& p) {
    const bool forward = p.epilogue == Epilogue::relu_bias || p.epilogue == Epilogue::relu_aux_bias;
    auto *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
    auto *out = static_cast<T*>(p.out), *vector = static_cast<T*>(p.vector);
    auto* bits = static_cast<uint8_t*>(p.bits);
    std::vector<float> sums(p.columns);
    for (int64_t i = 0; i < p.rows * p.columns; ++i) {
      const int64_t row = i / p.columns, column = i % p.columns;
      float value = forward ? static_cast<float>(vector[column]) : 0.0f;
      for (int64_t k = 0; k < p.inner; ++k) {
        const T right = p.turned ? b[column * p.inner + k] : b[k * p.columns + column];
        value += static_cast<float>(a[row * p.inner + k]) * static_cast<float>(right);
      }
      const auto bit = static_cast<uint8_t>(1 << i % 8);
      const bool passes = forward ? value > 0 : (bits[i / 8] & bit) != 0;
      if (forward && bits != nullptr) bits[i / 8] = static_cast<uint8_t>(passes ? bits[i / 8] | bit : bits[i / 8] & ~bit);
      if (!passes) value = 0;
      out[i] = static_cast<T>(value);
      sums[column] += value;
    }
    for (int64_t j = 0; j < p.columns && p.epilogue == Epilogue::drelu_bgrad; ++j) vector[j] = static_cast<T>(sums[j]);
  }
};

}  // namespace lt
}  // namespace datagrad
