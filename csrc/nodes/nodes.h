// The two Functions of datagrad_ext/autograd.py as nodes of torch's engine, for a network that is one layer whose sweeps are ops: a
// small network spends more on Functions of Python than on its sweeps. What is said there holds here; the anchor is an edge without a
// tensor.
#pragma once

#include <nodes/folds.h>
#include <nodes/reference.h>
#include <nodes/sweeps.h>

#include <memory>

namespace datagrad {

// Norms folded into the layer, and what is beyond its fast path. The layer itself may have other sweeps for other inputs.
struct Network {
  Folds folds;
  Reference reference;
};

// network(x), connected to autograd. All of x, params and given are plain tensors; `given`: what fold_norms reads at this call.
at::Tensor apply(std::shared_ptr<const Network> network, std::shared_ptr<const Sweeps> sweeps, const at::Tensor& x,
                 const TensorList& params, const TensorList& given, const Moving& moving);

// Bytes that the forward of this y keeps besides x and parameters, and the x that the ops read.
int64_t saved_bytes(const at::Tensor& y);

}  // namespace datagrad
