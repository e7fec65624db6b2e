// The matrix products of chains on the CPU.
#pragma once

#include <common/chain_products.h>
#include <common/chain_plan.h>
#include <cpu/panel_products.h>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

namespace datagrad {
namespace {

struct Vendor {
  static void mm(const Tensor& out, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
  static void addmm(const Tensor& out, const Tensor& c, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), c.get(), a.get(), b.get(), 1, 1));
  }
};

// The products that the library's own tiles do faster than a vendor's kernels; the rest is the vendor's.
struct CpuProducts : Products<Vendor> {
  static void nn(const Tensor& out, const Tensor& a, const Tensor& b) {
    if (!panels(out, a, b, nullptr, a.size(0))) Products::nn(out, a, b);
  }

  static void nt(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias) {
    if (!panels(out, a, transposed(b), bias, a.size(0))) Products::nt(out, a, b, bias);
  }

  static void tn(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
    if (!panels(out, transposed(a), b, add ? &out : nullptr, a.size(0))) Products::tn(out, a, b, add);
  }

 private:
  static constexpr int64_t kFewRows = 16;  // below, a copy of the weight costs more than it brings

  // out = a b, plus a row or a matrix if there is one: whether it was done. `flow`: the rows of what flows through the chain.
  static bool panels(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* plus, int64_t flow) {
    const bool dense = (b.stride(0) == 1 || b.stride(1) == 1) && (plus == nullptr || plus->is_contiguous());
    if (small::kVectorBytes < 32 || flow < kFewRows || !dense) return false;
    if (std::min({out.size(0), out.size(1), a.size(1)}) < 2) return false;
    switch (out.scalar_type()) {
      case ScalarType::Float: multiply<float>(out, a, b, plus); return true;
      case ScalarType::Double: multiply<double>(out, a, b, plus); return true;
      default: return false;
    }
  }

  template <class T>
  static void multiply(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* plus) {
    const small::Strided<T> left{data<T>(a), a.stride(0), a.stride(1)}, right{data<T>(b), b.stride(0), b.stride(1)};
    small::Plus<T> added;
    if (plus != nullptr) added = {data<T>(*plus), plus->dim() == 2 ? plus->stride(0) : 0};
    small::PanelProduct<T>(left, right, a.size(1), mutable_data<T>(out), out.size(0), out.size(1), added).run();
  }
};

}  // namespace
}  // namespace datagrad
