// What is beyond the fast path, in Python: `Reference` of datagrad_ext/autograd.py.
#pragma once

#include <nodes/sweeps.h>
#include <torch/csrc/python_headers.h>

#include <pybind11/pybind11.h>

#include <utility>

namespace datagrad {

class Reference {
 public:
  explicit Reference(pybind11::object reference) : reference_(std::move(reference)) {}
  Reference(const Reference&) = delete;
  ~Reference();

  // Whether a backward is beyond the fast path; warns once. `differentiable`: its result must have a graph.
  bool is_needed(const TensorList& cotangents, bool differentiable) const;

  // Sweep 4: differentiable gradients of x and the parameters, plus the parts that sweep 3 left.
  TensorList reverse(const Sweeps& sweeps, const Kept& kept, const std::vector<TensorList>& parts, bool wants_x,
                     const Flags& wanted, const at::Tensor& g) const;

  // ∂⟨v, J⟩ with respect to (x and parameters), and with respect to g, differentiable.
  std::pair<TensorList, at::Tensor> tangent(const Sweeps& sweeps, const Kept& kept, const at::Tensor& g,
                                            const at::Tensor& seed) const;

 private:
  pybind11::object reference_;
};

}  // namespace datagrad
