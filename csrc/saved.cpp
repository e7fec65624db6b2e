// Every backward packs and unpacks what all layers have saved, so a small network notices each step of it.
#include <saved.h>

#include <references.h>

#include <unordered_map>

namespace py = pybind11;

namespace datagrad {
namespace {

class Packing {
 public:
  Packing(PyObject* tensors, PyObject* tensor) : tensors_(tensors), tensor_(reinterpret_cast<PyTypeObject*>(tensor)) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) places_[PyList_GET_ITEM(tensors, i)] = i;
  }

  py::object layout(PyObject* given) {
    const py::object items = checked(PySequence_Fast(given, "what is saved must be a sequence"));
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(items.ptr());
    py::object found = checked(PyList_New(size));
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyList_SET_ITEM(found.ptr(), i, item(PySequence_Fast_GET_ITEM(items.ptr(), i)).release().ptr());
    }
    return found;
  }

 private:
  py::object item(PyObject* value) {
    if (PyObject_TypeCheck(value, tensor_)) return place(value);
    return PyTuple_CheckExact(value) ? layout(value) : checked(PyTuple_Pack(1, value));
  }

  py::object place(PyObject* tensor) {
    const auto [found, is_new] = places_.try_emplace(tensor, PyList_GET_SIZE(tensors_));
    if (is_new && PyList_Append(tensors_, tensor) != 0) throw py::error_already_set();
    return checked(PyLong_FromSsize_t(found->second));
  }

  PyObject* tensors_;
  PyTypeObject* tensor_;
  std::unordered_map<PyObject*, Py_ssize_t> places_;
};

py::list packed(const py::list& items, py::list tensors, const py::type& tensor) {
  Packing packing(tensors.ptr(), tensor.ptr());
  py::list found(items.size());
  for (size_t i = 0; i < items.size(); ++i) PyList_SET_ITEM(found.ptr(), i, packing.layout(PyList_GET_ITEM(items.ptr(), i)).release().ptr());
  return found;
}

py::object put_together(PyObject* layout, PyObject* tensors) {
  const Py_ssize_t size = PyList_GET_SIZE(layout);
  py::object found = checked(PyTuple_New(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* place = PyList_GET_ITEM(layout, i);
    py::object value;
    if (PyLong_CheckExact(place)) {
      value = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(tensors, PyLong_AsSsize_t(place)));
    } else if (PyTuple_CheckExact(place)) {
      value = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(place, 0));
    } else {
      value = put_together(place, tensors);
    }
    PyTuple_SET_ITEM(found.ptr(), i, value.release().ptr());
  }
  return found;
}

py::list unpacked(const py::list& layouts, const py::tuple& tensors) {
  py::list found(layouts.size());
  for (size_t i = 0; i < layouts.size(); ++i) {
    PyList_SET_ITEM(found.ptr(), i, put_together(PyList_GET_ITEM(layouts.ptr(), i), tensors.ptr()).release().ptr());
  }
  return found;
}

}  // namespace

void define_saved(py::module_& m) {
  m.def("packed", &packed);
  m.def("unpacked", &unpacked);
}

}  // namespace datagrad
