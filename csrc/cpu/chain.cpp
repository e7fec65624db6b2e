// The chain family on the CPU.
#include <common/chain.h>
#include <cpu/direct.h>
#include <cpu/direct_ops.h>
#include <cpu/matrix_products.h>
#include <cpu/narrow_chain.h>

namespace datagrad {
namespace {

struct CpuBackend : CpuProducts {
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
    {"image_chain_forward", run_directly<&image_chain_forward>},
    {"image_chain_data_vjp", run_directly<&image_chain_data_vjp>},
    {"image_chain_data_jvp", run_directly<&image_chain_data_jvp>},
    {"image_chain_reverse", run_directly<&image_chain_reverse>},
    {"fold_norm", run_directly<&fold_norm>},
    {"unfold_norm", run_directly<&unfold_norm>},
};

}  // namespace
}  // namespace datagrad

datagrad::DirectOps datagrad_direct_ops() { return {datagrad::kDirect, std::size(datagrad::kDirect)}; }

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_chain<datagrad::CpuBackend>(m); }
