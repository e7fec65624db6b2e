// The chain family on CUDA.
#include <common/chain.h>
#include <common/chain_products.h>
#include <cuda/epilogues.cuh>
#include <cuda/narrow_chain.cuh>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <tuple>

namespace datagrad {
namespace {

struct Vendor {
  static void mm(const Tensor& out, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
  }
  static void addmm(const Tensor& out, const Tensor& c, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), c.get(), a.get(), b.get(), 1, 1));
  }
};

struct CudaBackend : Products<Vendor> {
  template <class Run>
  static bool narrow(const ChainPlan& plan, const Tensors& saved, const Run& run) {
    // float32 stays with the vendor's products: whether they may run in tf32 is a setting that this library cannot read.
    if (!is_narrow_in_16_bits(plan)) return false;
    using Generic = Chain<CudaBackend>;
    if (plan.params[0].scalar_type() == ScalarType::Half) {
      run(NarrowChain16<Half, Generic>(plan, saved));
    } else {
      run(NarrowChain16<BFloat16, Generic>(plan, saved));
    }
    return true;
  }
};

template <>
struct Epilogues<CudaBackend> : CudaEpilogues<Vendor> {};

// The same one by one, as datagrad_ext/ops/product.py defines them: to compare them and to time them.

using Fused = Epilogues<CudaBackend>;

void check_done(bool done, const char* op) {
  DATAGRAD_CHECK(done, op, ": needs dense matrices aligned to ", lt::kAlignment, " bytes: float16, bfloat16 or float32 with a ",
                 "multiple of 128 columns for rectifiers and gates, float32 for transposed copies");
}

bool marked(const std::string& marks, char mark) { return marks.find(mark) != std::string::npos; }

std::tuple<Tensor, Tensor> product_relu(const Tensor& a, const Tensor& weight, const Tensor& bias, std::string marks) {
  const Tensor y = empty_matrix(a, a.size(0), weight.size(0));
  const Tensor bits = empty_vector(a, (y.numel() + 7) / 8, ScalarType::Byte);
  const bool done = marked(marks, 'f') ? Fused::nt_relu(y, a, weight, bias, bits)
                                       : Fused::nt_relu_then_bits(y, a, weight, bias, bits, marked(marks, 'x'));
  check_done(done, "product_relu");
  return {y, bits};
}

Tensor product_gate(const Tensor& a, const Tensor& weight, const Tensor& bits, bool turned) {
  const Tensor out = empty_matrix(a, a.size(0), weight.size(turned ? 0 : 1));
  check_done(turned ? Fused::nt_gate(out, a, weight, bits) : Fused::nn_gate(out, a, weight, bits), "product_gate");
  return out;
}

std::tuple<Tensor, Tensor> product_reverse(const Tensor& a, const Tensor& weight, const Tensor& bits, std::string marks) {
  const Tensor out = empty_matrix(a, a.size(0), weight.size(1)), sums = empty_vector(a, weight.size(1), a.scalar_type());
  check_done(Fused::nn_reverse(out, a, weight, bits, sums, marked(marks, 'x')), "product_reverse");
  return {out, sums};
}

Tensor product_turned(const Tensor& a, const Tensor& b) {
  const Tensor out = empty_matrix(a, a.size(1), b.size(1));
  check_done(Fused::tn_turned(out, {a, std::nullopt}, {b, std::nullopt}, false), "product_turned");
  return out;
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) {
  datagrad::register_chain<datagrad::CudaBackend>(m);
  m.impl("product_relu", TORCH_BOX(&datagrad::product_relu));
  m.impl("product_gate", TORCH_BOX(&datagrad::product_gate));
  m.impl("product_reverse", TORCH_BOX(&datagrad::product_reverse));
  m.impl("product_turned", TORCH_BOX(&datagrad::product_turned));
}
