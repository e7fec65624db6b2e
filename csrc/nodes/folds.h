// The folds of datagrad_ext/layers/folds.py for the nodes: norms by running statistics in the linear layers before them. Without a
// fold the parameters inside, which the chain sees, are those outside.
#pragma once

#include <nodes/call.h>

#include <string>
#include <tuple>
#include <vector>

namespace datagrad {

class Folds {
 public:
  // Of a layer of the run: what fold_norms is given of it, nothing if it has no fold; how many parameters it has inside and outside.
  using Part = std::tuple<std::string, size_t, size_t>;

  Folds(const DirectOps& direct, std::vector<double> eps, std::vector<Part> parts);

  bool empty() const { return eps_.empty(); }

  // W′ and b′ of each fold, and behind them what the folds keep; of what fold_norms reads.
  TensorList folded(const TensorList& given) const { return fold_(given, given_, eps_); }

  // The parameters inside, of W′ and b′ of each fold.
  TensorList inside(const TensorList& params, const TensorList& folded) const;

  // W′ and b′ are wanted if anything is that they were made of.
  Flags wanted_inside(const Flags& wanted) const;

  // The gradients of the parameters, of those inside.
  TensorList unfolded(const at::Tensor& kept, const TensorList& params, const TensorList& bars) const;

 private:
  std::string given_;
  std::vector<double> eps_;
  std::vector<Part> parts_;
  Op fold_, unfold_;
};

}  // namespace datagrad
