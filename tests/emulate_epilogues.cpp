// The sweeps of chains (common/chain.h) with a device on the host that does everything a mark asks for: ops of the library
// `datagrad_marked`, with the schemas of `datagrad`, in float32. What the marks do not cover fails, so that a test sees that they are
// followed; transposed copies are those of the CUDA kernel, thread by thread.
#include <common/chain.h>
#include <common/dtype.h>
#include <math/turn.h>

namespace datagrad {
namespace {

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
  static void tn(const Tensor&, const Tensor&, const Tensor&, bool) { fail("a gradient of a weight without its mark"); }

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

void gate(const Tensor& out, const Tensor& bits) {
  for (int64_t i = 0; i < out.numel(); ++i) {
    if (((data<uint8_t>(bits)[i / 8] >> (i % 8)) & 1) == 0) mutable_data<float>(out)[i] = 0;
  }
}

template <>
struct Epilogues<MarkedBackend> {
  static bool nt_relu(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias, const Tensor& bits) {
    MarkedBackend::nt(out, a, b, bias);
    for (int64_t i = 0; i < bits.numel(); ++i) mutable_data<uint8_t>(bits)[i] = 0;
    for (int64_t i = 0; i < out.numel(); ++i) {
      float& z = mutable_data<float>(out)[i];
      if (z > 0) {
        mutable_data<uint8_t>(bits)[i / 8] |= static_cast<uint8_t>(1u << (i % 8));
      } else {
        z = 0;
      }
    }
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
  static bool tn_turned(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
    const Tensor product = empty_matrix(out, out.size(0), out.size(1));
    MarkedBackend::nt(product, turned_copy(a), turned_copy(b), nullptr);
    for (int64_t i = 0; i < out.numel(); ++i) {
      mutable_data<float>(out)[i] = data<float>(product)[i] + (add ? data<float>(out)[i] : 0.0f);
    }
    return true;
  }
};

}  // namespace

// Sweep 4 gates and sums in one pass: no mark is for that.
void relu_reverse_into(const Gated& in, const ChannelView&, double, const Tensor& out, const Tensor& sums) {
  const int64_t columns = sums.numel();
  for (int64_t j = 0; j < columns; ++j) mutable_data<float>(sums)[j] = 0;
  for (int64_t i = 0; i < out.numel(); ++i) {
    const bool bit = ((data<uint8_t>(in.bits)[i / 8] >> (i % 8)) & 1) != 0;
    const float value = bit ? data<float>(in.g)[i] : 0.0f;
    mutable_data<float>(out)[i] = value;
    mutable_data<float>(sums)[i % columns] += value;
  }
}

void relu_forward_into(const PreActivation&, double, const Tensor&, const Tensor&) { fail("a relu without its mark"); }
void relu_gate_into(const Gated&, double, const Tensor&) { fail("a gate without its mark"); }
void smooth_forward_into(const char*, const PreActivation&, const std::string&, const std::vector<double>&, const Tensor&) {
  fail("no smooth link here");
}
void smooth_reverse_into(const char*, const Curved&, const std::string&, const std::vector<double>&, const Tensor&,
                         const Tensor*) {
  fail("no smooth link here");
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad_marked, CPU, m) { datagrad::register_chain<datagrad::MarkedBackend>(m); }
