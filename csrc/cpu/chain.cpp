// The chain family on the CPU.
#include <common/chain.h>
#include <common/chain_products.h>
#include <cpu/direct.h>
#include <cpu/narrow_chain.h>
#include <cpu/penalty_step.h>

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

struct CpuBackend : Products<Vendor> {
  template <class Run>
  static bool narrow(const ChainPlan& plan, const Tensors& saved, const Run& run) {
    if (plan.rows == 0 || !is_narrow(plan)) return false;
    switch (plan.params[0].scalar_type()) {
      case ScalarType::Float: run(NarrowChain<float>(plan, saved)); return true;
      case ScalarType::Double: run(NarrowChain<double>(plan, saved)); return true;
      default: return false;
    }
  }
};

constexpr DirectOp kDirect[] = {
    {"chain_forward", run_directly<&chain_forward<CpuBackend>>},
    {"chain_data_vjp", run_directly<&chain_data_vjp<CpuBackend>>},
    {"chain_data_jvp", run_directly<&chain_data_jvp<CpuBackend>>},
    {"chain_reverse", run_directly<&chain_reverse<CpuBackend>>},
    {"chain_penalty_step", run_directly<&chain_penalty_step>},
};

}  // namespace
}  // namespace datagrad

datagrad::DirectOps datagrad_direct_ops() { return {datagrad::kDirect, std::size(datagrad::kDirect)}; }

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_chain<datagrad::CpuBackend>(m); }
