// The convolution ops of the CPU as functions, for chains: letters as in datagrad_ext/ops/convolution.py.
#pragma once

#include <common/activation_arguments.h>
#include <common/convolution_arguments.h>

#include <optional>
#include <tuple>
#include <vector>

namespace datagrad {

using Numbers = std::vector<int64_t>;

// What the ops are about: the sizes, checked, and what they make of them.
struct ConvolutionOp {
  const char* name;
  const Tensor &x, &weight;
  Layout layout;  // of y, what is like y, and the bits; x, its tangents and its cotangent may be in another
  Window window;

  ConvolutionOp(const char* name, const Tensor& x, const Tensor& weight, const Numbers& stride, const Numbers& padding,
                const Numbers& dilation)
      : ConvolutionOp(name, x, weight, stride, padding, dilation, layout_of(x)) {}

  ConvolutionOp(const char* name, const Tensor& x, const Tensor& weight, const Numbers& stride, const Numbers& padding,
                const Numbers& dilation, Layout layout)
      : name(name), x(x), weight(weight), layout(layout), window(window_of(name, x, weight, stride, padding, dilation)) {}

  std::array<int64_t, 4> y_sizes() const {
    return {window.batch, window.out_channels, window.out_height, window.out_width};
  }

  Tensor empty_y() const { return empty_dense(x, y_sizes(), x.scalar_type(), layout); }
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

  // Whether a row of y begins at a byte of its bits, and has its channels together.
  bool has_rows_of_bits() const {
    return layout == Layout::channels_last && window.out_width * window.out_channels % 8 == 0;
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
    return Gated(name, g, bits, layout == Layout::channels_last);
  }
};

// What sweeps 2, 3 and 4 are asked for, and of what. With bits every cotangent is behind their gate.
struct ConvolutionAsked {
  std::optional<Tensor> zeta;
  std::vector<Tensor> cotangents, tangents;
  bool x, weight, bias;
  std::optional<Tensor> bits = std::nullopt;
  double slope = 0;
  std::optional<Tensor> sum = std::nullopt;  // the gradient of the weight so far, in the layout of the weight, to which it is added
};

// w * x + b.
Tensor convolution_forward(const ConvolutionOp& op, const std::optional<Tensor>& bias);

// w * x of a tangent x.
Tensor convolution_jvp(const ConvolutionOp& op);

// f(w * x + b) and its bits.
std::tuple<Tensor, Tensor> convolution_relu_forward(const ConvolutionOp& op, const std::optional<Tensor>& bias, double slope);

// w * t behind the gate.
Tensor convolution_relu_jvp(const ConvolutionOp& op, const Tensor& t, const Tensor& bits, double slope);

// [x̄, w̄, b̄], those that are wanted; b̄ only with bits. Where there is a sum, w̄ is that.
std::vector<Tensor> convolution_reverse(const ConvolutionOp& op, ConvolutionAsked asked);

}  // namespace datagrad
