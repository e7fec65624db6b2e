// datagrad_ext._C: importing it loads the kernel libraries beside it, which registers their ops with torch; it also tells how
// they were built. The CPU library is the one for this processor; the CUDA library is loaded where torch has CUDA.
//
//   build_info()   dict, the record of the build
//   isa            str or None: instruction set of the loaded CPU library
//   loaded         dict, device ('CPU', 'CUDA', and 'cuDNN' for fused convolutions on CUDA) -> file name of the loaded library
//   not_loaded     dict, device -> sentence that says why there is none
//   same_objects, same_gradients     functions: csrc/tables.h
//   packed, unpacked     functions: csrc/saved.h
//   find_torch, direct     functions, where the CPU library is loaded: csrc/direct.h

#include <direct.h>

#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <saved.h>
#include <tables.h>

#include <algorithm>
#include <string>
#include <vector>

#include "build_info.h"  // BUILD_INFO, a JSON text, and LIBRARY_SUFFIX; written by the build

namespace py = pybind11;

namespace {

py::object build_info() { return py::module_::import("json").attr("loads")(BUILD_INFO); }

// The directory of the kernel libraries: lib/ beside this module.
std::string library_directory() {
  Dl_info self;
  if (!dladdr(reinterpret_cast<const void*>(&library_directory), &self)) return "lib/";
  const std::string path(self.dli_fname);
  return path.substr(0, path.rfind('/') + 1) + "lib/";
}

// The instruction set to use among those built: torch's choice for this processor (ATEN_CPU_CAPABILITY lowers it) or the next
// lower one; "" if none was built.
std::string choose_isa(const py::object& torch, const py::object& built) {
  const std::vector<std::string> descending = {"avx512", "avx2", "default"};
  const auto capability =
      torch.attr("backends").attr("cpu").attr("get_cpu_capability")().attr("lower")().cast<std::string>();
  auto isa = std::find(descending.begin(), descending.end() - 1, capability);
  while (isa != descending.end() && !built.contains(*isa)) ++isa;
  return isa == descending.end() ? "" : *isa;
}

// Loads one library and records the outcome under `device`; null if it did not load. The handle stays open for the life of the
// process: torch keeps its functions.
void* load(const std::string& device, const std::string& name, py::dict& loaded, py::dict& not_loaded) {
  const std::string file = name + LIBRARY_SUFFIX;
  void* library = dlopen((library_directory() + file).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) {
    loaded[py::str(device)] = file;
  } else {
    not_loaded[py::str(device)] = std::string("the library did not load: ") + dlerror();
  }
  return library;
}

py::object reason_not_built(const py::object& info, const char* part) {
  return info.attr("get")("not_built").attr("get")(part, "it was not built");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Loads datagrad_ext's compiled kernels and tells how they were built.";
  m.def("build_info", &build_info, "The record of the build: versions, instruction sets, architectures, what was not built and why.");
  datagrad::define_tables(m);
  datagrad::define_saved(m);
  const py::object torch = py::module_::import("torch");  // its libraries must be there before ours
  const py::object info = build_info();
  py::dict loaded;
  py::dict not_loaded;

  const std::string isa = choose_isa(torch, info["cpu_isas"]);
  m.attr("isa") = py::none();
  if (isa.empty()) {
    not_loaded["CPU"] = reason_not_built(info, "cpu_default");
  } else if (void* library = load("CPU", "libdatagrad_cpu_" + isa, loaded, not_loaded)) {
    m.attr("isa") = isa;
    datagrad::define_direct(m, library);
  }

  if (py::len(info["cuda_architectures"]) == 0) {
    not_loaded["CUDA"] = reason_not_built(info, "cuda");
  } else if (torch.attr("version").attr("cuda").is_none()) {
    not_loaded["CUDA"] = "this torch (" + torch.attr("__version__").attr("__str__")().cast<std::string>() + ") has no CUDA";
  } else {
    load("CUDA", "libdatagrad_cuda", loaded, not_loaded);
  }
  // On top of the CUDA library: fused convolutions.
  if (!info["cudnn"].cast<bool>()) {
    not_loaded["cuDNN"] = reason_not_built(info, "cudnn");
  } else if (loaded.contains("CUDA")) {
    load("cuDNN", "libdatagrad_cudnn", loaded, not_loaded);
  } else {
    not_loaded["cuDNN"] = not_loaded["CUDA"];
  }
  m.attr("loaded") = loaded;
  m.attr("not_loaded") = not_loaded;
}
