// How a function of an op becomes a row of the table of direct calls.
#pragma once

#include <common/chain_plan.h>
#include <common/direct.h>

#include <iterator>
#include <type_traits>
#include <utility>

namespace datagrad {
namespace {

// Whether t is dense and on the CPU, with memory of its own: no wrapper (which has none to show), no lazy zero.
inline bool is_plain(const Tensor& t) {
  int32_t layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(t.get(), &layout));
  if (!t.is_cpu() || layout != aoti_torch_layout_strided()) return false;
  const void* memory = nullptr;
  return torch_get_const_data_ptr(t.get(), &memory) == AOTI_TORCH_SUCCESS && (memory != nullptr || t.numel() == 0);
}

// A parameter of an op: the kind of argument it takes, and what it is made of.
template <class T>
struct Taken;

template <Argument::Kind kind_, bool optional_ = false>
struct One {
  static bool fits(const Argument& a) { return a.kind == kind_ ? a.count == 1 : optional_ && a.kind == Argument::nothing; }
};

// An empty list has no kind.
template <Argument::Kind kind_>
struct Many {
  static bool fits(const Argument& a) { return a.kind == kind_ || a.kind == Argument::nothing; }
};

template <>
struct Taken<Tensor> : One<Argument::tensor> {
  static const Tensor& from(const Argument& a, const DirectCall&, Tensors& all) { return all[a.first]; }
};

template <>
struct Taken<std::optional<Tensor>> : One<Argument::tensor, true> {
  static std::optional<Tensor> from(const Argument& a, const DirectCall&, Tensors& all) {
    return a.count == 0 ? std::nullopt : std::optional<Tensor>(all[a.first]);
  }
};

template <>
struct Taken<Tensors> : Many<Argument::tensor> {
  // The op's own, which may let go of one before it ends.
  static Tensors from(const Argument& a, const DirectCall&, Tensors& all) {
    const auto first = std::make_move_iterator(all.begin() + static_cast<int64_t>(a.first));
    return Tensors(first, first + static_cast<int64_t>(a.count));
  }
};

template <>
struct Taken<Flags> : Many<Argument::flag> {
  static Flags from(const Argument& a, const DirectCall& call, Tensors&) {
    return Flags(call.flags.begin() + a.first, call.flags.begin() + a.first + a.count);
  }
};

template <>
struct Taken<bool> : One<Argument::flag> {
  static bool from(const Argument& a, const DirectCall& call, Tensors&) { return call.flags[a.first]; }
};

template <>
struct Taken<std::vector<double>> : Many<Argument::number> {
  static std::vector<double> from(const Argument& a, const DirectCall& call, Tensors&) {
    return std::vector<double>(call.numbers.begin() + a.first, call.numbers.begin() + a.first + a.count);
  }
};

template <>
struct Taken<double> : One<Argument::number> {
  static double from(const Argument& a, const DirectCall& call, Tensors&) { return call.numbers[a.first]; }
};

template <>
struct Taken<std::string> : One<Argument::text> {
  static std::string from(const Argument& a, const DirectCall&, Tensors&) { return a.characters; }
};

template <class... Parameters, size_t... place>
bool fit(Tensors (*)(Parameters...), const DirectCall& call, std::index_sequence<place...>) {
  return (Taken<std::decay_t<Parameters>>::fits(call.arguments[place]) && ...);
}

template <class... Parameters, size_t... place>
Tensors run_unlocked(Tensors (*op)(Parameters...), const DirectCall& call, Tensors& all, std::index_sequence<place...>) {
  struct Unlocked {
    const DirectCall& call;
    void* state = call.unlock(call.caller);
    ~Unlocked() { call.lock(state); }
  } unlocked{call};
  return op(Taken<std::decay_t<Parameters>>::from(call.arguments[place], call, all)...);
}

template <class... Parameters>
constexpr size_t count_of(Tensors (*)(Parameters...)) {
  static_assert(sizeof...(Parameters) <= DirectCall::kMaxArguments);
  return sizeof...(Parameters);
}

template <auto op>
bool run_directly(DirectCall& call) {
  constexpr auto places = std::make_index_sequence<count_of(op)>();
  Tensors all;  // what the op does not let go of goes under the lock
  all.reserve(call.tensors.size());
  for (void* handle : call.tensors) all.emplace_back(static_cast<AtenTensorHandle>(handle));
  if (!fit(op, call, places) || !std::all_of(all.begin(), all.end(), is_plain)) return false;
  const Tensors found = run_unlocked(op, call, all, places);
  call.results.reserve(found.size());
  for (const Tensor& t : found) {
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(t.get(), &handle));
    call.results.push_back(handle);
  }
  return true;
}

template <auto op>
constexpr DirectOp direct_op(const char* name) {
  return {name, count_of(op), &run_directly<op>};
}

}  // namespace
}  // namespace datagrad
