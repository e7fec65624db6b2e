// The ops of the normalisation family as functions: check, allocate, call the kernel of this library's device.
#pragma once

#include <common/activation_arguments.h>
#include <common/normalisation_arguments.h>

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace datagrad {

inline std::tuple<Tensor, Tensor, Tensor> value_and_statistics(const char* op, const Tensor& x,
                                                        const std::optional<Tensor>& weight,
                                                        const std::optional<Tensor>& bias,
                                                        const std::optional<Tensor>& running_mean,
                                                        const std::optional<Tensor>& running_var, int64_t groups,
                                                        double momentum, double eps) {
  const Normalised in(op, x, groups);
  const auto w = in.channels("weight", weight), b = in.channels("bias", bias);
  Running mean_now(in, "running_mean", running_mean), var_now(in, "running_var", running_var);
  DATAGRAD_CHECK(running_mean.has_value() == running_var.has_value() &&
                     (!running_mean.has_value() || groups == 0 || groups == in.sets.c),
                 op, ": running_mean and running_var come together, with groups = 0 or C = ", in.sets.c,
                 ", got groups = ", groups);
  const Tensor y = in.empty(), mean = in.empty_statistics(), rstd = in.empty_statistics();
  normalise_forward_into(in, w, b, mean_now, var_now, momentum, eps, y, mean, rstd);
  mean_now.write_back();
  var_now.write_back();
  return {y, mean, rstd};
}

inline std::tuple<Tensor, Tensor, Tensor> normalise_forward(const Tensor& x, std::optional<Tensor> weight,
                                                     std::optional<Tensor> bias, std::optional<Tensor> running_mean,
                                                     std::optional<Tensor> running_var, int64_t groups, double momentum,
                                                     double eps) {
  return value_and_statistics("normalise_forward", x, weight, bias, running_mean, running_var, groups, momentum, eps);
}

// The rectifier works in place.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> normalise_relu_forward(
    const Tensor& x, std::optional<Tensor> weight, std::optional<Tensor> bias, std::optional<Tensor> running_mean,
    std::optional<Tensor> running_var, int64_t groups, double momentum, double eps, double slope) {
  const char* op = "normalise_relu_forward";
  const auto [y, mean, rstd] =
      value_and_statistics(op, x, weight, bias, running_mean, running_var, groups, momentum, eps);
  const PreActivation z(op, y, std::nullopt, 0);
  const Tensor bits = z.empty_bits();
  relu_forward_into(z, slope, y, bits);
  return {y, mean, rstd, bits};
}

inline Tensor normalise_vjp(const Tensor& g, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                     std::optional<Tensor> weight, int64_t groups, std::optional<Tensor> bits, double slope) {
  const Linearised at("normalise_vjp", x, mean, rstd, weight, groups);
  const Terms terms{at.in.like_x("g", g), {}, {}, Rectified(at.in, bits, slope)};
  const Tensor out = at.in.empty();
  normalise_map_into(at, terms, false, &out, nullptr, nullptr);
  return out;
}

inline Tensor normalise_jvp(const Tensor& t, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                     std::optional<Tensor> weight, int64_t groups, std::optional<Tensor> bits, double slope) {
  const Linearised at("normalise_jvp", x, mean, rstd, weight, groups);
  const Terms terms{at.in.like_x("t", t), {}, {}, {}};
  const Rectified rectified(at.in, bits, slope);
  const Tensor out = at.in.empty();
  normalise_map_into(at, terms, true, &out, nullptr, nullptr);
  if (bits.has_value()) {
    relu_gate_into(Gated(at.in.op, out, *rectified.bits, at.in.layout == Layout::channels_last), slope, out);
  }
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor> normalise_reverse(std::optional<Tensor> zeta, std::vector<Tensor> tangents,
                                                     std::vector<Tensor> cotangents, const Tensor& x, const Tensor& mean,
                                                     const Tensor& rstd, std::optional<Tensor> weight, int64_t groups,
                                                     std::optional<Tensor> bits, double slope, bool input_grad,
                                                     bool param_grads) {
  const char* op = "normalise_reverse";
  const Linearised at(op, x, mean, rstd, weight, groups);
  DATAGRAD_CHECK(tangents.size() == cotangents.size(), op, ": needs one cotangent per tangent, got ", tangents.size(),
                 " tangents and ", cotangents.size(), " cotangents");
  Terms terms;
  terms.rectified = Rectified(at.in, bits, slope);
  if (zeta.has_value()) terms.single = at.in.like_x("zeta", *zeta);
  for (size_t i = 0; i < tangents.size(); ++i) {
    terms.tangents.push_back(at.in.like_x("tangent", tangents[i]));
    terms.cotangents.push_back(at.in.like_x("cotangent", cotangents[i]));
  }
  const int64_t none = 0;
  const Tensor gx = input_grad ? at.in.empty() : empty_dense(x, IntHeaderOnlyArrayRef(&none, 1), x.scalar_type());
  const Tensor weight_grad = at.in.empty_channels(param_grads), bias_grad = at.in.empty_channels(param_grads);
  normalise_map_into(at, terms, false, input_grad ? &gx : nullptr, param_grads ? &weight_grad : nullptr,
                     param_grads ? &bias_grad : nullptr);
  return {gx, weight_grad, bias_grad};
}

template <class Library>
void register_normalisation(Library& m) {
  m.impl("normalise_forward", TORCH_BOX(&normalise_forward));
  m.impl("normalise_relu_forward", TORCH_BOX(&normalise_relu_forward));
  m.impl("normalise_vjp", TORCH_BOX(&normalise_vjp));
  m.impl("normalise_jvp", TORCH_BOX(&normalise_jvp));
  m.impl("normalise_reverse", TORCH_BOX(&normalise_reverse));
}

}  // namespace datagrad
