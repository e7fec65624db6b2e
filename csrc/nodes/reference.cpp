#include <nodes/reference.h>

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>

namespace py = pybind11;

namespace datagrad {
namespace {

py::object of(const at::Tensor& t) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(t)); }  // None if it is undefined

py::list of(const TensorList& list) {
  py::list found;
  for (const at::Tensor& t : list) found.append(of(t));
  return found;
}

py::tuple of(const Flags& flags) {
  py::list found;
  for (const bool flag : flags) found.append(py::bool_(flag));
  return py::tuple(found);
}

// What the layer in Python is shown of what its forward kept.
py::tuple saved_of(const Sweeps& sweeps, const Kept& kept) {
  return py::make_tuple(of(kept.folds), sweeps.links(), of(kept.entered), of(kept.saved));
}

at::Tensor tensor_of(const py::handle& value) { return value.is_none() ? at::Tensor() : THPVariable_Unpack(value.ptr()); }

TensorList tensors_of(const py::handle& values) {
  TensorList found;
  for (const py::handle& value : values) found.push_back(tensor_of(value));
  return found;
}

// Runs Python; an error of Python leaves as torch's engine takes it.
template <class Run>
auto in_python(const Run& run) {
  const py::gil_scoped_acquire lock;
  try {
    return run();
  } catch (py::error_already_set& error) {
    error.restore();
    python_error kept;
    kept.persist();
    throw kept;
  }
}

}  // namespace

Reference::~Reference() {
  if (!Py_IsInitialized()) {
    reference_.release();
    return;
  }
  const py::gil_scoped_acquire lock;
  reference_ = py::object();
}

bool Reference::is_needed(const TensorList& cotangents, bool differentiable) const {
  const bool plain = std::all_of(cotangents.begin(), cotangents.end(), [](const at::Tensor& t) { return !t.defined() || is_plain(t); });
  if (!differentiable && plain && !is_transformed()) return false;
  return in_python([&] { return reference_.attr("needed")(of(cotangents), differentiable).cast<bool>(); });
}

TensorList Reference::reverse(const Sweeps& sweeps, const Kept& kept, const std::vector<TensorList>& parts, bool wants_x,
                              const Flags& wanted, const at::Tensor& g) const {
  Flags all = {wants_x};
  all.insert(all.end(), wanted.begin(), wanted.end());
  return in_python([&] {
    py::list each;
    for (const TensorList& part : parts) each.append(of(part));
    const py::tuple x = py::make_tuple(of(kept.x)), gs = py::make_tuple(of(g));
    return tensors_of(reference_.attr("reverse")(x, of(kept.params), saved_of(sweeps, kept), each, of(all), gs));
  });
}

std::pair<TensorList, at::Tensor> Reference::tangent(const Sweeps& sweeps, const Kept& kept, const at::Tensor& g,
                                                      const at::Tensor& seed) const {
  return in_python([&] {
    const py::tuple x = py::make_tuple(of(kept.x)), gs = py::make_tuple(of(g)), seeds = py::make_tuple(of(seed));
    const py::tuple wanted = py::make_tuple(true);  // x: there is no other data gradient
    const py::tuple found = reference_.attr("tangent")(x, of(kept.params), saved_of(sweeps, kept), wanted, gs, seeds);
    return std::make_pair(tensors_of(found[0]), tensors_of(found[1]).at(0));
  });
}

}  // namespace datagrad
