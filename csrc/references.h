// What the functions of _C share to call Python's own interface.
#pragma once

#include <pybind11/pybind11.h>

namespace datagrad {

// The result of a call that returns a new reference, or null and sets an error.
inline pybind11::object checked(PyObject* result) {
  if (result == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(result);
}

}  // namespace datagrad
