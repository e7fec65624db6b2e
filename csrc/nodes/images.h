// The sweeps of datagrad_ext/layers/image_chain.py for the nodes: convolutions, norms, poolings and what is between them, for inputs
// that are run in one way.
#pragma once

#include <nodes/sweeps.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace datagrad {

class Images : public Sweeps {
 public:
  struct Unit {
    bool reads_x;
    std::optional<size_t> weight, record;  // places among the parameters, and of its cotangent in a record
    bool curved, marked;                   // whether it leaves a pair, and whether it does if its weight is wanted

    bool keeps(const Flags& wanted) const { return curved || (marked && weight && wanted[*weight]); }
  };

  // outer, inner: whether x, J and y are in channels_last, and what is between them.
  Images(const DirectOps& direct, std::string links, bool outer, bool inner, std::vector<Unit> units);

  const std::string& links() const override { return links_; }
  at::Tensor entering(const at::Tensor& x) const override { return laid(x, outer_); }
  at::Tensor cotangent(const at::Tensor& g) const override { return laid(g, inner_); }
  at::Tensor leaving(const at::Tensor& found, const at::Tensor&) const override { return laid(found, outer_); }
  std::pair<at::Tensor, TensorList> forward(const at::Tensor& x, const TensorList& params, const Moving& moving) const override;
  std::pair<at::Tensor, TensorList> data_vjp(const at::Tensor& g, const Kept& kept) const override;
  TensorList record(const at::Tensor& g, TensorList rest) const override;
  bool leaves_pair(const Flags& wanted) const override;
  at::Tensor data_jvp(const at::Tensor& t, const Kept& kept, Pair& pair, bool needed, const Flags& wanted,
                      TensorList& sums) const override;
  at::Tensor reverse(const at::Tensor& zeta, std::vector<Pair>& pairs, Kept& kept, bool want_x, const Flags& wanted,
                     TensorList& sums) const override;

 private:
  static at::Tensor laid(const at::Tensor& t, bool channels_last);
  // Which weights' gradients sweep 3 takes.
  Flags taken(const Flags& wanted) const;

  std::string links_;
  bool outer_, inner_;
  std::vector<Unit> units_;
  Op forward_, data_vjp_, data_jvp_, reverse_;
};

}  // namespace datagrad
