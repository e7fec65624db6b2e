// The op chain_penalty_step (datagrad_ext/ops/penalty_step.py) on the CPU, for the table of direct calls.
#pragma once

#include <common/chain_plan.h>

#include <string>

namespace datagrad {

Tensors chain_penalty_step(const Tensor& x, Tensors params, std::optional<Tensor> target, std::string links,
                           std::string loss, std::vector<double> loss_constants, std::string main,
                           std::vector<double> main_constants, double main_weight, std::string penalties,
                           std::vector<double> constants, std::vector<double> weights, Flags wanted, bool want_x);

}  // namespace datagrad
