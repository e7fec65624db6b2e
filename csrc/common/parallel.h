// Work on CPU threads. The blocks are fixed by the size of the work, never by the number of threads, so that a sum over
// blocks is the same on every machine.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cstdint>

namespace datagrad {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kSerialElements = 32768;

// Calls f(begin, end) on ranges that cover [0, n); in this thread if one thread is enough. f must not throw.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  const ParallelFunc call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  void* context = const_cast<void*>(static_cast<const void*>(&f));
  if (n > grain) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, call, context));
  } else if (n > 0) {
    call(0, n, context);
  }
}

inline int64_t num_threads() {
  uint32_t count = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return count;
}

// [0, n) cut into equal blocks, each a multiple of `align` elements.
struct Blocks {
  int64_t n;
  int64_t size;

  Blocks(int64_t n, int64_t size, int64_t align) : n(n), size(std::max(align, (size + align - 1) / align * align)) {}

  int64_t count() const { return (n + size - 1) / size; }
  int64_t begin(int64_t block) const { return block * size; }
  int64_t end(int64_t block) const { return std::min(n, (block + 1) * size); }
};

// Calls f(block, begin, end) for every block; in this thread if the work is small.
template <class F>
void parallel_blocks(const Blocks& blocks, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kSerialElements / blocks.size);
  parallel_for(blocks.count(), grain, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) f(block, blocks.begin(block), blocks.end(block));
  });
}

}  // namespace datagrad
