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
    direct_op<&chain_forward<CpuBackend>>("chain_forward"),
    direct_op<&chain_data_vjp<CpuBackend>>("chain_data_vjp"),
    direct_op<&chain_data_jvp<CpuBackend>>("chain_data_jvp"),
    direct_op<&chain_reverse<CpuBackend>>("chain_reverse"),
    direct_op<&chain_penalty_step>("chain_penalty_step"),
    direct_op<&folded_penalty_step>("folded_penalty_step"),
    direct_op<&image_chain_forward>("image_chain_forward"),
    direct_op<&image_chain_data_vjp>("image_chain_data_vjp"),
    direct_op<&image_chain_data_jvp>("image_chain_data_jvp"),
    direct_op<&image_chain_reverse>("image_chain_reverse"),
    direct_op<&fold_norms>("fold_norms"),
    direct_op<&unfold_norms>("unfold_norms"),
};

}  // namespace
}  // namespace datagrad

datagrad::DirectOps datagrad_direct_ops() { return {datagrad::kDirect, std::size(datagrad::kDirect)}; }

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_chain<datagrad::CpuBackend>(m); }
