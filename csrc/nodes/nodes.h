// The two Functions of datagrad_ext/autograd.py as nodes of torch's engine, for a network that is one chain: a small network spends
// more on Functions of Python than on its sweeps. What is said there holds here; the anchor is an edge without a tensor.
#pragma once

#include <nodes/chain.h>
#include <nodes/folds.h>
#include <nodes/reference.h>

#include <memory>

namespace datagrad {

// A chain, norms in it, and what is beyond its fast path.
struct Network {
  Chain chain;
  Folds folds;
  Reference reference;
};

// network(x), connected to autograd. All tensors are plain ones; `given`: what fold_norms reads at this call.
at::Tensor apply(std::shared_ptr<const Network> network, const at::Tensor& x, const TensorList& params, const TensorList& given);

}  // namespace datagrad
