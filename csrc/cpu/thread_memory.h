// Memory of a thread that stays for its next call: a small network notices every large piece that malloc gives and takes back.
#pragma once

#include <cstdint>
#include <vector>

namespace datagrad {
namespace {

// n elements, not initialised; the memory of one `Use` at a time.
template <class Use, class T>
T* thread_memory(int64_t n) {
  thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < n) memory.resize(n);
  return memory.data();
}

}  // namespace
}  // namespace datagrad
