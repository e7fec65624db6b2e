// Looks at many tables of Python at once.
#pragma once

#include <pybind11/pybind11.h>

namespace datagrad {

// Adds two functions of (tables, known), dicts and as many tuples, to the module. `same_objects` tells whether the values of each dict
// are, in order, the objects in its tuple, where an ellipsis stands for anything but None; `same_gradients` whether their flags
// requires_grad are, and None stands for None.
void define_tables(pybind11::module_& m);

}  // namespace datagrad
