// The sweeps of chains (common/chain.h) with a device on the host that does everything a mark asks for: ops of the library
// `datagrad_marked`, with the schemas of `datagrad`, in float32. What the marks do not cover fails, so that a test sees that they are
// followed, unless DATAGRAD_UNMARKED is set; transposed copies and passes are those of the CUDA kernels, thread by thread.
#include <common/chain.h>
#include <common/dtype.h>
#include <math/activation_groups.h>
#include <math/turn.h>

namespace datagrad {
namespace {

void unmarked(const char* what) {
  if (std::getenv("DATAGRAD_UNMARKED") == nullptr) fail(what, " without its mark");
}

struct MarkedBackend {
  template <class Run>
  static bool narrow(const ChainPlan&, const Tensors&, const Run&) {
    return false;
  }

  static void nn(const Tensor& out, const Tensor& a, const Tensor& b) { product(out, a, b, false); }
  static void nt(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias) {
    product(out, a, b, true);
    float* o = mutable_data<float>(out);
    for (int64_t i = 0; bias != nullptr && i < out.numel(); ++i) o[i] += data<float>(*bias)[i % out.size(1)];
  }
  static void tn(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
    unmarked("a gradient of a weight");
    const int64_t m = out.size(0), n = out.size(1);
    for (int64_t i = 0; i < out.numel(); ++i) {
      float sum = add ? data<float>(out)[i] : 0.0f;
      for (int64_t k = 0; k < a.size(0); ++k) sum += data<float>(a)[k * m + i / n] * data<float>(b)[k * n + i % n];
      mutable_data<float>(out)[i] = sum;
    }
  }

  // out = a b or a bᵀ
  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool turned) {
    const int64_t rows = out.size(0), columns = out.size(1), inner = a.size(1);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        float sum = 0;
        for (int64_t k = 0; k < inner; ++k) {
          sum += data<float>(a)[i * inner + k] * data<float>(b)[turned ? j * inner + k : k * columns + j];
        }
        mutable_data<float>(out)[i * columns + j] = sum;
      }
    }
  }
};

Tensor turned_copy(const Tensor& t) {
  const Tensor out = empty_matrix(t, t.size(1), t.size(0));
  const Turn<float> turn{data<float>(t), mutable_data<float>(out), t.size(0), t.size(1)};
  for (int64_t tile = 0; tile < turn.tiles(); ++tile) {
    float shared[Turn<float>::kShared];
    for (int thread = 0; thread < Turn<float>::kThreads; ++thread) turn.read(tile, thread, shared);
    for (int thread = Turn<float>::kThreads - 1; thread >= 0; --thread) turn.write(tile, thread, shared);
  }
  return out;
}

// A pass over an activation with the transposed copy, as blocks and threads of the CUDA kernel take it.
template <class Op>
bool run_turned(const Op& op, const Tensor& out, const Tensor* sums, const Tensor& turned) {
  if (out.size(1) % kGroup != 0) return false;
  const TurnedPass pass{out.size(0), out.size(1), mutable_data<float>(turned)};
  std::vector<float> partials(pass.splits() * pass.columns);
  for (int64_t block = 0; block < pass.blocks(); ++block) {
    for (int64_t split = 0; split < pass.splits(); ++split) {
      float shared[TurnedPass::kShared], of_threads[kBlockThreads][kGroup] = {};
      for (int64_t tile = split; tile < pass.tiles(); tile += pass.splits()) {
        for (int thread = 0; thread < kBlockThreads; ++thread) pass.compute(op, block, tile, thread, of_threads[thread], shared);
        for (int thread = kBlockThreads - 1; thread >= 0; --thread) pass.write(block, tile, thread, shared);
      }
      for (int thread = 0; thread < kBlockThreads; ++thread) pass.put(thread, of_threads[thread], shared);
      for (int thread = 0; thread < kBlockThreads; ++thread) pass.reduce(block, split, thread, shared, partials.data());
    }
  }
  for (int64_t j = 0; sums != nullptr && j < pass.columns; ++j) {
    mutable_data<float>(*sums)[j] = static_cast<float>(finish_channel(partials.data(), pass.splits(), pass.columns, j));
  }
  return true;
}

ReluGate<float> relu_gate_op(const Gated& in, double slope, const Tensor& out) {
  return {data<float>(in.g), nullptr, data<uint8_t>(in.bits), {static_cast<float>(slope)}, mutable_data<float>(out), false};
}

template <class Visit>
void with_smooth_op(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants, const Tensor& out,
                    const Visit& visit) {
  dispatch_activation<float>(op, kind, constants, [&](const auto& activation) {
    using Row = std::decay_t<decltype(activation)>;
    const float* bias = in.z.bias ? data<float>(*in.z.bias) : nullptr;
    SmoothReverse<float, Row> group{{data<float>(in.z.x), bias, nullptr, in.z.view}, activation};
    group.zeta = in.zeta ? data<float>(*in.zeta) : nullptr;
    group.pairs = static_cast<int>(in.tangents.size());
    group.out = mutable_data<float>(out);
    for (int i = 0; i < group.pairs; ++i) {
      group.tangents[i] = data<float>(in.tangents[i]);
      group.cotangents[i] = data<float>(in.cotangents[i]);
    }
    visit(group);
  });
}

void sum_columns(const Tensor& t, const Tensor& sums) {
  const int64_t columns = sums.numel();
  for (int64_t j = 0; j < columns; ++j) mutable_data<float>(sums)[j] = 0;
  for (int64_t i = 0; i < t.numel(); ++i) mutable_data<float>(sums)[i % columns] += data<float>(t)[i];
}

void gate(const Tensor& out, const Tensor& bits) {
  for (int64_t i = 0; i < out.numel(); ++i) {
    if (((data<uint8_t>(bits)[i / 8] >> (i % 8)) & 1) == 0) mutable_data<float>(out)[i] = 0;
  }
}

template <>
struct Epilogues<MarkedBackend> {
  static bool nt_relu(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& bits) {
    return nt_relu_then_bits(out, a, b, bias, bits, false);
  }
  static bool nt_relu_then_bits(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& bits, bool) {
    MarkedBackend::nt(out, a, b, &bias);
    for (int64_t i = 0; i < out.numel(); ++i) mutable_data<float>(out)[i] = std::max(data<float>(out)[i], 0.0f);
    const ReluBits<float> op{data<float>(out), mutable_data<uint8_t>(bits), false};
    for (int64_t thread = 0; thread < 3; ++thread) map_thread<float>(op, out.numel(), thread, 3);
    return true;
  }
  static bool nn_gate(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits) {
    MarkedBackend::nn(out, a, b);
    gate(out, bits);
    return true;
  }
  static bool nt_gate(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits) {
    MarkedBackend::nt(out, a, b, nullptr);
    gate(out, bits);
    return true;
  }
  static bool nn_reverse(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits, const Tensor& sums, bool tf32) {
    if (!tf32) fail("a product that may not use tf32");
    nn_gate(out, a, b, bits);
    sum_columns(out, sums);
    return true;
  }
  static bool relu_turned(const Gated& in, double slope, const Tensor& out, const Tensor* sums, const Tensor& turned) {
    return run_turned(relu_gate_op(in, slope, out), out, sums, turned);
  }
  static bool smooth_turned(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants,
                            const Tensor& out, const Tensor* sums, const Tensor& turned) {
    bool done = false;
    with_smooth_op(op, in, kind, constants, out, [&](const auto& group) { done = run_turned(group, out, sums, turned); });
    return done;
  }
  static bool tn_turned(const Tensor& out, const Flow& a, const Flow& b, bool add) {
    const Tensor product = empty_matrix(out, out.size(0), out.size(1));
    const auto turned = [](const Flow& of) { return of.turned ? *of.turned : turned_copy(of.matrix); };
    MarkedBackend::nt(product, turned(a), turned(b), nullptr);
    for (int64_t i = 0; i < out.numel(); ++i) {
      mutable_data<float>(out)[i] = data<float>(product)[i] + (add ? data<float>(out)[i] : 0.0f);
    }
    return true;
  }
};

}  // namespace

void relu_forward_into(const PreActivation&, double, const Tensor&, const Tensor&) { fail("a relu without its mark"); }
void relu_gate_into(const Gated& in, double slope, const Tensor& out) {
  unmarked("a gate");
  map_thread<float>(relu_gate_op(in, slope, out), out.numel(), 0, 1);
}
void relu_reverse_into(const Gated& in, const ChannelView&, double slope, const Tensor& out, const Tensor& sums) {
  relu_gate_into(in, slope, out);
  sum_columns(out, sums);
}

// Sweeps 1 and 2 have no marks for smooth links.
void smooth_forward_into(const char* op, const PreActivation& z, const std::string& kind, const std::vector<double>& constants,
                         const Tensor& y) {
  dispatch_activation<float>(op, kind, constants, [&](const auto& activation) {
    const float* bias = z.bias ? data<float>(*z.bias) : nullptr;
    const SmoothForward<float, std::decay_t<decltype(activation)>> group{
        {data<float>(z.x), bias, nullptr, z.view}, activation, mutable_data<float>(y), false};
    map_thread<float>(group, y.numel(), 0, 1);
  });
}
void smooth_reverse_into(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants,
                         const Tensor& out, const Tensor* sums) {
  if (std::string(op) != "chain_data_vjp") unmarked("a pass");
  with_smooth_op(op, in, kind, constants, out, [&](const auto& group) { map_thread<float>(group, out.numel(), 0, 1); });
  if (sums != nullptr) sum_columns(out, *sums);
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad_marked, CPU, m) { datagrad::register_chain<datagrad::MarkedBackend>(m); }
