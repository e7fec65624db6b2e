// Calls of a kernel past torch's dispatcher, which _C makes where nobody could see the difference (csrc/direct.cpp): a small network
// pays as much for the way to a kernel as for its work. A library exports a table of the ops that can be called so.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace datagrad {

// One argument of an op. Tensors are AtenTensorHandles.
struct Argument {
  std::vector<void*> tensors;  // a tensor, those of a list, or none
  std::vector<bool> flags;     // a bool, or those of a list
  std::string text;
};

struct DirectCall {
  std::vector<Argument> arguments;  // the call owns their tensors
  std::vector<void*> results;       // handles that _C owns
  void* (*unlock)();                // lets other threads of Python run, until `lock` is called with what it returned
  void (*lock)(void*);
};

struct DirectOp {
  const char* name;
  // Fills `results`; false, and nothing happened, if an argument is no dense CPU tensor with memory of its own. Throws what the
  // kernel throws. The caller holds Python's lock.
  bool (*run)(DirectCall&);
};

struct DirectOps {
  const DirectOp* begin;
  size_t count;
};

}  // namespace datagrad

// The symbol that a library exports.
extern "C" __attribute__((visibility("default"))) datagrad::DirectOps datagrad_direct_ops();
