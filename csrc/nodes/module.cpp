// datagrad_ext._nodes: nodes of torch's autograd engine for networks that are one chain. It is compiled for one torch: its classes are
// not part of the stable ABI. Whether it is that torch, who imports it has looked.
//
//   Network(direct_ops, reference, links, inner_links, places, is_weight, is_below, curved)
//       its call network(x, params) returns y, or None where nodes cannot take the call

#include <nodes/nodes.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>
#include <vector>

namespace py = pybind11;

namespace datagrad {
namespace {

std::shared_ptr<Network> make(const py::capsule& direct, py::object reference, std::string links, std::string inner, std::vector<size_t> places,
                    Flags is_weight, Flags is_below, bool curved) {
  Chain::Links all = {std::move(links), std::move(inner), std::move(places), std::move(is_weight), std::move(is_below), curved};
  return std::shared_ptr<Network>(new Network{Chain(*direct.get_pointer<DirectOps>(), std::move(all)), Reference(std::move(reference))});
}

bool take(PyObject* value, TensorList& list) {
  if (!THPVariable_CheckExact(value)) return false;
  list.push_back(THPVariable_Unpack(value));
  return is_plain(list.back());
}

py::object call(const std::shared_ptr<Network>& network, const py::handle& x, const py::list& params) {
  TensorList tensors;
  tensors.reserve(params.size());
  for (const py::handle& p : params) {
    if (!take(p.ptr(), tensors)) return py::none();
  }
  TensorList input;
  if (is_watched() || !at::GradMode::is_enabled() || !take(x.ptr(), input) || input[0].dim() == 0) return py::none();
  const auto requires_grad = [](const at::Tensor& t) { return t.requires_grad(); };
  if (!input[0].requires_grad() && std::none_of(tensors.begin(), tensors.end(), requires_grad)) return py::none();
  at::Tensor y;
  {
    const py::gil_scoped_release unlocked;
    y = apply(network, input[0], tensors);
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
