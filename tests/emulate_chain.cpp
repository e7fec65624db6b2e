// The chain family as CUDA runs it in 16 bits (common/narrow_chain.h), with blocks and warps on the host: ops of the library
// `datagrad_emulated`, with the schemas of `datagrad`.
#include "emulate_warp.h"

#include <common/dtype.h>
#include <common/narrow_chain.h>

namespace datagrad {
namespace {

struct EmulatedDevice {
  using Block = HostBlock;

  static int64_t memory(const Tensor&) { return 227 * 1024; }  // as on an H100

  template <class Sweep, class T>
  static void run(const Tensor&, const NarrowJob<T>& job, const NarrowLayout& layout, int64_t blocks, const NarrowTotals<T>& totals) {
    std::vector<uint16_t> memory(layout.bytes / 2, 0x7fff);
    for (int64_t index = blocks - 1; index >= 0; --index) {
      HostBlock block(index, blocks, layout.warps, index % 2 == 0, memory);
      Sweep::run(warp::NarrowWalk<HostBlock, T>(block, job));
    }
    for (int i = 0; i < totals.count; ++i) {
      for (int k = 0; k < totals.of[i].rows * totals.of[i].columns; ++k) {
        totals.of[i].finish(job.partials, blocks, job.partial_size, k);
      }
    }
  }
};

// What is not narrow fails: there is nothing else to run it.
struct EmulatedBackend {
  template <class... Arguments>
  static void nn(const Arguments&...) {
    fail("this chain is not emulated");
  }
  template <class... Arguments>
  static void nt(const Arguments&...) {
    fail("this chain is not emulated");
  }
  template <class... Arguments>
  static void tn(const Arguments&...) {
    fail("this chain is not emulated");
  }

  template <class Run>
  static bool narrow(const ChainPlan& plan, const Tensors& saved, const Run& run) {
    if (!is_narrow_in_16_bits(plan, EmulatedDevice::memory(plan.params[0]))) return false;
    using Generic = Chain<EmulatedBackend>;
    if (plan.params[0].scalar_type() == ScalarType::Half) {
      run(NarrowChain16<Half, EmulatedDevice, Generic>(plan, saved));
    } else {
      run(NarrowChain16<BFloat16, EmulatedDevice, Generic>(plan, saved));
    }
    return true;
  }
};

}  // namespace

void relu_forward_into(const PreActivation&, double, const Tensor&, const Tensor&) { fail("this chain is not emulated"); }
void relu_gate_into(const Gated&, double, const Tensor&) { fail("this chain is not emulated"); }
void relu_reverse_into(const Gated&, const ChannelView&, double, const Tensor&, const Tensor&) { fail("this chain is not emulated"); }
void smooth_forward_into(const char*, const PreActivation&, const std::string&, const std::vector<double>&, const Tensor&) {
  fail("this chain is not emulated");
}
void smooth_reverse_into(const char*, const Curved&, const std::string&, const std::vector<double>&, const Tensor&,
                         const Tensor*) {
  fail("this chain is not emulated");
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad_emulated, CPU, m) { datagrad::register_chain<datagrad::EmulatedBackend>(m); }
