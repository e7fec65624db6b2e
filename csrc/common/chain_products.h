// The three matrix products of a chain, from a vendor's mm and addmm.
#pragma once

#include <common/check.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace datagrad {
namespace {

inline Tensor transposed(const Tensor& t) {
  const int64_t sizes[] = {t.size(1), t.size(0)}, strides[] = {t.stride(1), t.stride(0)};
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 2, sizes, strides, 0, &view));
  return Tensor(view);
}

template <class Vendor>
struct Products {
  // out = a b
  static void nn(const Tensor& out, const Tensor& a, const Tensor& b) { Vendor::mm(out, a, b); }

  // out = a bᵀ, plus the bias in every row
  static void nt(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias) {
    if (bias == nullptr) {
      Vendor::mm(out, a, transposed(b));
    } else {
      Vendor::addmm(out, *bias, a, transposed(b));
    }
  }

  // out = aᵀ b, or out += aᵀ b
  static void tn(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
    if (add) {
      Vendor::addmm(out, out, transposed(a), b);
    } else {
      Vendor::mm(out, transposed(a), b);
    }
  }
};

}  // namespace
}  // namespace datagrad
