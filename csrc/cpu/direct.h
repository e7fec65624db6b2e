// How a function of an op becomes a row of the table of direct calls.
#pragma once

#include <common/chain_plan.h>
#include <common/direct.h>

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

template <class T>
T value_of(const Argument& from, const Tensors& tensors) {
  if constexpr (std::is_same_v<T, Tensor>) return tensors.at(0);
  if constexpr (std::is_same_v<T, Tensors>) return tensors;
  if constexpr (std::is_same_v<T, std::optional<Tensor>>) return tensors.empty() ? std::nullopt : T(tensors[0]);
  if constexpr (std::is_same_v<T, Flags>) return from.flags;
  if constexpr (std::is_same_v<T, bool>) return from.flags.at(0);
  if constexpr (std::is_same_v<T, std::vector<double>>) return from.numbers;
  if constexpr (std::is_same_v<T, double>) return from.numbers.at(0);
  if constexpr (std::is_same_v<T, std::string>) return from.text;
}

template <class... Parameters, size_t... place>
Tensors run_unlocked(Tensors (*op)(Parameters...), const DirectCall& call, const std::vector<Tensors>& tensors,
                     std::index_sequence<place...>) {
  struct Unlocked {
    const DirectCall& call;
    void* state = call.unlock();
    ~Unlocked() { call.lock(state); }
  } unlocked{call};
  return op(value_of<std::decay_t<Parameters>>(call.arguments.at(place), tensors[place])...);
}

template <class... Parameters>
Tensors run_unlocked(Tensors (*op)(Parameters...), const DirectCall& call, const std::vector<Tensors>& tensors) {
  return run_unlocked(op, call, tensors, std::index_sequence_for<Parameters...>());
}

template <auto op>
bool run_directly(DirectCall& call) {
  std::vector<Tensors> tensors(call.arguments.size());  // let go of under the lock, which a tensor of Python's needs for it
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (void* handle : call.arguments[i].tensors) tensors[i].push_back(Tensor(static_cast<AtenTensorHandle>(handle)));
  }
  for (const Tensors& list : tensors) {
    if (!std::all_of(list.begin(), list.end(), is_plain)) return false;
  }
  for (const Tensor& t : run_unlocked(op, call, tensors)) {
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(t.get(), &handle));
    call.results.push_back(handle);
  }
  return true;
}

}  // namespace
}  // namespace datagrad
