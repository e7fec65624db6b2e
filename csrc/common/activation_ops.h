// The ops of the activation family: check, allocate, call the kernel of this library's device. Included once per library.
#pragma once

#include <common/activation_arguments.h>

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace datagrad {
namespace {

std::tuple<Tensor, Tensor> relu_forward(const Tensor& x, std::optional<Tensor> bias, int64_t channel_dim, double slope,
                                        std::optional<Tensor> other) {
  PreActivation z("relu_forward", x, bias, channel_dim);
  z.plus("relu_forward", other);
  const Tensor y = z.empty(), bits = z.empty_bits();
  relu_forward_into(z, slope, y, bits);
  return {y, bits};
}

Tensor relu_gate(const Tensor& g, const Tensor& bits, double slope, bool channels_last, std::optional<Tensor> other) {
  Gated in("relu_gate", g, bits, channels_last);
  in.plus("relu_gate", other);
  const Tensor out = in.empty();
  relu_gate_into(in, slope, out);
  return out;
}

std::tuple<Tensor, Tensor> relu_reverse(const Tensor& g, const Tensor& bits, double slope, bool channels_last,
                                        int64_t channel_dim) {
  const Gated in("relu_reverse", g, bits, channels_last);
  const int64_t dim = check_channel_dim("relu_reverse", channel_dim, g.dim());
  const ChannelView view = channel_view(g.sizes(), dim, in.layout);
  const Tensor gx = in.empty();
  const Tensor bias_grad = empty_dense(g, IntHeaderOnlyArrayRef(&view.channels, 1), g.scalar_type());
  relu_reverse_into(in, view, slope, gx, bias_grad);
  return {gx, bias_grad};
}

Tensor smooth_forward(const Tensor& x, std::optional<Tensor> bias, int64_t channel_dim, std::string kind,
                      std::vector<double> constants) {
  const char* op = "smooth_forward";
  const PreActivation z(op, x, bias, channel_dim);
  const Tensor y = z.empty();
  smooth_forward_into(op, z, kind, constants, y);
  return y;
}

Tensor smooth_gate(const Tensor& g, const Tensor& x, std::optional<Tensor> bias, int64_t channel_dim, std::string kind,
                   std::vector<double> constants) {
  const char* op = "smooth_gate";
  Curved in(op, std::nullopt, {}, {}, PreActivation(op, x, bias, channel_dim));
  in.zeta = in.z.like_x(op, "g", g);
  const Tensor out = in.z.empty();
  smooth_reverse_into(op, in, kind, constants, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> smooth_reverse(std::optional<Tensor> zeta, std::vector<Tensor> tangents,
                                          std::vector<Tensor> cotangents, const Tensor& x, std::optional<Tensor> bias,
                                          int64_t channel_dim, std::string kind, std::vector<double> constants,
                                          bool bias_grad) {
  const char* op = "smooth_reverse";
  const Curved in(op, zeta, tangents, cotangents, PreActivation(op, x, bias, channel_dim, bias_grad));
  const Tensor gx = in.z.empty(), sums = in.z.empty_sums(bias_grad);
  smooth_reverse_into(op, in, kind, constants, gx, bias_grad ? &sums : nullptr);
  return {gx, sums};
}

template <class Library>
void register_activation(Library& m) {
  m.impl("relu_forward", TORCH_BOX(&relu_forward));
  m.impl("relu_gate", TORCH_BOX(&relu_gate));
  m.impl("relu_reverse", TORCH_BOX(&relu_reverse));
  m.impl("smooth_forward", TORCH_BOX(&smooth_forward));
  m.impl("smooth_gate", TORCH_BOX(&smooth_gate));
  m.impl("smooth_reverse", TORCH_BOX(&smooth_reverse));
}

}  // namespace
}  // namespace datagrad
