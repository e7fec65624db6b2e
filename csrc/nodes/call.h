// A call of one of the project's ops from C++ that knows torch: directly, as csrc/direct.cpp makes it for Python, or through torch's
// dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <common/direct.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

namespace datagrad {

using TensorList = std::vector<at::Tensor>;
using Flags = std::vector<bool>;

inline bool any(const Flags& flags) { return std::find(flags.begin(), flags.end(), true) != flags.end(); }

// A list that the caller gives away: it is empty once the op runs, which lets go of each tensor when it is done with it.
struct Given {
  TensorList& list;
};

// Whether t is a dense tensor on the CPU and no more: a kernel may read its memory, and nobody wants to see that.
bool is_plain(const at::Tensor& t);

// Whether somebody wants to see calls of ops: modes, transforms, tracing.
bool is_watched();

// Whether a torch.func transform is active.
bool is_transformed();

class Op {
 public:
  // `name` without the namespace. Throws std::out_of_range if it has no direct form.
  Op(const DirectOps& direct, const std::string& name);

  // The op's result, without a graph. The arguments are those of its schema, in their C++ types.
  template <class... Arguments>
  TensorList operator()(const Arguments&... arguments) const {
    const at::NoGradGuard no_grad;
    std::vector<TensorList*> given;
    (note(given, arguments), ...);
    if (!is_watched() && (are_plain(arguments) && ...)) {
      DirectCall call;
      size_t place = 0;
      (put(call, call.arguments[place++], arguments), ...);
      if (run(call, given)) return results_of(call);
    }
    std::vector<c10::IValue> stack = {value_of(arguments)...};
    clear(given);
    return dispatched(stack);
  }

 private:
  bool run(DirectCall& call, std::vector<TensorList*>& given) const;
  TensorList dispatched(std::vector<c10::IValue>& stack) const;
  static TensorList results_of(DirectCall& call);

  template <class T>
  static void note(std::vector<TensorList*>&, const T&) {}
  static void note(std::vector<TensorList*>& given, const Given& each) { given.push_back(&each.list); }
  static void clear(std::vector<TensorList*>& given) {
    for (TensorList* list : given) list->clear();
  }

  template <class T>
  static bool are_plain(const T&) {
    return true;
  }
  static bool are_plain(const at::Tensor& t) { return is_plain(t); }
  static bool are_plain(const std::optional<at::Tensor>& t) { return !t || is_plain(*t); }
  static bool are_plain(const Given& given) { return are_plain(given.list); }
  static bool are_plain(const TensorList& list) { return std::all_of(list.begin(), list.end(), is_plain); }

  static void put(DirectCall& call, Argument& argument, const at::Tensor& t);
  static void put(DirectCall& call, Argument& argument, const std::optional<at::Tensor>& t);
  static void put(DirectCall& call, Argument& argument, const TensorList& list);
  static void put(DirectCall& call, Argument& argument, const Given& given) { put(call, argument, given.list); }
  static void put(DirectCall& call, Argument& argument, const Flags& flags);
  static void put(DirectCall& call, Argument& argument, bool flag);
  static void put(DirectCall& call, Argument& argument, const std::vector<double>& numbers);
  static void put(DirectCall& call, Argument& argument, const std::string& text);

  template <class T>
  static c10::IValue value_of(const T& value) {
    return c10::IValue(value);
  }
  static c10::IValue value_of(const Flags& flags);
  static c10::IValue value_of(const Given& given) { return c10::IValue(given.list); }

  const DirectOp* direct_;
  std::string name_;
  c10::OperatorHandle handle_;
};

}  // namespace datagrad
