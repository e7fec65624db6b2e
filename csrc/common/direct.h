// Calls of a kernel past torch's dispatcher, which _C makes where nobody could see the difference (csrc/direct.cpp): a small network
// pays as much for the way to a kernel as for its work. A library exports a table of the ops that can be called so.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace datagrad {

// One argument of an op: elements [first, first + count) of the call's list of that kind, or a text.
struct Argument {
  enum Kind : uint8_t { nothing, tensor, flag, number, text };

  Kind kind = nothing;
  size_t first = 0, count = 0;
  const char* characters = "";
};

// Lists are shared by all arguments: a call of a small network notices every piece of memory it asks for.
struct DirectCall {
  static constexpr size_t kMaxArguments = 20;

  Argument arguments[kMaxArguments];
  std::vector<void*> tensors;  // AtenTensorHandles that the call owns
  std::vector<bool> flags;
  std::vector<double> numbers;
  std::vector<void*> results;  // handles that _C owns
  void* caller = nullptr;
  void* (*unlock)(void* caller);  // lets other threads of Python run, until `lock` is called with what it returned
  void (*lock)(void*);
};

struct DirectOp {
  const char* name;
  size_t arguments;
  // Fills `results`; false, and nothing happened, if an argument is of another kind or no dense CPU tensor with memory of its own.
  // Throws what the kernel throws. The caller holds Python's lock.
  bool (*run)(DirectCall&);
};

struct DirectOps {
  const DirectOp* begin;
  size_t count;

  // The op of that name, null if there is none.
  const DirectOp* find(const std::string& name) const {
    const DirectOp* found = std::find_if(begin, begin + count, [&](const DirectOp& op) { return name == op.name; });
    return found == begin + count ? nullptr : found;
  }
};

}  // namespace datagrad

// The symbol that a library exports.
extern "C" __attribute__((visibility("default"))) datagrad::DirectOps datagrad_direct_ops();
