// Whether tables of Python still hold the very objects that they held: a network of many modules is asked at every call.
#include <unchanged.h>

namespace py = pybind11;

namespace datagrad {
namespace {

bool holds(PyObject* table, PyObject* known) {
  if (PyDict_Size(table) != PyTuple_GET_SIZE(known)) return false;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t place = 0;
  for (Py_ssize_t i = 0; PyDict_Next(table, &place, &key, &value); ++i) {
    PyObject* expected = PyTuple_GET_ITEM(known, i);
    if (expected == Py_Ellipsis ? value == Py_None : value != expected) return false;
  }
  return true;
}

bool unchanged(const py::list& tables, const py::list& known) {
  if (tables.size() != known.size()) return false;
  for (size_t i = 0; i < tables.size(); ++i) {
    PyObject *table = PyList_GET_ITEM(tables.ptr(), i), *values = PyList_GET_ITEM(known.ptr(), i);
    if (!PyDict_Check(table) || !PyTuple_CheckExact(values)) throw py::type_error("unchanged: takes dicts and tuples");
    if (!holds(table, values)) return false;
  }
  return true;
}

}  // namespace

void define_unchanged(py::module_& m) { m.def("unchanged", &unchanged); }

}  // namespace datagrad
