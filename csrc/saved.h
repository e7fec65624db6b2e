// What layers save, taken apart into tensors and the rest, and put together again.
#pragma once

#include <pybind11/pybind11.h>

namespace datagrad {

// Adds `packed(items, tensors, Tensor)` and `unpacked(layout, tensors)` to the module, which are those of datagrad_ext/_native.py.
void define_saved(pybind11::module_& m);

}  // namespace datagrad
