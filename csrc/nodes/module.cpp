// datagrad_ext._nodes: nodes of torch's autograd engine for networks that are one layer. It is compiled for one torch: its classes are
// not part of the stable ABI. Whether it is that torch, who imports it has looked.
//
//   Chain(direct_ops, …), Images(direct_ops, …)     the sweeps of a layer: ChainSweeps and ImageSweeps of layers/compiled.py
//   Network(direct_ops, reference, eps, parts)      what is beyond the fast path, and norms that are folded
//   network(x, params, sweeps, given, moving)       y, or None where nodes cannot take the call. given: what fold_norms reads; moving:
//                                                   None, or a function that gives the running statistics to update, and momenta
//   saved_bytes(y)                                  what that call keeps

#include <nodes/chain.h>
#include <nodes/images.h>
#include <nodes/nodes.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace py = pybind11;

namespace datagrad {
namespace {

const DirectOps& ops_of(const py::capsule& direct) { return *direct.get_pointer<DirectOps>(); }

std::shared_ptr<Network> network_of(const py::capsule& direct, py::object reference, std::vector<double> eps,
                                    std::vector<Folds::Part> parts) {
  Folds folds(ops_of(direct), std::move(eps), std::move(parts));
  return std::shared_ptr<Network>(new Network{std::move(folds), Reference(std::move(reference))});
}

std::shared_ptr<Chain> chain_of(const py::capsule& direct, std::string links, std::string inner, std::vector<size_t> places,
                                Flags is_weight, Flags is_below, bool curved) {
  Chain::Links all = {std::move(links), std::move(inner), std::move(places), std::move(is_weight), std::move(is_below), curved};
  return std::make_shared<Chain>(ops_of(direct), std::move(all));
}

using Place = std::optional<size_t>;

std::shared_ptr<Images> images_of(const py::capsule& direct, std::string links, bool outer, bool inner,
                                  const std::vector<std::tuple<bool, Place, Place, bool, bool>>& units) {
  std::vector<Images::Unit> all;
  for (const auto& [reads_x, weight, record, curved, marked] : units) all.push_back({reads_x, weight, record, curved, marked});
  return std::make_shared<Images>(ops_of(direct), std::move(links), outer, inner, std::move(all));
}

Moving moving_of(const py::object& read) {
  Moving found;
  if (read.is_none()) return found;
  const auto [statistics, momenta] = read().cast<std::pair<py::list, std::vector<double>>>();
  for (const py::handle& each : statistics) found.statistics.push_back(THPVariable_Unpack(each.ptr()));
  found.momenta = momenta;
  return found;
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

py::object call(const std::shared_ptr<Network>& network, const py::object& x, const py::sequence& params,
                const std::shared_ptr<Sweeps>& sweeps, const py::sequence& given, const py::object& moving) {
  if (is_watched() || !at::GradMode::is_enabled()) return py::none();
  const auto inputs = plain(py::make_tuple(x)), tensors = plain(params), folds = plain(given);
  if (!inputs || !tensors || !folds || inputs->front().dim() == 0) return py::none();
  const at::Tensor& input = inputs->front();
  if (!input.requires_grad() && std::none_of(tensors->begin(), tensors->end(), requires_grad)) return py::none();
  const auto has_dtype = [&](const at::Tensor& t) { return t.scalar_type() == input.scalar_type(); };
  if (!std::all_of(folds->begin(), folds->end(), has_dtype)) return py::none();
  const Moving updated = moving_of(moving);  // it counts the call: from here on it is taken
  at::Tensor y;
  {
    const py::gil_scoped_release unlocked;
    y = apply(network, sweeps, input, *tensors, *folds, updated);
  }
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(y));
}

int64_t bytes_of(const py::object& y) { return saved_bytes(THPVariable_Unpack(y.ptr())); }

}  // namespace
}  // namespace datagrad

PYBIND11_MODULE(_nodes, m) {
  using namespace datagrad;
  m.doc() = "Nodes of torch's autograd engine for networks that are one layer.";
  py::class_<Sweeps, std::shared_ptr<Sweeps>>(m, "Sweeps");
  py::class_<Chain, Sweeps, std::shared_ptr<Chain>>(m, "Chain").def(py::init(&chain_of));
  py::class_<Images, Sweeps, std::shared_ptr<Images>>(m, "Images").def(py::init(&images_of));
  py::class_<Network, std::shared_ptr<Network>>(m, "Network").def(py::init(&network_of)).def("__call__", &call);
  m.def("saved_bytes", &bytes_of);
}
