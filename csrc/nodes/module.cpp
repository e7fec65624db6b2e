// datagrad_ext._nodes: nodes of torch's autograd engine for networks that are one chain. It is compiled for one torch: its classes are
// not part of the stable ABI. Whether it is that torch, who imports it has looked.
//
//   Network(direct_ops, reference, links, inner_links, places, is_weight, is_below, curved, eps, parts)
//       what is behind `reference` is in datagrad_ext/layers/compiled.py; its call network(x, params, what fold_norms reads) returns y,
//       or None where nodes cannot take the call

#include <nodes/nodes.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

namespace py = pybind11;

namespace datagrad {
namespace {

std::shared_ptr<Network> make(const py::capsule& direct, py::object reference, std::string links, std::string inner,
                              std::vector<size_t> places, Flags is_weight, Flags is_below, bool curved,
                              std::vector<double> eps, std::vector<Folds::Part> parts) {
  const DirectOps& ops = *direct.get_pointer<DirectOps>();
  Chain::Links all = {std::move(links), std::move(inner), std::move(places), std::move(is_weight), std::move(is_below), curved};
  Folds folds(ops, std::move(eps), std::move(parts));
  return std::shared_ptr<Network>(new Network{Chain(ops, std::move(all)), std::move(folds), Reference(std::move(reference))});
}

// The tensors, if all are plain ones.
std::optional<TensorList> plain(const py::sequence& values) {
  TensorList list;
  list.reserve(values.size());
  for (const py::handle& value : values) {
    if (!THPVariable_CheckExact(value.ptr())) return std::nullopt;
    list.push_back(THPVariable_Unpack(value.ptr()));
    if (!is_plain(list.back())) return std::nullopt;
  }
  return list;
}

bool requires_grad(const at::Tensor& t) { return t.requires_grad(); }

py::object call(const std::shared_ptr<Network>& network, const py::object& x, const py::sequence& params, const py::sequence& given) {
  if (is_watched() || !at::GradMode::is_enabled()) return py::none();
  const auto inputs = plain(py::make_tuple(x)), tensors = plain(params), folds = plain(given);
  if (!inputs || !tensors || !folds || inputs->front().dim() == 0) return py::none();
  const at::Tensor& input = inputs->front();
  if (!input.requires_grad() && std::none_of(tensors->begin(), tensors->end(), requires_grad)) return py::none();
  const auto has_dtype = [&](const at::Tensor& t) { return t.scalar_type() == input.scalar_type(); };
  if (!std::all_of(folds->begin(), folds->end(), has_dtype)) return py::none();
  at::Tensor y;
  {
    const py::gil_scoped_release unlocked;
    y = apply(network, input, *tensors, *folds);
  }
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(y));
}

}  // namespace
}  // namespace datagrad

PYBIND11_MODULE(_nodes, m) {
  m.doc() = "Nodes of torch's autograd engine for networks that are one chain.";
  py::class_<datagrad::Network, std::shared_ptr<datagrad::Network>>(m, "Network")
      .def(py::init(&datagrad::make))
      .def("__call__", &datagrad::call);
}
