// A direct call hands tensors over as AOTInductor's generated code does. It is made where nobody looks at the calls of ops (modes,
// transforms, tracing, autograd) and every tensor is a plain one; else torch's op is called with the same arguments. The profiler is
// told of a direct call.
#include <direct.h>

#include <common/direct.h>

#include <dlfcn.h>
#include <references.h>

#include <string>
#include <vector>

namespace py = pybind11;

namespace datagrad {
namespace {

// What of torch a call needs.
struct Torch {
  py::object tensor, parameter, is_negated, to_handles, from_handles, is_profiled, record;
  std::vector<py::object> watchers;  // functions of nothing: whether somebody looks, or how many

  Torch() {
    const py::module_ torch = py::module_::import("torch"), C = py::module_::import("torch._C");
    tensor = torch.attr("Tensor");
    parameter = torch.attr("nn").attr("Parameter");
    is_negated = tensor.attr("is_neg");
    to_handles = C.attr("_aoti").attr("unsafe_alloc_void_ptrs_from_tensors");
    from_handles = C.attr("_aoti").attr("alloc_tensors_by_stealing_from_void_ptrs");
    is_profiled = C.attr("_autograd").attr("_profiler_enabled");
    record = C.attr("_profiler").attr("_RecordFunctionFast");
    watchers = {torch.attr("is_grad_enabled"),
                C.attr("_len_torch_dispatch_stack"),
                C.attr("_len_torch_function_stack"),
                C.attr("_get_tracing_state"),
                C.attr("_are_functorch_transforms_active")};
  }

  // Outlives the interpreter.
  static const Torch& get() {
    static const Torch* torch = new Torch();
    return *torch;
  }

  bool is_watched() const {
    for (const py::object& watcher : watchers) {
      if (PyObject_IsTrue(checked(PyObject_CallNoArgs(watcher.ptr())).ptr())) return true;
    }
    return false;
  }

  // Whether value is a tensor of no other class whose elements are what its memory says.
  bool is_plain(PyObject* value) const {
    auto* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
    if (type != tensor.ptr() && type != parameter.ptr()) return false;
    return checked(PyObject_CallOneArg(is_negated.ptr(), value)).ptr() == Py_False;
  }
};

// The arguments of a call as they are taken from Python: first everything, then the tensors at once.
class Reader {
 public:
  Reader(const Torch& torch, DirectCall& call) : torch_(torch), call_(call) {
    call_.flags.reserve(64);
    call_.numbers.reserve(8);
  }

  // Whether a direct call can have this argument.
  bool read(Argument& argument, PyObject* value) {
    if (value == Py_None) return true;
    if (PyUnicode_Check(value)) {
      argument.kind = Argument::text;
      argument.count = 1;
      argument.characters = PyUnicode_AsUTF8(value);
      return argument.characters != nullptr;
    }
    if (!PyList_CheckExact(value) && !PyTuple_CheckExact(value)) return read_one(argument, value);
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i) {
      if (!read_one(argument, PySequence_Fast_GET_ITEM(value, i))) return false;
    }
    return true;
  }

  void hand_over_tensors() {
    const py::object handles = checked(PyObject_CallOneArg(torch_.to_handles.ptr(), tensors_.ptr()));
    const Py_ssize_t count = PyList_GET_SIZE(handles.ptr());
    call_.tensors.reserve(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* handle = PyList_GET_ITEM(handles.ptr(), i);
      call_.tensors.push_back(PyCapsule_GetPointer(handle, PyCapsule_GetName(handle)));
    }
    tensors_ = py::list();
  }

 private:
  bool read_one(Argument& argument, PyObject* value) {
    if (PyBool_Check(value)) {
      return count(argument, Argument::flag, call_.flags.size()) && (call_.flags.push_back(value == Py_True), true);
    }
    if (PyFloat_CheckExact(value)) {
      return count(argument, Argument::number, call_.numbers.size()) &&
             (call_.numbers.push_back(PyFloat_AS_DOUBLE(value)), true);
    }
    if (!torch_.is_plain(value) || !count(argument, Argument::tensor, PyList_GET_SIZE(tensors_.ptr()))) return false;
    if (PyList_Append(tensors_.ptr(), value) != 0) throw py::error_already_set();
    return true;
  }

  // One element more, of the same kind as the others.
  static bool count(Argument& argument, Argument::Kind kind, size_t place) {
    if (argument.count == 0) argument = {kind, place, 0, ""};
    ++argument.count;
    return argument.kind == kind;
  }

  const Torch& torch_;
  DirectCall& call_;
  py::list tensors_;
};

// Tells the profiler, if it runs, of a call.
class Recorded {
 public:
  Recorded(const Torch& torch, const char* name) {
    if (!checked(PyObject_CallNoArgs(torch.is_profiled.ptr())).is(py::bool_(true))) return;
    record_ = torch.record(std::string("datagrad::") + name);
    record_.attr("__enter__")();
  }
  Recorded(const Recorded&) = delete;
  ~Recorded() {
    if (record_) record_.attr("__exit__")(py::none(), py::none(), py::none());
  }

 private:
  py::object record_;
};

struct Op {
  const DirectOp* direct;
  py::object dispatched;
  std::vector<size_t> given;  // arguments that are lists of the op's own: it may let go of a tensor before it ends
};

// The lists that go to the op when it begins.
struct Given {
  std::vector<PyObject*> lists;

  static void* unlock(void* given) {
    for (PyObject* list : static_cast<Given*>(given)->lists) {
      if (PyList_SetSlice(list, 0, PyList_GET_SIZE(list), nullptr) != 0) throw py::error_already_set();
    }
    return PyEval_SaveThread();
  }
};

py::object tensors_of(const Torch& torch, const std::vector<void*>& results) {
  const py::object handles = checked(PyList_New(results.size()));
  for (size_t i = 0; i < results.size(); ++i) {
    PyList_SET_ITEM(handles.ptr(), i, checked(PyCapsule_New(results[i], nullptr, nullptr)).release().ptr());
  }
  return checked(PyObject_CallOneArg(torch.from_handles.ptr(), handles.ptr()));
}

// The results, or none where torch's op must be called.
py::object call_directly(const Op& op, PyObject* const* values, Py_ssize_t count) {
  const Torch& torch = Torch::get();
  if (static_cast<size_t>(count) != op.direct->arguments || torch.is_watched()) return {};
  DirectCall call;
  Given given;
  for (const size_t place : op.given) {
    if (PyList_CheckExact(values[place])) given.lists.push_back(values[place]);
  }
  call.caller = &given;
  call.unlock = &Given::unlock;
  call.lock = [](void* state) { PyEval_RestoreThread(static_cast<PyThreadState*>(state)); };
  Reader reader(torch, call);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!reader.read(call.arguments[i], values[i])) return {};
  }
  reader.hand_over_tensors();
  const Recorded recorded(torch, op.direct->name);
  return op.direct->run(call) ? tensors_of(torch, call.results) : py::object();
}

PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  const Op& op = *static_cast<const Op*>(PyCapsule_GetPointer(self, nullptr));
  try {
    const py::object found = call_directly(op, values, count);
    return found ? found.inc_ref().ptr() : PyObject_Vectorcall(op.dispatched.ptr(), values, count, nullptr);
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef kCall = {"direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)), METH_FASTCALL, nullptr};

}  // namespace

void define_direct(py::module_& m, void* library) {
  const DirectOps ops = reinterpret_cast<decltype(&datagrad_direct_ops)>(dlsym(library, "datagrad_direct_ops"))();
  m.attr("direct_ops") = py::capsule(new DirectOps(ops), [](void* ops) { delete static_cast<DirectOps*>(ops); });
  m.def("find_torch", [] { Torch::get(); });
  m.def("direct", [ops](const std::string& name, py::object op, const py::tuple& given) {
    std::vector<size_t> places;
    for (const py::handle& place : given) places.push_back(place.cast<size_t>());
    const DirectOp* found = ops.find(name);
    if (found == nullptr) throw py::key_error(name);
    const py::capsule self(new Op{found, std::move(op), std::move(places)}, [](void* op) { delete static_cast<Op*>(op); });
    return checked(PyCFunction_New(&kCall, self.ptr()));
  });
}

}  // namespace datagrad
