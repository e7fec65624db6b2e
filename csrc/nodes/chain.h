// The sweeps of datagrad_ext/layers/chain.py for the nodes: a run of linear layers and activations.
#pragma once

#include <nodes/call.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace datagrad {

// What sweep 2 leaves for sweep 3, and what both leave for sweep 4.
struct Pair {
  TensorList record, tangents;
};

// `sums` are gradients by parameter, undefined where there is none.
class Chain {
 public:
  struct Links {
    std::string all, inner;      // as the ops spell them; inner: without biases that sweeps 2 and 3 do not read
    std::vector<size_t> places;  // of the parameters of `inner`
    Flags is_weight, is_below;   // by parameter: is_below: at or below the last smooth link
    bool curved;
  };

  Chain(const DirectOps& direct, Links links);

  size_t n_params() const { return links_.is_weight.size(); }

  // y, and what the other sweeps read.
  std::pair<at::Tensor, TensorList> forward(const at::Tensor& x, const TensorList& params) const;

  // J, and the buffers of its record, in front of which g comes.
  std::pair<at::Tensor, TensorList> data_vjp(const at::Tensor& g, const TensorList& params, const TensorList& saved) const;

  // The tangent of y if it is `needed`. Gradients of the weights wanted are added to the sums; tangents that sweep 4 reads go to the
  // pair.
  at::Tensor data_jvp(const at::Tensor& t, const TensorList& params, const TensorList& saved, Pair& pair, bool needed,
                      const Flags& wanted, TensorList& sums) const;

  // The cotangent of x if it is wanted and there is one. Gradients of the parameters wanted are added to the sums.
  at::Tensor reverse(const at::Tensor& zeta, const std::vector<Pair>& pairs, const at::Tensor& x, const TensorList& params,
                     const TensorList& saved, bool want_x, const Flags& wanted, TensorList& sums) const;

  bool is_curved() const { return links_.curved; }

 private:
  TensorList inner(const TensorList& params) const;

  Links links_;
  Op forward_, data_vjp_, data_jvp_, reverse_;
};

}  // namespace datagrad
