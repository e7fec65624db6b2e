// Tasks that threads take from one list.
#pragma once

#include <common/parallel.h>

#include <atomic>

namespace datagrad {

// Calls f(i) for all i in [0, n), each by the thread that comes first: a thread that is interrupted keeps nobody waiting. f must
// not throw.
template <class F>
void parallel_tasks(int64_t n, const F& f) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(n, num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < n; i = next++) f(i);
  });
}

}  // namespace datagrad
