// Whether tables of Python still hold what they held: a network of many modules is asked at every call.
#include <tables.h>

#include <references.h>

namespace py = pybind11;

namespace datagrad {
namespace {

bool is_known(PyObject* value, PyObject* known) { return known == Py_Ellipsis ? value != Py_None : value == known; }

bool has_known_gradient(PyObject* value, PyObject* known) {
  static PyObject* const kName = PyUnicode_InternFromString("requires_grad");
  if (value == Py_None || known == Py_None) return value == known;
  return checked(PyObject_GetAttr(value, kName)).ptr() == known;
}

template <bool is_same(PyObject*, PyObject*)>
bool hold(const py::list& tables, const py::list& known) {
  if (tables.size() != known.size()) return false;
  for (size_t i = 0; i < tables.size(); ++i) {
    PyObject *table = PyList_GET_ITEM(tables.ptr(), i), *values = PyList_GET_ITEM(known.ptr(), i);
    if (!PyDict_Check(table) || !PyTuple_CheckExact(values)) throw py::type_error("takes dicts and tuples");
    if (PyDict_Size(table) != PyTuple_GET_SIZE(values)) return false;
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t place = 0;
    for (Py_ssize_t k = 0; PyDict_Next(table, &place, &key, &value); ++k) {
      if (!is_same(value, PyTuple_GET_ITEM(values, k))) return false;
    }
  }
  return true;
}

}  // namespace

void define_tables(py::module_& m) {
  m.def("same_objects", &hold<is_known>);
  m.def("same_gradients", &hold<has_known_gradient>);
}

}  // namespace datagrad
