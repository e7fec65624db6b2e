// A look at many tables of Python at once.
#pragma once

#include <pybind11/pybind11.h>

namespace datagrad {

// Adds a function to the module: `unchanged(tables, known)`, dicts and tuples, tells whether the values of each dict are, in order,
// the objects in its tuple. An ellipsis there stands for anything but None.
void define_unchanged(pybind11::module_& m);

}  // namespace datagrad
