// What a device can do together with a product or a pass of a chain, or instead of it. The words of a chain say where it is asked
// for (chain_links.h). Each function says whether it did it; a device that can do something specialises the struct.
#pragma once

#include <common/activation_arguments.h>

namespace datagrad {
namespace {

// A matrix, and its transposed copy where a pass has written that already.
struct Flow {
  Tensor matrix;
  std::optional<Tensor> turned;
};

template <class Backend>
struct Epilogues {
  // out = relu(a bᵀ + bias), and the bits: the product writes them, or a pass that reads its result.
  static bool nt_relu(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
  static bool nt_relu_then_bits(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool) { return false; }
  // out = a b, or a bᵀ, where the bits are 1, else 0.
  static bool nn_gate(const Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
  static bool nt_gate(const Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
  // The first of these, and its sums over rows.
  static bool nn_reverse(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool) { return false; }
  // The pass of an activation into `out`, with its sums over rows if there is a place for them, and its transposed copy.
  static bool relu_turned(const Gated&, double, const Tensor&, const Tensor*, const Tensor&) { return false; }
  static bool smooth_turned(const char*, const Curved&, const std::string&, const std::vector<double>&, const Tensor&, const Tensor*,
                            const Tensor&) {
    return false;
  }
  // out = aᵀ b, or out += aᵀ b, from transposed copies of both.
  static bool tn_turned(const Tensor&, const Flow&, const Flow&, bool) { return false; }
};

}  // namespace
}  // namespace datagrad
