// The ops of the penalty family: check, allocate, call the kernel of this library's device. Included once per library.
//
// `Device` is what differs: norms of rows, their seeds, and the sums of lists.
#pragma once

#include <common/penalty_arguments.h>

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace datagrad {
namespace {

template <class Device>
Tensor penalty_value(const Tensor& J, std::string kind) {
  const Samples in("penalty_value", J, kind);
  const Tensor value = in.per_sample();
  dispatch_floating(J.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_norm<Acc<T>>(Norms{}, kind, [&](auto norm) {
      Device::template norms<decltype(norm), T>(in, mutable_data<Acc<T>>(value));
    });
  });
  return value;
}

// weight_of(Acc) is the SeedWeight.
template <class Device, class WeightOf>
Tensor seed(const Samples& in, const Tensor& value, const std::string& kind, const WeightOf& weight_of) {
  const Tensor dense = in.check_per_sample("value", value);
  const Tensor out = empty_dense(in.J, in.J.sizes(), in.J.scalar_type(), in.layout);
  dispatch_floating(in.J.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const SeedWeight<Acc<T>> weight = weight_of(Acc<T>());
    visit_norm<Acc<T>>(Norms{}, kind, [&](auto norm) {
      Device::template seed<decltype(norm), T>(in, data<Acc<T>>(dense), weight, mutable_data<T>(out));
    });
  });
  return out;
}

template <class Device>
Tensor penalty_seed(const Tensor& J, const Tensor& value, const Tensor& weight, std::string kind) {
  const Samples in("penalty_seed", J, kind);
  const Tensor dense = in.check_per_sample("weight", weight);
  return seed<Device>(in, value, kind,
                      [&](auto of) { return SeedWeight<decltype(of)>{data<decltype(of)>(dense), nullptr, 0, 0, 0}; });
}

template <class Device>
Tensor penalty_handover(const Tensor& J, const Tensor& value, const Tensor& c, double share, std::string kind,
                        std::string function, double constant) {
  const Samples in("penalty_handover", J, kind);
  return seed<Device>(in, value, kind, [&](auto of) { return in.seed_weight<decltype(of)>(c, share, function, constant); });
}

template <class Device>
std::tuple<Tensor, Tensor> penalty_total(std::optional<Tensor> loss, double loss_weight, std::vector<Tensor> norms,
                                         std::vector<std::string> functions, std::vector<double> constants,
                                         std::vector<double> weights) {
  const Lists lists(loss, norms, functions, constants.size(), weights.size());
  const auto run = [&](auto of) { Device::total(lists, lists.of<decltype(of)>(loss_weight, constants, weights)); };
  lists.total.scalar_type() == ScalarType::Double ? run(double()) : run(float());
  return {lists.total, lists.means};
}

template <class Device, class Library>
void register_penalty(Library& m) {
  m.impl("penalty_value", TORCH_BOX(&penalty_value<Device>));
  m.impl("penalty_seed", TORCH_BOX(&penalty_seed<Device>));
  m.impl("penalty_handover", TORCH_BOX(&penalty_handover<Device>));
  m.impl("penalty_total", TORCH_BOX(&penalty_total<Device>));
}

}  // namespace
}  // namespace datagrad
