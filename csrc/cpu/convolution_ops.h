// The convolution ops of the CPU as functions, for chains: letters as in datagrad_ext/ops/convolution.py.
#pragma once

#include <common/check.h>

#include <optional>
#include <tuple>
#include <vector>

namespace datagrad {

using Numbers = std::vector<int64_t>;

Tensor convolution_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, Numbers stride,
                           Numbers padding, Numbers dilation);

std::vector<Tensor> convolution_reverse(std::optional<Tensor> zeta, const Tensor& x, std::vector<Tensor> cotangents,
                                        std::vector<Tensor> tangents, const Tensor& weight, Numbers stride,
                                        Numbers padding, Numbers dilation, bool want_x, bool want_weight);

std::tuple<Tensor, Tensor> convolution_relu_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                                                    double slope, Numbers stride, Numbers padding, Numbers dilation);

Tensor convolution_relu_vjp(const Tensor& g, const Tensor& bits, double slope, const Tensor& x, const Tensor& weight,
                            Numbers stride, Numbers padding, Numbers dilation);

Tensor convolution_relu_jvp(const Tensor& t, const Tensor& bits, double slope, const Tensor& x, const Tensor& weight,
                            Numbers stride, Numbers padding, Numbers dilation);

std::vector<Tensor> convolution_relu_reverse(std::optional<Tensor> zeta, const Tensor& bits, double slope,
                                             const Tensor& x, const Tensor& weight, std::vector<Tensor> cotangents,
                                             std::vector<Tensor> tangents, Numbers stride, Numbers padding,
                                             Numbers dilation, bool want_x, bool want_weight, bool want_bias);

}  // namespace datagrad
