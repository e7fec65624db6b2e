// Calls of ops past torch's dispatcher, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace datagrad {

// Adds two functions to the module. `find_torch()` looks for what direct calls need of torch: AttributeError where it is not there.
// `direct(name, op)` returns a function that does what `op`, torch's, does; `library` is a handle of dlopen, whose op it is.
void define_direct(pybind11::module_& m, void* library);

}  // namespace datagrad
