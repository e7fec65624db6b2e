#include <nodes/call.h>

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <stdexcept>

namespace datagrad {
namespace {

constexpr c10::DispatchKeySet kPlain({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::ADInplaceOrView,
                                      c10::DispatchKey::AutocastCPU});

// A handle that the call owns.
void* handle_of(const at::Tensor& t) { return new at::Tensor(t); }

}  // namespace

bool is_plain(const at::Tensor& t) { return t.defined() && (t.key_set().raw_repr() & ~kPlain.raw_repr()) == 0; }

bool is_watched() {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() || at::impl::torch_function_mode_enabled() ||
         torch::jit::tracer::isTracing() || is_transformed();
}

bool is_transformed() { return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode); }

Op::Op(const DirectOps& direct, const std::string& name)
    : direct_(direct.find(name)),
      name_("datagrad::" + name),
      handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name_.c_str(), "")) {
  if (direct_ == nullptr) throw std::out_of_range(name_ + " cannot be called directly");
}

bool Op::run(DirectCall& call, std::vector<TensorList*>& given) const {
  RECORD_FUNCTION(name_, c10::ArrayRef<const c10::IValue>());
  call.caller = &given;
  // Nobody here holds Python's lock.
  call.unlock = [](void* lists) -> void* {
    clear(*static_cast<std::vector<TensorList*>*>(lists));
    return nullptr;
  };
  call.lock = [](void*) {};
  return direct_->run(call);
}

TensorList Op::dispatched(std::vector<c10::IValue>& stack) const {
  handle_.callBoxed(stack);
  return stack.at(0).toTensorVector();
}

TensorList Op::results_of(DirectCall& call) {
  TensorList found;
  found.reserve(call.results.size());
  for (void* handle : call.results) {
    auto* t = static_cast<at::Tensor*>(handle);
    found.push_back(std::move(*t));
    delete t;
  }
  return found;
}

void Op::put(DirectCall& call, Argument& argument, const at::Tensor& t) {
  argument = {Argument::tensor, call.tensors.size(), 1, ""};
  call.tensors.push_back(handle_of(t));
}

void Op::put(DirectCall& call, Argument& argument, const std::optional<at::Tensor>& t) {
  if (t) put(call, argument, *t);
}

void Op::put(DirectCall& call, Argument& argument, const TensorList& list) {
  if (list.empty()) return;  // an empty list has no kind
  argument = {Argument::tensor, call.tensors.size(), list.size(), ""};
  call.tensors.reserve(call.tensors.size() + list.size());
  for (const at::Tensor& t : list) call.tensors.push_back(handle_of(t));
}

void Op::put(DirectCall& call, Argument& argument, const Flags& flags) {
  if (flags.empty()) return;
  argument = {Argument::flag, call.flags.size(), flags.size(), ""};
  call.flags.insert(call.flags.end(), flags.begin(), flags.end());
}

void Op::put(DirectCall& call, Argument& argument, bool flag) { put(call, argument, Flags{flag}); }

void Op::put(DirectCall& call, Argument& argument, const std::vector<double>& numbers) {
  if (numbers.empty()) return;
  argument = {Argument::number, call.numbers.size(), numbers.size(), ""};
  call.numbers.insert(call.numbers.end(), numbers.begin(), numbers.end());
}

void Op::put(DirectCall&, Argument& argument, const std::string& text) { argument = {Argument::text, 0, 1, text.c_str()}; }

c10::IValue Op::value_of(const Flags& flags) {
  c10::List<bool> list;
  for (const bool flag : flags) list.push_back(flag);
  return list;
}

}  // namespace datagrad
