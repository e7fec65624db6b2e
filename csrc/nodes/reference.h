// What is beyond the fast path, in Python: `Reference` of datagrad_ext/autograd.py.
#pragma once

#include <nodes/call.h>
#include <torch/csrc/python_headers.h>

#include <pybind11/pybind11.h>

#include <utility>

namespace datagrad {

// What the network saved at its forward.
struct Kept {
  at::Tensor x, rows;  // rows: x as a matrix
  TensorList params;
  at::Tensor folds;           // what the folds keep, if there are any
  TensorList inside, saved;   // the chain's own parameters, and what its forward saved
};

class Reference {
 public:
  explicit Reference(pybind11::object reference) : reference_(std::move(reference)) {}
  Reference(const Reference&) = delete;
  ~Reference();

  // Whether a backward is beyond the fast path; warns once. `differentiable`: its result must have a graph.
  bool is_needed(const TensorList& cotangents, bool differentiable) const;

  // Sweep 4: differentiable gradients of x and the parameters, plus the parts that sweep 3 left.
  TensorList reverse(const Kept& kept, const std::vector<TensorList>& parts, bool wants_x, const Flags& wanted,
                     const at::Tensor& g) const;

  // ∂⟨v, J⟩ with respect to (x and parameters), and with respect to g, differentiable.
  std::pair<TensorList, at::Tensor> tangent(const Kept& kept, const at::Tensor& g, const at::Tensor& seed) const;

 private:
  pybind11::object reference_;
};

}  // namespace datagrad
