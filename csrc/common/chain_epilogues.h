// What a device can do together with a product of a chain, or instead of it. The words of a chain say where it is asked for
// (chain_links.h). Each function says whether it did it; a device that can do something specialises the struct.
#pragma once

#include <common/check.h>

namespace datagrad {
namespace {

template <class Backend>
struct Epilogues {
  // out = relu(a bᵀ + bias), and the bits.
  static bool nt_relu(const Tensor&, const Tensor&, const Tensor&, const Tensor*, const Tensor&) { return false; }
  // out = a b, or a bᵀ, where the bits are 1, else 0.
  static bool nn_gate(const Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
  static bool nt_gate(const Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
  // out = aᵀ b, or out += aᵀ b, from transposed copies of both.
  static bool tn_turned(const Tensor&, const Tensor&, const Tensor&, bool) { return false; }
};

}  // namespace
}  // namespace datagrad
