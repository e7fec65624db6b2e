// The sweeps of datagrad_ext/layers/chain.py for the nodes: a run of linear layers and activations.
#pragma once

#include <nodes/sweeps.h>

#include <string>
#include <utility>
#include <vector>

namespace datagrad {

// The ops read matrices: all leading dimensions are one.
class Chain : public Sweeps {
 public:
  struct Links {
    std::string all, inner;      // as the ops spell them; inner: without biases that sweeps 2 and 3 do not read
    std::vector<size_t> places;  // of the parameters of `inner`
    Flags is_weight, is_below;   // by parameter: is_below: at or below the last smooth link
    bool curved;
  };

  Chain(const DirectOps& direct, Links links);

  const std::string& links() const override { return links_.all; }
  at::Tensor entering(const at::Tensor& x) const override;
  at::Tensor cotangent(const at::Tensor& g) const override { return entering(g); }
  at::Tensor leaving(const at::Tensor& found, const at::Tensor& x) const override;
  std::pair<at::Tensor, TensorList> forward(const at::Tensor& x, const TensorList& params, const Moving& moving) const override;
  std::pair<at::Tensor, TensorList> data_vjp(const at::Tensor& g, const Kept& kept) const override;
  TensorList record(const at::Tensor& g, TensorList rest) const override;
  bool leaves_pair(const Flags&) const override { return links_.curved; }
  at::Tensor data_jvp(const at::Tensor& t, const Kept& kept, Pair& pair, bool needed, const Flags& wanted,
                      TensorList& sums) const override;
  at::Tensor reverse(const at::Tensor& zeta, std::vector<Pair>& pairs, Kept& kept, bool want_x, const Flags& wanted,
                     TensorList& sums) const override;

 private:
  TensorList inner(const TensorList& params) const;

  Links links_;
  Op forward_, data_vjp_, data_jvp_, reverse_;
};

}  // namespace datagrad
