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

// What the ops are about: the sizes, checked, and what they make of them.
struct Operation {
  const char* name;
  const Tensor &x, &weight;
  Window window;

  Operation(const char* name, const Tensor& x, const Tensor& weight, const Numbers& stride, const Numbers& padding,
            const Numbers& dilation)
      : name(name), x(x), weight(weight), window(window_of(name, x, weight, stride, padding, dilation)) {}

  std::array<int64_t, 4> y_sizes() const {
    return {window.batch, window.out_channels, window.out_height, window.out_width};
  }

  Tensor empty_y() const { return empty_dense(x, y_sizes(), x.scalar_type(), layout_of(x)); }
  Tensor empty_x() const { return empty_dense(x, x.sizes(), x.scalar_type(), layout_of(x)); }

  void check_cotangent(const Tensor& g) const {
    check_alike(name, "every cotangent", g, "x", x);
    check_shape(name, "every cotangent", g, y_sizes());
  }

  void check_tangent(const Tensor& t) const {
    check_alike(name, "every tangent", t, "x", x);
    check_shape(name, "every tangent", t, x.sizes());
  }

  std::optional<Tensor> dense_bias(const std::optional<Tensor>& bias) const {
    if (!bias) return std::nullopt;
    check_alike(name, "bias", *bias, "x", x);
    check_shape(name, "bias", *bias, std::array<int64_t, 1>{window.out_channels});
    return in_layout(*bias, Layout::contiguous);
  }

  Tensor empty_bias() const {
    return empty_dense(x, std::array<int64_t, 1>{window.out_channels}, x.scalar_type());
  }

  bool is_direct() const { return Convolution<float>::is_direct(window); }

  // Whether a row of y begins at a byte of its bits, and has its channels together.
  bool has_rows_of_bits() const {
    return layout_of(x) == Layout::channels_last && window.out_width * window.out_channels % 8 == 0;
  }

  Tensor checked_bits(const Tensor& bits) const {
    check_dtype(name, "bits", bits, ScalarType::Byte);
    check_device(name, "bits", bits, "x", x);
    const auto [n, c, h, w] = y_sizes();
    check_shape(name, "bits", bits, std::array<int64_t, 1>{(n * c * h * w + 7) / 8});
    return in_layout(bits, Layout::contiguous);
  }

  // g where the bit is set, else slope g, in the layout of y.
  Gated gated(const Tensor& g, const Tensor& bits) const {
    check_cotangent(g);
    return Gated(name, g, bits, layout_of(x) == Layout::channels_last);
  }
};

// What sweeps 2, 3 and 4 are asked for, and of what. With bits every cotangent is behind their gate.
struct Asked {
  std::optional<Tensor> zeta;
  std::vector<Tensor> cotangents, tangents;
  bool x, weight, bias;
  std::optional<Tensor> bits;
  double slope = 0;
};

// Where products do not read the bits as they lie, the cotangents behind the gate, and the gradient of the bias.
std::optional<Tensor> gate_before(const Operation& op, Asked& asked) {
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

// [x̄, w̄, b̄], those that are wanted; b̄ only with bits.
std::vector<Tensor> reverse(const Operation& op, Asked asked) {
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
    const bool reads = op.has_rows_of_bits() && (!asked.bias || (asked.weight && op.is_direct()));
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
      found.push_back(empty_dense(op.weight, op.weight.sizes(), op.x.scalar_type(), layout_of(op.weight)));
      T* sums = bias && asked.bits ? mutable_data<T>(*bias) : nullptr;
      convolution.weight_gradient(asked.cotangents, asked.tangents, gate, found.back(), sums);
    }
  });
  if (bias) found.push_back(*bias);
  return found;
}

}  // namespace

Tensor convolution_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, Numbers stride,
                           Numbers padding, Numbers dilation) {
  const Operation op("convolution_forward", x, weight, stride, padding, dilation);
  const std::optional<Tensor> dense = op.dense_bias(bias);
  const Tensor y = op.empty_y();
  with_type(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Convolution<T>(op.window, weight).forward(x, dense ? data<T>(*dense) : nullptr, y, nullptr);
  });
  return y;
}

std::vector<Tensor> convolution_reverse(std::optional<Tensor> zeta, const Tensor& x, std::vector<Tensor> cotangents,
                                        std::vector<Tensor> tangents, const Tensor& weight, Numbers stride,
                                        Numbers padding, Numbers dilation, bool want_x, bool want_weight) {
  const Operation op("convolution_reverse", x, weight, stride, padding, dilation);
  return reverse(op, {zeta, cotangents, tangents, want_x, want_weight, false, std::nullopt});
}

std::tuple<Tensor, Tensor> convolution_relu_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                                                    double slope, Numbers stride, Numbers padding, Numbers dilation) {
  const Operation op("convolution_relu_forward", x, weight, stride, padding, dilation);
  const std::optional<Tensor> dense = op.dense_bias(bias);
  const Tensor y = op.empty_y();
  const int64_t bytes = (y.numel() + 7) / 8;
  const Tensor bits = empty_dense(y, IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  with_type(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* values = mutable_data<T>(y);
    uint8_t* mask = mutable_data<uint8_t>(bits);
    const auto rectified = [&](int64_t begin, int64_t count) {
      rectify(values + begin, count, static_cast<T>(slope), mask + begin / 8);
    };
    Convolution<T>(op.window, weight).forward(x, dense ? data<T>(*dense) : nullptr, y, rectified);
  });
  return {y, bits};
}

Tensor convolution_relu_vjp(const Tensor& g, const Tensor& bits, double slope, const Tensor& x, const Tensor& weight,
                            Numbers stride, Numbers padding, Numbers dilation) {
  const Operation op("convolution_relu_vjp", x, weight, stride, padding, dilation);
  return reverse(op, {g, {}, {}, true, false, false, bits, slope})[0];
}

Tensor convolution_relu_jvp(const Tensor& t, const Tensor& bits, double slope, const Tensor& x, const Tensor& weight,
                            Numbers stride, Numbers padding, Numbers dilation) {
  const Operation op("convolution_relu_jvp", x, weight, stride, padding, dilation);
  op.check_tangent(t);
  const Tensor y = op.empty_y(), dense = op.checked_bits(bits);
  with_type(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* values = mutable_data<T>(y);
    const uint8_t* mask = data<uint8_t>(dense);
    const auto gated = [&](int64_t begin, int64_t count) {
      gate_run(values + begin, count, static_cast<T>(slope), mask + begin / 8);
    };
    Convolution<T>(op.window, weight).forward(in_layout(t, layout_of(x)), nullptr, y, gated);
  });
  return y;
}

std::vector<Tensor> convolution_relu_reverse(std::optional<Tensor> zeta, const Tensor& bits, double slope,
                                             const Tensor& x, const Tensor& weight, std::vector<Tensor> cotangents,
                                             std::vector<Tensor> tangents, Numbers stride, Numbers padding,
                                             Numbers dilation, bool want_x, bool want_weight, bool want_bias) {
  const Operation op("convolution_relu_reverse", x, weight, stride, padding, dilation);
  return reverse(op, {zeta, cotangents, tangents, want_x, want_weight, want_bias, bits, slope});
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("convolution_forward", TORCH_BOX(&datagrad::convolution_forward));
  m.impl("convolution_reverse", TORCH_BOX(&datagrad::convolution_reverse));
  m.impl("convolution_relu_forward", TORCH_BOX(&datagrad::convolution_relu_forward));
  m.impl("convolution_relu_vjp", TORCH_BOX(&datagrad::convolution_relu_vjp));
  m.impl("convolution_relu_jvp", TORCH_BOX(&datagrad::convolution_relu_jvp));
  m.impl("convolution_relu_reverse", TORCH_BOX(&datagrad::convolution_relu_reverse));
}
