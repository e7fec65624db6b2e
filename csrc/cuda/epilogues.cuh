// What CUDA does together with a product of a chain: rectifier, gate and bias gradient in cuBLASLt's epilogues, and gradients of
// weights from transposed copies (float32: tensor cores read tf32 fastest along the sum).
#pragma once

#include <common/chain_epilogues.h>
#include <common/chain_products.h>
#include <common/cuda_launch.cuh>
#include <common/layout.h>
#include <cuda/cublas_lt.h>
#include <cuda/passes.h>

namespace datagrad {
namespace {

// The type of a product's operands as cuBLASLt numbers it; -1 for what has no epilogue here.
inline int lt_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half: return lt::kHalf;
    case ScalarType::BFloat16: return lt::kBFloat16;
    case ScalarType::Float: return lt::kFloat;
    default: return -1;
  }
}

// out = epilogue(a b), or of a bᵀ where `turned`, if the operands are as it takes them: whether it was done. `vector`: the bias, or
// where its gradient goes. Epilogues with bits need rows of a multiple of 128 of them, any other a multiple of 8 columns.
inline bool with_epilogue(lt::Epilogue epilogue, const Tensor& out, const Tensor& a, const Tensor& b, bool turned, const Tensor* vector,
                          const Tensor* bits, bool tf32) {
  const int type = lt_type(out.scalar_type());
  if (type < 0 || out.numel() == 0 || a.size(1) == 0) return false;
  if (out.size(1) % (bits != nullptr ? 128 : 8) != 0 || a.size(1) % 8 != 0) return false;
  const auto fits = [](const Tensor& t) {
    return t.is_contiguous() && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % lt::kAlignment == 0;
  };
  if (!fits(out) || !fits(a) || !fits(b) || (vector != nullptr && !fits(*vector)) || (bits != nullptr && !fits(*bits))) return false;
  const Launch launch(out);
  const Tensor workspace = empty_dense(out, IntHeaderOnlyArrayRef(&lt::kWorkspace, 1), ScalarType::Byte);
  const lt::Product product{epilogue,
                            type,
                            turned,
                            tf32 && type == lt::kFloat,
                            out.size(0),
                            out.size(1),
                            a.size(1),
                            a.const_data_ptr(),
                            b.const_data_ptr(),
                            vector == nullptr ? nullptr : vector->mutable_data_ptr(),
                            bits == nullptr ? nullptr : bits->mutable_data_ptr(),
                            out.mutable_data_ptr()};
  lt::Products::get().run(product, out.get_device_index(), workspace.mutable_data_ptr(), launch.stream());
  return true;
}

template <class Vendor>
struct CudaEpilogues {
  using Epilogue = lt::Epilogue;

  static bool nt_relu(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& bits) {
    return with_epilogue(Epilogue::relu_aux_bias, out, a, b, true, &bias, &bits, false);
  }
  static bool nt_relu_then_bits(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& bits,
                                bool tf32) {
    if (!with_epilogue(Epilogue::relu_bias, out, a, b, true, &bias, nullptr, tf32)) return false;
    relu_bits_into(out, bits);
    return true;
  }
  static bool nn_gate(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits) {
    return with_epilogue(Epilogue::drelu, out, a, b, false, nullptr, &bits, false);
  }
  static bool nt_gate(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits) {
    return with_epilogue(Epilogue::drelu, out, a, b, true, nullptr, &bits, false);
  }
  static bool nn_reverse(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits, const Tensor& sums, bool tf32) {
    return with_epilogue(Epilogue::drelu_bgrad, out, a, b, false, &sums, &bits, tf32);
  }
  static bool relu_turned(const Gated& in, double slope, const Tensor& out, const Tensor* sums, const Tensor& turned) {
    return relu_turned_into(in, slope, out, sums, turned);
  }
  static bool smooth_turned(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants,
                            const Tensor& out, const Tensor* sums, const Tensor& turned) {
    return smooth_turned_into(op, in, kind, constants, out, sums, turned);
  }
  static bool tn_turned(const Tensor& out, const Flow& a, const Flow& b, bool add) {
    if (out.scalar_type() != ScalarType::Float || !a.matrix.is_contiguous() || !b.matrix.is_contiguous()) return false;
    const auto turned = [](const Flow& of) { return of.turned ? *of.turned : turned_copy_of(of.matrix); };
    Products<Vendor>::nt(out, turned(a), turned(b), add ? &out : nullptr);
    return true;
  }
};

}  // namespace
}  // namespace datagrad
