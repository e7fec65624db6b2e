// The functions of ops on the CPU that the table of direct calls (cpu/chain.cpp) takes from other files.
#pragma once

#include <common/chain_plan.h>

#include <optional>
#include <string>
#include <vector>

namespace datagrad {

Tensors chain_penalty_step(const Tensor& x, Tensors params, std::optional<Tensor> target, std::string links,
                           std::string loss, std::vector<double> loss_constants, std::string main,
                           std::vector<double> main_constants, double main_weight, std::string penalties,
                           std::vector<double> constants, std::vector<double> weights, Flags wanted, bool want_x);

Tensors folded_penalty_step(const Tensor& x, Tensors params, Tensors statistics, std::string given, std::vector<double> eps,
                            std::optional<Tensor> target, std::string links, std::string loss, std::vector<double> loss_constants,
                            std::string main, std::vector<double> main_constants, double main_weight, std::string penalties,
                            std::vector<double> constants, std::vector<double> weights, Flags wanted, bool want_x);

Tensors image_chain_forward(const Tensor& x, Tensors params, std::string links, Tensors running, std::vector<double> momenta);

Tensors image_chain_data_vjp(const Tensor& g, const Tensor& x, Tensors params, Tensors saved, std::string links);

Tensors image_chain_data_jvp(const Tensor& t, const Tensor& x, Tensors params, Tensors saved, Tensors record,
                             std::string links, Flags wanted, bool want_y, Tensors sums);

Tensors image_chain_reverse(std::optional<Tensor> zeta, Tensors records, Tensors tangents, const Tensor& x, Tensors params,
                            Tensors saved, std::string links, Flags wanted, bool want_x, Tensors sums);

Tensors fold_norms(Tensors tensors, std::string given, std::vector<double> eps);

Tensors unfold_norms(Tensors weight_bars, Tensors bias_bars, Tensors weights, const Tensor& kept, Flags wanted);

}  // namespace datagrad
