// What cuBLASLt is asked for: a product with an epilogue. Numbers are those of its C interface.
#pragma once

#include <array>
#include <cstdint>

namespace datagrad {
namespace lt {

enum class Epilogue : uint32_t { relu_bias = 2 | 4, relu_aux_bias = 2 | 128 | 4, drelu = 8 | 128, drelu_bgrad = 8 | 128 | 16 };

constexpr int kFloat = 0, kHalf = 2, kBFloat16 = 14;
constexpr int64_t kAlignment = 16;  // bytes

// out (rows, columns) = epilogue(a op(b)), a (rows, inner), op(b) = b (inner, columns) or, `turned`, the transpose of b (columns, inner).
// All dense and aligned to kAlignment; with bits, columns a multiple of 128, so that these lie as cuBLASLt has them. Sums are in
// float32, which `tf32` may round the operands of to tf32.
struct Product {
  Epilogue epilogue;
  int type;
  bool turned, tf32;
  int64_t rows, columns, inner;
  const void *a, *b;
  void *vector, *bits, *out;  // vector: the bias, or where its gradient goes; it and the bits may be null

  std::array<int64_t, 6> key(int device) const {
    return {static_cast<int64_t>(epilogue), type, (turned ? 1 : 0) + (tf32 ? 2 : 0), rows, columns, inner * 1024 + device};
  }
};

}  // namespace lt
}  // namespace datagrad
