// The chain family on CUDA.
#include <common/chain.h>
#include <common/chain_products.h>

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
  static bool narrow(const ChainPlan&, const Tensors&, const Run&) {
    return false;
  }
};

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) { datagrad::register_chain<datagrad::CudaBackend>(m); }
