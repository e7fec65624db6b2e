// The chain family on CUDA.
#include <common/chain.h>
#include <common/chain_products.h>
#include <cuda/narrow_chain.cuh>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

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
    const ScalarType dtype = plan.params[0].scalar_type();
    if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) return false;
    if (!is_narrow_in_16_bits(plan, NarrowOnCuda::memory(plan.params[0]))) return false;
    using Generic = Chain<CudaBackend>;
    if (dtype == ScalarType::Half) {
      run(NarrowChain16<Half, NarrowOnCuda, Generic>(plan, saved));
    } else {
      run(NarrowChain16<BFloat16, NarrowOnCuda, Generic>(plan, saved));
    }
    return true;
  }
};

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) { datagrad::register_chain<datagrad::CudaBackend>(m); }
