// Memory of a thread that stays for its next call: a small network notices every large piece that malloc gives and takes back.
#pragma once

#include <cstdint>
#include <vector>

namespace datagrad {
namespace {

constexpr int64_t kCacheLine = 64;  // bytes; a vector register is no longer

// n elements from the start of a cache line on, not initialised; the memory of one `Use` at a time.
template <class Use, class T>
T* thread_memory(int64_t n) {
  thread_local std::vector<T> memory;
  const int64_t needed = n + kCacheLine / static_cast<int64_t>(sizeof(T));
  if (static_cast<int64_t>(memory.size()) < needed) memory.resize(needed);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<T*>((address + kCacheLine - 1) / kCacheLine * kCacheLine);
}

}  // namespace
}  // namespace datagrad
