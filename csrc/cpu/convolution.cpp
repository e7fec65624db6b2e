// Small convolutions on the CPU, alone and with a rectifier behind them: ops and letters as in
// datagrad_ext/ops/convolution.py.
#include <common/activation_arguments.h>
#include <cpu/convolution_ops.h>
#include <cpu/convolution_products.h>
#include <cpu/rectifier.h>

#include <torch/csrc/stable/library.h>

namespace datagrad {
namespace {

template <class F>
void with_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Float) {
    f(Tag<float>{});
  } else {
    f(Tag<double>{});
  }
}

// Where products do not read the bits as they lie, the cotangents behind the gate, and the gradient of the bias.
std::optional<Tensor> gate_before(const ConvolutionOp& op, ConvolutionAsked& asked) {
  std::optional<Tensor> bias;
  const auto gate = [&](const Tensor& g, bool sums) {
    const Gated in = op.gated(g, *asked.bits);
    const Tensor out = in.empty();
    if (sums) {
      bias = op.empty_bias();
      relu_reverse_into(in, channel_view(in.g.sizes(), 1, in.layout), asked.slope, out, *bias);
    } else {
      relu_gate_into(in, asked.slope, out);
    }
    return out;
  };
  for (Tensor& delta : asked.cotangents) delta = gate(delta, false);
  if (asked.zeta) asked.zeta = gate(*asked.zeta, asked.bias);
  asked.bits.reset();
  return bias;
}

}  // namespace

std::vector<Tensor> convolution_reverse(const ConvolutionOp& op, ConvolutionAsked asked) {
  DATAGRAD_CHECK(asked.cotangents.size() == asked.tangents.size(), op.name,
                 ": needs as many cotangents as tangents, got ", asked.cotangents.size(), " and ",
                 asked.tangents.size());
  DATAGRAD_CHECK(asked.zeta || !asked.x, op.name, ": the gradient of x needs zeta");
  DATAGRAD_CHECK(asked.zeta || !asked.bias, op.name, ": the gradient of the bias needs zeta");
  if (asked.zeta) op.check_cotangent(*asked.zeta);
  for (const Tensor& delta : asked.cotangents) op.check_cotangent(delta);
  for (const Tensor& t : asked.tangents) op.check_tangent(t);
  std::optional<Tensor> bias;
  if (asked.bits) {
    const Tensor bits = op.checked_bits(*asked.bits);
    const bool reads = op.has_rows_of_bits() && (!asked.bias || (asked.weight && Convolution<float>::is_direct(op.window)));
    asked.bits = bits;
    if (!reads) {
      bias = gate_before(op, asked);
    } else if (asked.bias) {
      bias = op.empty_bias();
    }
  }
  std::vector<Tensor> found;
  with_type(op.x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Gate<T> gate{asked.bits ? data<uint8_t>(*asked.bits) : nullptr, static_cast<T>(asked.slope)};
    Convolution<T> convolution(op.window, op.weight);
    if (asked.x) {
      found.push_back(op.empty_x());
      convolution.vjp(*asked.zeta, gate, found.back());
    }
    if (asked.zeta) {
      asked.cotangents.push_back(*asked.zeta);
      asked.tangents.push_back(op.x);
    }
    if (asked.weight) {
      const Layout layout = layout_of(op.weight);
      found.push_back(asked.sum ? *asked.sum : empty_dense(op.weight, op.weight.sizes(), op.x.scalar_type(), layout));
      T* sums = bias && asked.bits ? mutable_data<T>(*bias) : nullptr;
      convolution.weight_gradient(asked.cotangents, asked.tangents, gate, found.back(), asked.sum.has_value(), sums);
    }
  });
  if (bias) found.push_back(*bias);
  return found;
}

Tensor convolution_forward(const ConvolutionOp& op, const std::optional<Tensor>& bias) {
  const std::optional<Tensor> dense = op.dense_bias(bias);
  const Tensor y = op.empty_y();
  with_type(op.x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Convolution<T>(op.window, op.weight).forward(op.x, dense ? data<T>(*dense) : nullptr, y, nullptr);
  });
  return y;
}

Tensor convolution_jvp(const ConvolutionOp& op) {
  const Tensor y = op.empty_y();
  with_type(op.x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Convolution<T>(op.window, op.weight).jvp(op.x, y, nullptr);
  });
  return y;
}

std::tuple<Tensor, Tensor> convolution_relu_forward(const ConvolutionOp& op, const std::optional<Tensor>& bias, double slope) {
  const std::optional<Tensor> dense = op.dense_bias(bias);
  const Tensor y = op.empty_y();
  const int64_t bytes = (y.numel() + 7) / 8;
  const Tensor bits = empty_dense(y, IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  with_type(op.x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* values = mutable_data<T>(y);
    uint8_t* mask = mutable_data<uint8_t>(bits);
    const auto rectified = [&](int64_t begin, int64_t count) {
      rectify(values + begin, values + begin, count, static_cast<T>(slope), mask + begin / 8);
    };
    Convolution<T>(op.window, op.weight).forward(op.x, dense ? data<T>(*dense) : nullptr, y, rectified);
  });
  return {y, bits};
}

Tensor convolution_relu_jvp(const ConvolutionOp& op, const Tensor& t, const Tensor& bits, double slope) {
  op.check_tangent(t);
  const Tensor y = op.empty_y(), dense = op.checked_bits(bits);
  with_type(op.x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* values = mutable_data<T>(y);
    const uint8_t* mask = data<uint8_t>(dense);
    const auto gated = [&](int64_t begin, int64_t count) {
      gate_run(values + begin, values + begin, count, static_cast<T>(slope), mask + begin / 8);
    };
    Convolution<T>(op.window, op.weight).jvp(in_layout(t, layout_of(op.x)), y, gated);
  });
  return y;
}

namespace {

Tensor op_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, Numbers stride, Numbers padding,
                  Numbers dilation) {
  return convolution_forward({"convolution_forward", x, weight, stride, padding, dilation}, bias);
}

std::vector<Tensor> op_reverse(std::optional<Tensor> zeta, const Tensor& x, std::vector<Tensor> cotangents,
                               std::vector<Tensor> tangents, const Tensor& weight, Numbers stride, Numbers padding,
                               Numbers dilation, bool want_x, bool want_weight) {
  return convolution_reverse({"convolution_reverse", x, weight, stride, padding, dilation},
                             {zeta, cotangents, tangents, want_x, want_weight, false});
}

std::tuple<Tensor, Tensor> op_relu_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, double slope,
                                           Numbers stride, Numbers padding, Numbers dilation) {
  return convolution_relu_forward({"convolution_relu_forward", x, weight, stride, padding, dilation}, bias, slope);
}

Tensor op_relu_vjp(const Tensor& g, const Tensor& bits, double slope, const Tensor& x, const Tensor& weight, Numbers stride,
                   Numbers padding, Numbers dilation) {
  return convolution_reverse({"convolution_relu_vjp", x, weight, stride, padding, dilation},
                             {g, {}, {}, true, false, false, bits, slope})[0];
}

Tensor op_relu_jvp(const Tensor& t, const Tensor& bits, double slope, const Tensor& x, const Tensor& weight, Numbers stride,
                   Numbers padding, Numbers dilation) {
  return convolution_relu_jvp({"convolution_relu_jvp", x, weight, stride, padding, dilation}, t, bits, slope);
}

std::vector<Tensor> op_relu_reverse(std::optional<Tensor> zeta, const Tensor& bits, double slope, const Tensor& x,
                                    const Tensor& weight, std::vector<Tensor> cotangents, std::vector<Tensor> tangents,
                                    Numbers stride, Numbers padding, Numbers dilation, bool want_x, bool want_weight,
                                    bool want_bias) {
  return convolution_reverse({"convolution_relu_reverse", x, weight, stride, padding, dilation},
                             {zeta, cotangents, tangents, want_x, want_weight, want_bias, bits, slope});
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("convolution_forward", TORCH_BOX(&datagrad::op_forward));
  m.impl("convolution_reverse", TORCH_BOX(&datagrad::op_reverse));
  m.impl("convolution_relu_forward", TORCH_BOX(&datagrad::op_relu_forward));
  m.impl("convolution_relu_vjp", TORCH_BOX(&datagrad::op_relu_vjp));
  m.impl("convolution_relu_jvp", TORCH_BOX(&datagrad::op_relu_jvp));
  m.impl("convolution_relu_reverse", TORCH_BOX(&datagrad::op_relu_reverse));
}
